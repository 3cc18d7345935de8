"""Every loader gives an error of one line for a damaged or hostile file, or what the file holds.

It neither hangs nor crashes, changes no file and writes none. Only files are tried that run no
code: `test_untrusted_files.py` has those that would. `pytest -s -m slow` prints the table of what
was tried.
"""

import faulthandler
import itertools
import json
import pathlib
import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from damaged_files import archives, arrays, bytes_of_any_kind, documents, images, safetensors

import tfkd
from tfkd import config, models
from tfkd.data import teacher_outputs
from tfkd.errors import UsageError
from tfkd.models import torch_checkpoint
from tfkd.report import confusion
from tfkd.report import runs as report_runs
from tfkd.runs import checkpoint, studies, work_directory

ROOT = pathlib.Path(__file__).parents[1]
#: Seconds that a file may take; a loader that hangs in C ends the process with its stack.
PATIENCE = 60


def tried(path, load, changes, expected=None):
    """Loads a file in many states of damage.

    Args:
        path: Path of the whole file; alone in its folder with what it belongs to.
        load: Function of the path.
        changes: Iterable of `(what, content)`.
        expected: What `load` returns for the whole file, where checksums protect it; arrays.

    Returns:
        The tuple `(tried, errors)`, two integers.
    """
    whole = path.read_bytes()
    count, errors = 0, 0
    for what, content in changes:
        # A new file: HDF5 keeps one that it could not read, by its inode.
        path.unlink()
        path.write_bytes(content)
        before = contents(path.parent.parent)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        started = time.perf_counter()
        try:
            found = load(path)
        except UsageError as error:
            errors += 1
            assert str(error).strip() and "\n" not in str(error), what
        except Exception as error:
            raise AssertionError(f"{path.name}, {what}: {type(error).__name__}: {error}") from error
        else:
            if expected is not None:
                same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
                assert same, f"{path.name}, {what}: other values without an error"
        finally:
            faulthandler.cancel_dump_traceback_later()
        count += 1
        assert time.perf_counter() - started < PATIENCE, what
        assert contents(path.parent.parent) == before, f"{path.name}, {what}: files have changed"
        assert not pathlib.Path("/tmp/tfkd-outside").exists(), what
    path.unlink()
    path.write_bytes(whole)
    load(path)  # The whole file is read as ever.
    print(f"| {path.name} | {count:,} | {errors:,} |")
    return count, errors


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_of(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def weights_of(path):
    return tfkd.models.load(path).get_weights()


def compiled():
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2))
    distiller.compile("sgd")
    distiller.train_on_batch(*tiny.data(4))
    return distiller


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_models(tmp_path, suffix):
    path = folder_of(tmp_path) / f"model.{suffix}"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.ReLU()]).save(path)
    changes = [bytes_of_any_kind(path.read_bytes(), 60)]
    changes += [archives(path.read_bytes(), 0)] if suffix == "keras" else []
    expected = weights_of(path) if suffix == "keras" else None
    count, errors = tried(path, weights_of, itertools.chain(*changes), expected)
    assert errors > count / 3


@pytest.mark.slow
def test_weights_of_a_distiller(tmp_path):
    path = folder_of(tmp_path) / "best.weights.h5"
    distiller = compiled()
    distiller.save_weights(path)
    _, errors = tried(path, distiller.load_weights, bytes_of_any_kind(path.read_bytes(), 60))
    assert errors > 9


@pytest.mark.slow
def test_checkpoints(tmp_path):
    path = folder_of(tmp_path) / "checkpoint.npz"
    distiller = compiled()
    checkpoint.save(path, distiller, {"epoch": 1})
    expected = [variable.numpy() for variable in checkpoint.variables_of(distiller)]

    def restored(path):
        assert checkpoint.restore(path, distiller).state == {"epoch": 1}
        return [variable.numpy() for variable in checkpoint.variables_of(distiller)]

    content = path.read_bytes()
    with np.load(path) as archive:
        stored = dict(archive)

    def headers():
        """Headers of other types, in archives that are whole."""
        for what, text in documents(stored["header"].tobytes(), 0):
            changed = {**stored, "header": np.frombuffer(text, "uint8")}
            np.savez(tmp_path / "changed.npz", **changed)
            yield f"header: {what}", (tmp_path / "changed.npz").read_bytes()

    changes = [bytes_of_any_kind(content, 60), archives(content, 0)]
    count, errors = tried(path, restored, itertools.chain(*changes), expected)
    assert errors > count / 2

    def opened(path):
        # Of a header that fits, the state is the caller's.
        restored = checkpoint.restore(path, distiller)
        assert isinstance(restored.state, dict)

    tried(path, opened, headers())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outputs.npz", "outputs.npy"])
def test_teacher_outputs_from_elsewhere(tmp_path, name):
    path = folder_of(tmp_path) / name
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    save, of_kind = (np.save, arrays) if name.endswith("npy") else (np.savez, archives)
    save(path, logits) if save is np.save else save(path, logits=logits)

    def load(path):
        return list(teacher_outputs.given(path, examples=6, views=1).arrays.values())

    content = path.read_bytes()
    changes = itertools.chain(bytes_of_any_kind(content, 60), of_kind(content, 0))
    _, errors = tried(path, load, changes)
    assert errors > 15


@pytest.mark.slow
def test_cached_teacher_outputs(tmp_path):
    inputs, labels = tiny.data(4)
    arguments = [tiny.model(seed=1), ["logits"], lambda _: iter([tf.constant(inputs)]), (1, 4)]
    arguments += [folder_of(tmp_path), "float32", 2**20, None, labels]

    def load(_):
        return list(teacher_outputs.compute(*arguments).arrays.values())

    load(None)
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    changes = [change for change in bytes_of_any_kind(content, 8) if "bytes behind" not in change]
    _, errors = tried(path, load, itertools.chain(changes, arrays(content, 0)))
    assert errors > 10


@pytest.mark.slow
def test_kept_predictions(tmp_path):
    path = folder_of(tmp_path) / "predictions-student.npz"
    numbers = np.arange(9, dtype="int32")
    np.savez(path, model="digest", predicted=numbers, labels=numbers)
    content = path.read_bytes()

    def load(path):
        kept = confusion._read(path, "digest")
        return [numbers, numbers] if kept is None else list(kept.values())

    changes = itertools.chain(bytes_of_any_kind(content, 60), archives(content, 0))
    tried(path, load, changes, expected=[numbers, numbers])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_torch_weights(tmp_path, suffix):
    library = pytest.importorskip("safetensors.numpy" if suffix == "safetensors" else "torch")
    model = models.create("resnet8", num_classes=10, input_shape=(8, 8, 3), seed=0)
    state = {
        name: np.zeros(torch_checkpoint._torch_shape(axes, variable.shape), "float32")
        for name, (axes, variable) in torch_checkpoint._wanted(model).items()
    }
    path = folder_of(tmp_path) / f"weights.{suffix}"
    if suffix == "safetensors":
        library.save_file(state, path)
    else:
        library.save({name: library.tensor(array) for name, array in state.items()}, path)
    content = path.read_bytes()
    of_kind = safetensors if suffix == "safetensors" else archives
    changes = itertools.chain(bytes_of_any_kind(content, 30), of_kind(content, 0))
    _, errors = tried(path, lambda path: models.load_torch_weights(model, path), changes)
    assert errors > 12


def study():
    run = {"student": "a", "method": "kd", "seed": 0, "test_accuracy": 0.5, "commit": "abc"}
    return {"name": "s", "title": "S", "baselines": ["kd"], "teachers": [], "runs": [run]}


def run_config():
    return config.default_config("kd+at", "resnet14", "resnet8").to_json_best_effort()


#: `{file: (contents, loader)}`.
DOCUMENTS = {
    "study.json": (study, lambda path: studies.render(studies.read(path))),
    "config.json": (lambda: json.loads(run_config()), config.from_json),
    "summary.json": (
        lambda: {"student": {"test_accuracy": 0.5}, "learners": {}},
        lambda path: work_directory.WorkDirectory(path.parent),
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(tmp_path, name):
    content, load = DOCUMENTS[name]
    path = folder_of(tmp_path) / name
    if name == "summary.json":
        (path.parent / "config.json").write_text(run_config())
    path.write_text(json.dumps(content()))
    content = path.read_bytes()
    changes = itertools.chain(bytes_of_any_kind(content, 60), documents(content, 0))
    _, errors = tried(path, load, changes)
    assert errors > 15


def test_tables_and_names_of_classes(tmp_path):
    path = folder_of(tmp_path) / "metrics.csv"
    path.write_text("epoch,loss\n1,0.5\n2,0.25\n")
    content = path.read_bytes()
    tried(path, lambda path: report_runs._history(path.parent), bytes_of_any_kind(content, 60))
    path.unlink()

    path = path.with_name("class_names.txt")
    path.write_text("cat\nhorse\n")
    data = type("Data", (), {"name": "animals", "class_names": ("cat", "horse")})
    changes = bytes_of_any_kind(path.read_bytes(), 60)
    _, errors = tried(path, lambda p: work_directory.check_class_names(p.parent, data), changes)
    assert errors > 60


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_images_of_folders(tmp_path, suffix):
    from PIL import Image

    folder = folder_of(tmp_path)
    for split, name, shade in itertools.product(("train", "test"), ("a", "b"), (0, 99)):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((9, 9, 3), shade, "uint8"))
        image.save(folder / split / name / f"{shade}.{suffix}")
    path = folder / "train" / "a" / f"0.{suffix}"

    def load(_):
        data = tfkd.data.load(folder, batch_size=2, image_size=8, validation=0, verbose=False)
        return [images for images, _ in data.pixels("train").as_numpy_iterator()]

    content = path.read_bytes()
    changes = itertools.chain(bytes_of_any_kind(content, 12), images(content, 0))
    _, errors = tried(path, load, changes)
    assert errors > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "*.tfrecord*"])
def test_prepared_data_sets(tmp_path, name):
    (tmp_path / "made").mkdir()
    tfkd.data.load("digits", data_dir=tmp_path / "made", verbose=False)
    prepared = next((tmp_path / "made").rglob("features.json")).parent
    shutil.copytree(prepared, tmp_path / "files" / "digits")
    path = sorted((tmp_path / "files").rglob(name))[0]

    def load(_):
        data = tfkd.data.load(tmp_path / "files" / "digits", batch_size=200, verbose=False)
        return [images for images, _ in data.pixels("test").as_numpy_iterator()]

    content = path.read_bytes()
    changes = [bytes_of_any_kind(content, 3)]
    if name.endswith(".json"):
        changes.append(itertools.islice(documents(content, 0), 0, None, 9))
    tried(path, load, itertools.chain(*changes))
