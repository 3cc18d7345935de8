"""Runs tfkd's commands in the process of a test."""

import os
import pathlib
import re
import sys

import pytest
from absl import flags

from tfkd import command_line

ROOT = pathlib.Path(__file__).parents[1]

#: The repository's address, which setup.py says.
REPOSITORY = re.search('^REPOSITORY = "(.+)"', (ROOT / "setup.py").read_text("utf-8"), re.M)[1]

SMALL = [
    f"--config={ROOT}/configs/digits.py:teacher=resnet14,student=resnet8,runlocal",
    "--config.data.train_examples=64",
    "--config.data.batch_size=32",
]


def call(main, *arguments, **options):
    """Runs a command in this process, as often as wanted."""
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    # The module of the config before, whose get_config would stand in for one that is missing.
    sys.modules.pop("config_config", None)
    with pytest.MonkeyPatch.context() as patch:
        # ml_collections looks there for overrides of the config.
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        # --data_dir sets it; what was there comes back.
        patch.setenv("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR", ""))
        command_line.main(main, **options)


def refused(capsys, main, *arguments, **options):
    """Runs a command that must fail; returns the one line that it prints."""
    with pytest.raises(SystemExit) as stop:
        call(main, *arguments, **options)
    printed = capsys.readouterr()
    assert stop.value.code == command_line.MISTAKE
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in printed.err
    return lines[0]
