"""Trains a teacher and distils a student.

    python -m tfkd.train --config=configs/digits.py:method=kd --workdir=runs/digits-kd

The same command again resumes an interrupted run.
"""

from absl import flags

from tfkd import command_line
from tfkd.runs import execute

flags.adopt_module_key_flags(command_line)


def train(config):
    """Runs what the flags say."""
    execute.run(
        config,
        flags.FLAGS.workdir,
        command=command_line.command("train"),
    )


if __name__ == "__main__":
    command_line.main(train)
