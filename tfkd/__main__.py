"""The command `tfkd`: one entry to all commands.

    tfkd train --config=configs/digits.py:method=kd --workdir=runs/digits-kd

is `python -m tfkd.train ...`, and so for the others.
"""

import importlib.util
import runpy
import sys

from tfkd.errors import UsageError, exit_on_usage_error, unknown

#: Every command and what it does; each is the module of its name.
COMMANDS = {
    "train": "train a teacher and distil a student, or go on with a run that was interrupted",
    "compare": "run several methods over several seeds, and write one table",
    "tune": "search temperatures, weights and learning rates of a method",
    "check": "say what would spoil a run, before it is begun",
    "evaluate": "measure the models of a finished run again",
    "export": "write a student for use elsewhere, and measure what was written",
    "report": "make a web page of one or more finished runs",
    "local_workers": "start several workers on this machine, which train as one",
    "describe": "tell what a method, loss, model or data set is",
}

_HELP = ("-h", "--help", "-help", "--helpshort", "--helpfull", "help")


def usage():
    """Returns what `tfkd --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "tfkd: TensorFlow/Keras Knowledge Distillation",
            "",
            "usage: tfkd COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "tfkd COMMAND --help shows the flags of a command. To begin with, in a copy of the",
            "repository (half a minute, no download):",
            "",
            "  tfkd train --config=configs/digits.py:method=kd --workdir=runs/first",
            "  tfkd report --workdir=runs/first",
        ]
    )


def main():
    """Runs the command that the first argument names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in _HELP:
        print(usage())
        return
    with exit_on_usage_error():
        if command.startswith("-"):
            raise UsageError(f"The command comes first: tfkd COMMAND {command}; see tfkd --help.")
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
    module = f"tfkd.{command}"
    # The command is then the main module, whose flags and docstring --help shows.
    sys.argv = [importlib.util.find_spec(module).origin, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
