"""Several processes train as one: through the command line, as users run them."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkd
from tfkd import local_workers

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = [sys.executable, "-m"]
WORKERS = [*PYTHON, "tfkd.local_workers", "--workers=2", "--", *PYTHON, "tfkd.train"]
# So that the bits of a sum do not depend on how many threads share it.
ENVIRONMENT = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A small run: 66 training images in batches of 33, 130 for validation, a teacher."""
    folder = tmp_path_factory.mktemp("workers")
    teacher = tfkd.models.create("resnet8", num_classes=10, input_shape=(8, 8, 1), seed=1)
    teacher.save(folder / "teacher.keras")
    config = f"{ROOT}/configs/digits.py:method=ackd,teacher={folder}/teacher.keras,student=resnet8"
    return [
        f"--config={config}",
        "--config.data.train_examples=66",
        "--config.data.batch_size=33",
        "--config.epochs=6",
        "--config.check=False",
        f"--data_dir={folder / 'tfds'}",
    ]


def run(command, workdir, **kwargs):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], env=ENVIRONMENT, cwd=ROOT, **pipes, **kwargs
    )


def finish(process):
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return output


@pytest.mark.slow
def test_two_workers_are_one_process_with_two_replicas(arguments, tmp_path):
    """Interrupted after an epoch and resumed, too; with an odd batch and a partial last one."""
    one = [*PYTHON, "tfkd.train", *arguments, "--strategy=mirrored", "--replicas=2"]
    finish(run(one, tmp_path / "one"))

    process = run([*WORKERS, *arguments], tmp_path / "two")
    for line in process.stdout:
        if line.startswith("epoch 1/6"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=500)
    assert process.returncode == local_workers.INTERRUPTED, errors
    assert not (tmp_path / "two" / "student.keras").exists()
    assert "resuming after epoch " in finish(run([*WORKERS, *arguments], tmp_path / "two"))

    for name in ("student", "fused"):
        models = [
            keras.models.load_model(tmp_path / run / f"{name}.keras") for run in ("one", "two")
        ]
        for a, b in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    metrics = [
        np.genfromtxt(tmp_path / run / "metrics.csv", delimiter=",", names=True)
        for run in ("one", "two")
    ]
    for name in metrics[0].dtype.names:
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-5, err_msg=name)
    # Only the chief has written: one event file per kind, and none that is half done.
    files = [
        sorted(path.name for path in (tmp_path / run).rglob("*") if "events" not in path.name)
        for run in ("one", "two")
    ]
    assert files[0] == files[1]


@pytest.mark.slow
def test_keras_still_needs_help_to_train_with_workers(tmp_path):
    """Once it does not, set KERAS_TRAINS_WITH_WORKERS_FROM in runtime/keras_fixes.py."""
    script = pathlib.Path(__file__).with_name("keras_fit_of_a_worker.py")
    assert local_workers.run([sys.executable, str(script), str(tmp_path / "found")]) == 0
    to_build, to_return_logs = json.loads((tmp_path / "found").read_text(encoding="utf-8"))
    assert "PerReplica" in to_build and "reduction dimension 0" in to_return_logs
