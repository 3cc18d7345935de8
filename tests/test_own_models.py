"""Runs with models of the user's own, named on the command line."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from commands import ROOT, SMALL, call

from tfkd import check, compare, train, tune

SOURCE = '''
"""Models of a user, with a layer of their own."""

import keras
from keras import layers


@keras.saving.register_keras_serializable("own_models_of_a_test")
class Scale(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.factor


def small(num_classes, input_shape, width=4):
    images = keras.Input(input_shape)
    x = Scale()(layers.Conv2D(width, 3, activation="relu", name="stage1")(images))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits")(x))


def large(num_classes, input_shape):
    return small(num_classes, input_shape, width=8)
'''

PAIR = SMALL[0].replace("resnet14", "own_models:large").replace("resnet8", "own_models:small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The directory where a user works."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("own_models", None)


def flags(folder, name):
    return [*SMALL[1:], f"--data_dir={folder / 'tfds'}", f"--workdir={folder / name}"]


def test_own_models_are_checked(folder, capsys):
    call(check.check, PAIR, *flags(folder, ""), needs_workdir=False)
    printed = capsys.readouterr().out
    assert "kd_loss" in printed and "The teacher is untrained here" in printed


@pytest.mark.slow
def test_own_models_are_trained_resumed_and_read(folder):
    run = folder / "run"
    call(train.train, PAIR, *flags(folder, "run"))
    student = keras.models.load_model(run / "student.keras")
    assert type(student.layers[2]).__name__ == "Scale"
    # What is missing is made again, from the checkpoint.
    for name in ("student.keras", "summary.json"):
        (run / name).unlink()
    call(train.train, PAIR, *flags(folder, "run"))
    for a, b in zip(student.weights, keras.models.load_model(run / "student.keras").weights):
        np.testing.assert_array_equal(a, b)

    def command(name, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "tfkd", name, f"--workdir={run}", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(folder / "tfds")},
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("evaluate")
    assert done.returncode == 2 and "--imports=MODULE" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400
    measured = json.loads((run / "summary.json").read_text())["student"]["test_accuracy"]
    done = command("evaluate", "--imports=own_models")
    assert done.returncode == 0 and f"{100 * measured:.2f}" in done.stdout, done.stderr
    done = command("export", "--imports=own_models", "--format=tflite")
    assert done.returncode == 0 and (run / "export" / "student.tflite").exists(), done.stderr
    done = command("report", "--imports=own_models")
    assert done.returncode == 0, done.stderr
    assert "own_models:small" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_several_students_are_compared_under_one_teacher(folder):
    chosen = ["--methods=alone,kd", "--students=own_models:small,resnet8", "--seeds=1"]
    arguments = [PAIR, *flags(folder, "several"), "--config.epochs=1", *chosen]
    call(compare.main, *arguments)
    rows = json.loads((folder / "several" / "table.json").read_text())
    assert [(row["model"], row["method"]) for row in rows] == [
        ("own_models:large", "alone"),
        ("own_models:small", "alone"),
        ("own_models:small", "kd"),
        ("resnet8", "alone"),
        ("resnet8", "kd"),
    ]
    assert rows[1]["parameters"] == rows[2]["parameters"] < rows[3]["parameters"]
    assert {path.name for path in (folder / "several").iterdir() if path.is_dir()} == {
        "teacher",
        *("own_models-small-alone-seed0", "own_models-small-kd-seed0"),
        *("resnet8-alone-seed0", "resnet8-kd-seed0"),
    }
    # One student more: what is there is read.
    arguments[-2] += ",resnet14"
    call(compare.main, *arguments)
    again = json.loads((folder / "several" / "table.json").read_text())
    assert again[:5] == rows and again[5]["model"] == "resnet14"


@pytest.mark.slow
def test_own_students_are_tuned(folder):
    more = [
        "--config.epochs=1",
        "--max_trials=1",
        "--confirm=0",
        "--search=optimizer.nesterov:True|False",
    ]
    call(tune.main, PAIR.replace(":", ":method=alone,", 1), *flags(folder, "tuned"), *more)
    best = json.loads((folder / "tuned" / "best_config.json").read_text())
    assert best["config"]["student"]["model"] == "own_models:small"
