"""Evaluates the models of a complete run again, and says what they get right.

    python -m tfkd.evaluate --workdir=runs/digits-kd [--split=validation] [--model=student]

Prints one table: a column for each model, with its accuracy, top-5 accuracy where there are more
than five classes, cross-entropy, and accuracy on the images of each class. Writes nothing.
"""

from absl import flags

from tfkd import command_line
from tfkd.errors import check_no_arguments
from tfkd.runs.evaluation import evaluate, table


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)
    flags.DEFINE_string("split", "test", "One of test, validation.")
    flags.DEFINE_string(
        "model", None, "Model of the run: student, teacher, ensemble, ...; all if not given."
    )


def main(rest):
    """Runs what the flags say."""
    check_no_arguments(rest)
    values = flags.FLAGS
    print(table(*evaluate(values.workdir, values.split, values.model)), end="")


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
