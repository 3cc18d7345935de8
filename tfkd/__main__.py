"""The command `tfkd`: one entry to all commands.

    tfkd train --config=configs/digits.py:method=kd --workdir=runs/digits-kd

is `python -m tfkd.train ...`, and so for the others.
"""

import importlib.util
import os
import runpy
import sys

import tfkd_cli
from tfkd.errors import UsageError, exit_on_usage_error, unknown


def run_command(name):
    """Runs the command of that name with the arguments of the process that follow it."""
    with exit_on_usage_error():
        if name.startswith("-"):
            raise UsageError(f"The command comes first: tfkd COMMAND {name}; see tfkd --help.")
        if name not in tfkd_cli.COMMANDS:
            raise unknown("command", name, tfkd_cli.COMMANDS)
    module = f"tfkd.{name}"
    # Where `python -m tfkd.train` finds modules of one's own, too.
    sys.path.insert(0, os.getcwd())
    # The command is then the main module, whose flags and docstring --help shows.
    sys.argv = [importlib.util.find_spec(module).origin, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    tfkd_cli.main()
