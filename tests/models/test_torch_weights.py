"""The command line that converts checkpoints."""

import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import zoo

from tfkd.errors import UsageError
from tfkd.models import torch_weights
from tfkd.models.torch_weights import convert

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def checkpoint(tmp_path):
    identifier, state, arrays = zoo.forward_case("forward_resnet8.npz")
    floats = {name: value for name, value in state.items() if value.ndim}
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(floats, path)
    return str(path), arrays


def _run(*arguments):
    command = [sys.executable, "-m", "tfkd.models.torch_weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_writes_the_published_model(checkpoint, tmp_path):
    source, arrays = checkpoint
    output = tmp_path / "teacher.keras"
    done = _run("--model=resnet8", "--num_classes=100", f"--source={source}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert f"Wrote {output}." in done.stdout
    logits = keras.saving.load_model(output)(arrays["image"].astype("float32"), training=False)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "teacher.keras",
        "weights.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model=resnet8", "--output=teacher.keras"], "Missing --num_classes, --source;"),
        pytest.param(
            ["--model=resnet8", "--num_classes=ten"],
            "flag --num_classes=ten: invalid literal",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_command_reports_a_mistake_in_one_line(arguments, message):
    done = _run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model": "resnet9"}, "Unknown model 'resnet9'"),
        ({"source": "none.pth"}, "There is no file 'none.pth'"),
        ({"input_shape": ["32", "x"]}, "input_shape must be three integers"),
        ({"input_shape": ["32", "32"]}, "input_shape must be .height, width, channels."),
    ],
)
def test_mistakes_in_values(tmp_path, changed, message):
    values = {
        "model": "resnet8",
        "num_classes": 10,
        "source": "none.safetensors",
        "output": str(tmp_path / "teacher.keras"),
        "input_shape": ["8", "8", "3"],
    }
    with pytest.raises(UsageError, match=message):
        torch_weights.run(types.SimpleNamespace(**{**values, **changed}))


def test_output_survives_a_failure(checkpoint, tmp_path):
    source, _ = checkpoint
    output = tmp_path / "teacher.keras"
    output.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"wrong: fc.weight is \(100, 64\) instead of \(10, 64\)"):
        convert("resnet8", 10, source, str(output))
    assert output.read_bytes() == b"precious"


def test_output_survives_a_failing_save(checkpoint, tmp_path, monkeypatch):
    source, _ = checkpoint
    output = tmp_path / "teacher.keras"
    output.write_bytes(b"precious")

    def fail(self, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "save", fail)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        convert("resnet8", 100, source, str(output))
    assert output.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_output_is_replaced_on_success(checkpoint, tmp_path):
    source, _ = checkpoint
    output = tmp_path / "teacher.keras"
    output.write_bytes(b"old")
    convert("resnet8", 100, source, str(output), input_shape=(16, 24, 3))
    assert keras.saving.load_model(output).input_shape == (None, 16, 24, 3)


@pytest.mark.parametrize(
    "output, message",
    [
        ("teacher.h5", "must end in .keras"),
        ("none/teacher.keras", "There is no folder"),
        ("folder.keras", "is a folder"),
    ],
)
def test_bad_outputs(checkpoint, tmp_path, output, message):
    source, _ = checkpoint
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(UsageError, match=message):
        convert("resnet8", 100, source, str(tmp_path / output))
