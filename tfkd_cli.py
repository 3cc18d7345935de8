"""The command `tfkd`: answers --help and --version, and hands all else to `tfkd.__main__`.

It is outside of the package because importing that imports TensorFlow, which takes seconds.
"""

import sys

#: The version, said here alone: setup.py and `tfkd.__version__` read it.
VERSION = "0.2.0"

#: Every command and what it does; each is the module of its name.
COMMANDS = {
    "train": "train a teacher and distil a student, or go on with a run that was interrupted",
    "compare": "run several methods over several seeds, and write one table",
    "chain": "train models one after the other, each taught by those before it",
    "tune": "search temperatures, weights and learning rates of a method",
    "check": "say what would spoil a run, before it is begun",
    "evaluate": "measure the models of a finished run again",
    "export": "write a student for use elsewhere, and measure what was written",
    "report": "make a web page of one or more finished runs",
    "studies": "keep results of studies as data, and write tables and pictures from them",
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
            "tfkd COMMAND --help shows the flags of a command, tfkd --version the version. To",
            "begin with, in a copy of the repository (half a minute, no download):",
            "",
            "  tfkd train --config=configs/digits.py:method=kd --workdir=runs/first",
            "  tfkd report --workdir=runs/first",
        ]
    )


def main():
    """Runs the command line."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in _HELP:
        print(usage())
    elif first == "--version":
        print(f"tfkd {VERSION}")
    else:
        from tfkd.__main__ import run_command

        run_command(first)
