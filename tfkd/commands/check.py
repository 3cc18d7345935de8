"""Checks a run before it is begun: teacher, taps, sizes of the losses and of their gradients.

    python -m tfkd.check --config=configs/digits.py:method=kd+at,teacher=teacher.keras

Nothing is trained or written. `tfkd.train` does the same before it trains the student. A teacher
that no run has trained yet is checked untrained: then its shapes count, not its accuracy.
"""

import pathlib

from absl import flags

from tfkd import command_line
from tfkd.methods import needs_teacher
from tfkd.runs import execute

flags.adopt_module_key_flags(command_line)


def check(config):
    """Prints the table and the warnings."""
    print(execute.check_run(config, flags.FLAGS.workdir))
    trained = flags.FLAGS.workdir and pathlib.Path(flags.FLAGS.workdir, "teacher.keras").exists()
    if needs_teacher(config.method) and not config.teacher.path and not trained:
        print("(The teacher is untrained here; tfkd.train trains it first.)")


if __name__ == "__main__":
    command_line.main(check, needs_workdir=False)
