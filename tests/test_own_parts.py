"""Losses and methods of a user's own, from the command line to the report."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

CONFIG = """
import mine

from tfkd import config as tfkd_config


def get_config(arguments=""):
    config, _ = tfkd_config.from_arguments(arguments, teacher="resnet8", student="resnet8")
    config.data.name = "digits"
    config.data.train_examples, config.data.batch_size = 64, 32
    config.epochs = config.teacher.epochs = 1
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd+cosine", "trusted"])
def test_runs_of_the_pages_loss_and_method_are_evaluated_exported_and_reported(tmp_path, method):
    """The commands after training know nothing of the module that defines them."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    loss, method_class, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(loss + method_class)
    (tmp_path / "my_config.py").write_text(CONFIG)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "TFDS_DATA_DIR": str(tmp_path / "tfds"),
    }

    def run(command, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", f"tfkd.{command}", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    trained = run("train", f"--config=my_config.py:method={method}", "--workdir=run")
    assert ("cosine_loss" if "cosine" in method else "kd_loss") in trained
    assert "student" in run("evaluate", "--workdir=run")
    run("export", "--workdir=run", "--format=tflite")
    assert list((tmp_path / "run").rglob("*.tflite"))
    run("report", "--workdir=run")
    assert method in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
