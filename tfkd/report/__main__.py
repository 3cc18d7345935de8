"""Makes a web page of one or more finished runs.

    python -m tfkd.report --workdir=runs/digits [runs/more ...]

A directory is that of a run or of a comparison. The page shows results, curves, what the models
confuse on the test set, pictures, and how to repeat the runs. docs/report.md shows one.
"""

from absl import flags

from tfkd import command_line
from tfkd.errors import UsageError
from tfkd.methods import split_at_commas
from tfkd.report import report


def _define_flags():
    # Not at import: other commands have an --output as well.
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)
    flags.DEFINE_string(
        "output", None, "Path of the page; report.html in the first directory if not given."
    )
    flags.DEFINE_boolean(
        "confusions", True, "Whether to compare what the models predict on the test set."
    )


def main(arguments):
    """Runs what the flags and the further arguments, which are directories, say."""
    if flags.FLAGS["workdir"].present > 1:
        raise UsageError(
            "--workdir is given several times: name further directories after it, or separate "
            "them by commas."
        )
    paths = [*split_at_commas(flags.FLAGS.workdir or ""), *arguments]
    if not paths:
        raise UsageError("--workdir=DIR is missing: the directory of a complete run.")
    output = report(paths, flags.FLAGS.output, confusions=flags.FLAGS.confusions)
    print(f"Written: {output}", flush=True)


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
