"""Files that would run code if they were loaded carelessly: SECURITY.md has the list of loaders."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.data import teacher_outputs
from tfkd.errors import UsageError
from tfkd.report import confusion
from tfkd.runs import checkpoint


class Payload:
    """An object that leaves a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The path of a file that the code writes if it is run."""
    return tmp_path / "code has run"


def objects(mark):
    """An array that NumPy saves by pickling it."""
    return np.array([Payload(mark)], dtype=object)


def test_the_payload_is_dangerous(mark, tmp_path):
    np.save(tmp_path / "objects.npy", objects(mark), allow_pickle=True)
    np.load(tmp_path / "objects.npy", allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_models_with_python_code_are_refused(mark, tmp_path, monkeypatch, name):
    monkeypatch.chdir(mark.parent)
    # Keras saves a lambda as its byte code, which knows no variables of the outside.
    function = lambda x: [x, open("code has run", "w").close()][0]  # noqa: E731, SIM115
    layers = [keras.Input((3,)), keras.layers.Lambda(function, output_shape=(3,))]
    keras.Sequential(layers).save(tmp_path / name)
    mark.unlink(missing_ok=True)
    with pytest.raises(UsageError, match="holds Python code, .* which is not run") as caught:
        tfkd.models.load(tmp_path / name)
    assert name in str(caught.value) and "safe_mode" not in str(caught.value)
    assert not mark.exists()
    keras.models.load_model(tmp_path / name, safe_mode=False)(np.zeros((1, 3)))
    assert mark.exists()


def test_checkpoints_with_pickled_objects_are_damaged(mark, tmp_path):
    path = tmp_path / "checkpoint.npz"
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2))
    distiller.compile("sgd")
    distiller.train_on_batch(*tiny.data(4))
    checkpoint.save(path, distiller, {})
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays)
    assert checkpoint.restore(path, distiller) is not None
    np.savez(path, **{**arrays, "variable/0": objects(mark)})
    with pytest.raises(UsageError, match="damaged .*allow_pickle=False"):
        checkpoint.restore(path, distiller)
    assert not mark.exists()


def test_teacher_outputs_with_pickled_objects_are_refused(mark, tmp_path):
    np.savez(tmp_path / "logits.npz", logits=objects(mark))
    with pytest.raises(UsageError, match="cannot be read .*allow_pickle=False"):
        teacher_outputs.given(tmp_path / "logits.npz", examples=1, views=1)
    assert not mark.exists()


def test_cached_teacher_outputs_with_pickled_objects_are_damaged(mark, tmp_path):
    inputs, labels = tiny.data(4)
    compute = [tiny.model(seed=1), ["logits"], lambda _: iter([tf.constant(inputs)]), (1, 4)]
    compute += [tmp_path / "cache", "float32", 2**20, None, labels]
    teacher_outputs.compute(*compute)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    np.save(file, objects(mark), allow_pickle=True)
    with pytest.raises(UsageError, match="is damaged"):
        teacher_outputs.compute(*compute)
    assert not mark.exists()


def test_kept_predictions_with_pickled_objects_count_as_none(mark, tmp_path):
    path = tmp_path / "predictions-student.npz"
    np.savez(path, model="digest", predicted=np.arange(3), labels=np.arange(3))
    assert confusion._read(path, "digest") is not None
    np.savez(path, model="digest", predicted=objects(mark), labels=np.arange(3))
    assert confusion._read(path, "digest") is None
    assert not mark.exists()
