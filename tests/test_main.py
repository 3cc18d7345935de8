"""The command `tfkd` finds every command."""

import importlib
import re
import subprocess
import sys

import pytest
from absl import flags

import tfkd_cli
from tfkd import command_line, runtime
from tfkd.export.formats import FORMATS, QUANTIZATIONS
from tfkd.runs.evaluation import SPLITS


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfkd", *arguments], capture_output=True, text=True, check=False
    )


def test_every_command_is_a_module_that_tells_what_it_does():
    for name in tfkd_cli.COMMANDS:
        module = importlib.import_module(f"tfkd.{name}")
        assert f"python -m tfkd.{name}" in module.__doc__
        assert f"  {name}" in tfkd_cli.usage()


def test_a_command_runs_with_its_arguments_and_help():
    described = run("describe", "at")
    assert described.returncode == 0, described.stderr
    assert "AttentionTransfer" in described.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_without_a_command_it_lists_them(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfkd", *arguments])
    tfkd_cli.main()
    assert capsys.readouterr().out == tfkd_cli.usage() + "\n"


@pytest.mark.parametrize(
    "arguments, begin",
    [
        (["--help"], "tfkd: "),
        (["--version"], "tfkd "),
        (["train", "--help"], "Trains a teacher and distils a student."),
        (["init", "photos"], "Written: photos"),
    ],
)
def test_what_needs_no_tensorflow_does_not_wait_for_it(arguments, begin, tmp_path):
    code = (
        "import atexit, sys; sys.path.insert(0, sys.argv.pop()); import tfkd_cli; "
        "there = lambda: {'tensorflow', 'keras', 'tfkd', 'numpy'} & set(sys.modules); "
        "atexit.register(lambda: print('loaded', there())); tfkd_cli.main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(tfkd_cli._HERE)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert answer.stdout.startswith(begin) and answer.stdout.endswith("loaded set()\n")


@pytest.mark.parametrize("name", tfkd_cli.COMMANDS)
def test_the_help_of_a_command_tells_the_flags_that_it_has(name):
    text = tfkd_cli.help_of(name)
    shown = re.findall(r"^  --(?:\[no\])?(\w+)$", text, re.MULTILINE)
    module = importlib.import_module(f"tfkd.{name}")
    flat = re.sub(r"\s+", " ", text)
    if name not in ("describe", "evaluate", "export", "init", "report", "studies"):
        # Those that do not define their flags before they run.
        key = flags.FLAGS.get_key_flags_for_module(module.__name__)
        assert {flag.name for flag in key} == set(shown)
        for flag in key:
            # Of an enum absl tells the values first.
            assert re.sub(r"\s+", " ", re.sub("^<.*?>: ", "", flag.help)) in flat
    choices = {
        "train": [*runtime.STRATEGIES, *runtime.PRECISIONS],
        "export": [*FORMATS, *QUANTIZATIONS],
        "evaluate": SPLITS,
    }
    assert all(choice in flat for choice in choices.get(name, ()))


def test_a_module_answers_for_its_help_as_the_command_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["commands/describe.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line.main_without_config(None)
    assert not stop.value.code
    assert capsys.readouterr().out == tfkd_cli.help_of("describe") + "\n"


def test_a_config_of_ones_own_begins_as_a_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tfkd_cli.init(["mine", "digits"]) == 0
    assert (tmp_path / "mine" / "config.py").read_text() == tfkd_cli.configs()["digits"].read_text()
    assert "tfkd train --config=mine/config.py --workdir=mine/run" in capsys.readouterr().out
    for arguments, message in (
        ([], "takes a directory"),
        (["a", "digits", "c"], "takes a directory"),
        (["a", "digit"], "Unknown config 'digit': .*; did you mean 'digits'"),
        (["mine"], "mine/config.py is there already: choose another directory"),
        (["mine/config.py"], "mine/config.py/config.py cannot be written"),
    ):
        assert tfkd_cli.init(arguments) == 2
        line = capsys.readouterr().err
        assert re.match(f"error: .*{message}", line) and line.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trian", "error: Unknown command 'trian': it must be one of init, train,"),
        ("--workdir=runs", "error: The command comes first: tfkd COMMAND --workdir=runs;"),
    ],
)
def test_mistakes_are_one_line(argument, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfkd", argument])
    with pytest.raises(SystemExit, match="2"):
        tfkd_cli.main()
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
