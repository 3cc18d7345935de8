"""Prints what users get wrong and what they are told, as a Markdown table.

    python benchmarks/mistakes.py

The mistakes are those of `tests/mistakes.py`, where a test checks them. All of them are made in
one process; none of them trains anything.
"""

import contextlib
import io
import pathlib
import sys
import tempfile

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import mistakes  # noqa: E402

from tfkd import command_line, train  # noqa: E402


def told(arguments):
    """Returns what `python -m tfkd.train` answers to arguments, and its exit code."""
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    sys.modules.pop("config_config", None)
    sys.argv = ["command", *arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        try:
            command_line.main(train.train)
        except SystemExit as stop:
            return printed.getvalue().strip(), stop.code
    return "no mistake was found", 0


def main():
    """Prints the table; the exit code is 1 where a mistake is not told in one line."""
    print("| mistake | arguments | what is printed |\n| --- | --- | --- |")
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        files = pathlib.Path(temporary) / "files"
        files.mkdir()
        mistakes.make_files(files)
        for mistake, (given, _) in mistakes.MISTAKES.items():
            arguments = mistakes.arguments(
                mistake, files, workdir=f"{temporary}/run", data_dir=f"{temporary}/tfds"
            )
            answer, code = told(arguments)
            wrong += code != command_line.MISTAKE or len(answer.splitlines()) != 1
            shown = " ".join(given).replace(f"{mistakes.ROOT}/", "")
            answer = answer.replace(f"{mistakes.ROOT}/", "").replace(f"{temporary}/", "")
            cells = (mistake, f"`{shown}`", answer.replace("\n", " / "))
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    print(f"\n{len(mistakes.MISTAKES)} mistakes, {wrong} not answered by one line")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
