"""Teacher outputs that travel with the data: computed once, kept in files, or given."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.errors import UsageError

SETTINGS = {"batch_size": 64, "train_examples": 200, "augment": ("crop",), "views": 2}


@pytest.fixture
def load(data_dir):
    def load(**settings):
        return tfkd.data.load("digits", data_dir=data_dir, **SETTINGS | settings)

    return load


@pytest.fixture(scope="module")
def data(data_dir):
    """Data for tests that go no further than a mistake."""
    return tfkd.data.load("digits", data_dir=data_dir, **SETTINGS)


@pytest.fixture(scope="module")
def teacher():
    return tfkd.models.create("resnet8", 10, (8, 8, 1), seed=1)


def a_pass(data):
    return list(data.train.as_numpy_iterator())


def distiller(teacher, losses=("kd",), **compile_arguments):
    keras.utils.set_random_seed(0)
    student = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=2)
    made = tfkd.KnowledgeDistiller(student, teacher, losses)
    made.compile(tfkd.optimizers.SGD(0.05), **compile_arguments)
    return made


def by_example(data):
    """A pass as `{position of the example: image}`, in the order of the pass."""
    images, labels = zip(*a_pass(data))
    index = np.concatenate([label["index"] for label in labels])
    return dict(zip(index.tolist(), np.concatenate(images)))


def same(one, other):
    """Whether the examples that two passes share look the same in both."""
    return all(np.array_equal(one[i], other[i]) for i in one.keys() & other.keys())


@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_views_take_turns_and_are_those_of_every_seed(load, cache):
    data, other = (load(seed=seed, indices=True, cache=cache) for seed in (0, 1))
    first, second, third = (by_example(data) for _ in range(3))
    assert same(first, third) and not same(first, second)
    assert same(first, by_example(other))
    # The order is another one in each epoch, and that of the seed.
    orders = [list(one) for one in (first, third, by_example(other))]
    assert orders[0] != orders[1] and orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize(
    "dtype, tolerance, cache",
    [
        ("float32", 1e-5, False),
        pytest.param("float32", 1e-5, True, marks=pytest.mark.slow),
        pytest.param("float16", 2e-3, True, marks=pytest.mark.slow),
    ],
)
def test_they_are_those_of_the_images_beside_them(load, teacher, cache, dtype, tolerance):
    data = load(cache=cache).cache_teacher(teacher, ("logits", "pooled"), dtype=dtype)
    observe = tfkd.taps.extractor(teacher, ["pooled"])
    for _ in range(2):
        for images, labels in a_pass(data):
            for tap, expected in observe(images, training=False).items():
                found = labels["teacher"][tap]
                assert found.dtype == "float32"
                scale = np.abs(expected).max()
                np.testing.assert_allclose(found, expected, atol=tolerance * scale)


@pytest.mark.parametrize(
    "losses",
    [
        ["kd", "rkd"],
        *(pytest.param(losses, marks=pytest.mark.slow) for losses in (["kd"], ["at"], ["cat_kd"])),
    ],
    ids=str,
)
def test_training_is_that_with_the_teacher(load, teacher, losses, monkeypatch):
    """The teacher runs only for what is not there, maps; its classifier is read without."""
    runs, weights, cached = [], [], load().cache_teacher(teacher, ("logits", "pooled"))
    for data in (load(), cached):
        made = distiller(teacher, losses, run_eagerly=True)
        run = made._observers.teacher
        made._observers.teacher = lambda x, run=run, **kwargs: runs.append(1) or run(x, **kwargs)
        made.fit(data.train, epochs=2, verbose=0)
        weights.append(made.student.get_weights())
        runs.append(0)
    again = runs[runs.index(0) + 1 : -1]
    assert len(again) == (6 if losses[-1] in ("at", "cat_kd") else 0)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda *models: tfkd.ACKD(*models, auxiliary_learners=1), marks=pytest.mark.slow
        ),
        pytest.param(lambda *models: tfkd.SAKD(*models, ["rkd"]), marks=pytest.mark.slow),
        pytest.param(lambda *models: tfkd.IAKD(*models, kd_weight=1.0), marks=pytest.mark.slow),
    ],
    ids=["ackd", "sakd", "iakd"],
)
def test_every_method_with_a_teacher_takes_them(load, teacher, make):
    weights = []
    for data in (load(), load().cache_teacher(teacher, ("logits", "pooled"))):
        keras.utils.set_random_seed(0)
        student = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=2)
        made = make(student, teacher)
        made.compile(tfkd.optimizers.SGD(0.01), run_eagerly=True)
        made.fit(data.train, epochs=1, verbose=0)
        weights.append(student.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_replicas_share_them(load, teacher):
    weights = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
            own = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=1)
            made = distiller(own)
            data = load().cache_teacher(teacher)
            # TensorFlow reads ahead of replicas, here the whole of a first pass.
            start = keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs, data=data: data.start_epoch(epoch)
            )
            made.fit(data.train, epochs=1, verbose=0, callbacks=[start])
            weights.append(made.student.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def files(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*.npy")}


@pytest.mark.slow
def test_files_are_written_once_for_one_teacher_and_data(load, teacher, tmp_path, capsys):
    passes = [a_pass(load(seed=seed).cache_teacher(teacher, path=tmp_path)) for seed in (0, 0, 1)]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1
    assert told[0].startswith("teacher outputs: logits of 2 views of 200 images, 0.0 MiB, in ")
    for (_, one), (_, other) in zip(*passes[:2]):
        np.testing.assert_array_equal(one["teacher"]["logits"], other["teacher"]["logits"])
    before = files(tmp_path)
    assert len(before) == 1
    # Whatever changes what the teacher says has files of its own.
    other = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=3)
    load().cache_teacher(other, path=tmp_path)
    load().cache_teacher(teacher, path=tmp_path, preprocessing=lambda x: 2 * x)
    load().cache_teacher(teacher, path=tmp_path, dtype="float16")
    load(views=3).cache_teacher(teacher, path=tmp_path)
    load(train_examples=199).cache_teacher(teacher, path=tmp_path)
    load(normalize=False).cache_teacher(teacher, path=tmp_path)
    load(augment=("flip",)).cache_teacher(teacher, path=tmp_path)
    after = files(tmp_path)
    assert len(after) == 8 and before.items() <= after.items()


def test_a_damaged_file_is_named_and_a_partial_one_is_none(data, teacher, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(np.lib.format, "open_memmap", killed)
        data.cache_teacher(teacher, path=tmp_path)
    assert not files(tmp_path)
    data.cache_teacher(teacher, path=tmp_path)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{path.parent} is damaged: remove it"):
        data.cache_teacher(teacher, path=tmp_path)


@pytest.mark.parametrize(
    "settings, arguments, message",
    [
        ({"views": None}, {}, r"Augmentation \(crop\) makes another image in every epoch.*views=8"),
        ({"mixup": 0.2}, {}, "mixup and cutmix make new images"),
        ({}, {"limit": 1000}, "would take more than limit=0 MiB .*logits of 2 views of 200 images"),
        ({}, {"dtype": "int8"}, "dtype 'int8'.*float32, float16"),
        ({}, {"taps": ["nowhere"]}, "no tap 'nowhere'"),
    ],
)
def test_wrong_use_of_the_cache(load, teacher, settings, arguments, message):
    with pytest.raises(UsageError, match=message):
        load(**settings).cache_teacher(teacher, **arguments)


def test_without_augmentation_one_view_is_enough(load, teacher):
    data = load(views=None, augment=()).cache_teacher(teacher)
    assert all(labels["teacher"]["logits"].shape == (64, 10) for _, labels in a_pass(data))


# Outputs from elsewhere.


def test_outputs_from_elsewhere_teach(load, teacher, tmp_path):
    data = load(indices=True)
    random = np.random.default_rng(0)
    logits, pooled = random.normal(size=(200, 10)), random.normal(size=(200, 7))
    np.savez(tmp_path / "outputs.npz", logits=logits, pooled=pooled)
    taught = data.with_teacher_outputs(tmp_path / "outputs.npz")
    for _, labels in a_pass(taught):
        np.testing.assert_allclose(labels["teacher"]["logits"], logits[labels["index"]], rtol=1e-6)
    student = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=2)
    recorded = tfkd.models.recorded(student, pooled=(7,))
    rkd = tfkd.losses.get("rkd", spots=[("pooled", "pooled")])
    made = tfkd.KnowledgeDistiller(student, recorded, ["kd", rkd])
    made.compile(tfkd.optimizers.SGD(0.01), run_eagerly=True)
    logs = made.fit(taught.train, validation_data=taught.validation, verbose=0).history
    assert logs["kd_loss"][0] > 0 and logs["rkd_loss"][0] > 0 and logs["val_loss"][0] > 0
    report = made.check(taught.train)
    examples = [labels for _, labels in a_pass(taught)]
    right = [x["teacher"]["logits"].argmax(-1) == x["label"] for x in examples]
    assert report.teacher["accuracy"] == pytest.approx(np.mean(right), abs=0.05)
    assert not any("exchanged" in warning for warning in report.warnings)
    # Saved, it can be loaded again: a run keeps its teacher.
    recorded.save(tmp_path / "teacher.keras")
    again = keras.models.load_model(tmp_path / "teacher.keras")
    assert again.output_shape == (None, 10)


def test_arrays_of_fit_may_carry_them():
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 8, 8, 1)).astype("float32")
    y, logits = random.integers(0, 10, 32), random.normal(size=(32, 10)).astype("float32")
    student = tfkd.models.create("resnet8", 10, (8, 8, 1), seed=2)
    made = tfkd.KnowledgeDistiller(student, tfkd.models.recorded(student), ["kd"])
    made.compile(tfkd.optimizers.SGD(0.0), run_eagerly=True)
    labels = {"label": y, "teacher": {"logits": logits}}
    logs = made.fit(x, labels, batch_size=32, shuffle=False, verbose=0).history
    expected = tfkd.losses.get("kd")([student(x, training=True)], [logits])
    assert logs["kd_loss"][0] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(UsageError, match="'logits' are recorded, and a batch came without them"):
        made.fit(x, y, verbose=0)


def test_several_teachers_make_the_mean_of_their_predictions(load):
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(200, 10)) for _ in range(3)]
    data = load(indices=True).with_teacher_outputs(arrays)
    mean = np.mean([tf.nn.softmax(array) for array in arrays], axis=0)
    for _, labels in a_pass(data):
        found = tf.nn.softmax(labels["teacher"]["logits"])
        np.testing.assert_allclose(found, mean[labels["index"]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "outputs, message",
    [
        (np.zeros((199, 10)), r"'logits' have shape \(199, 10\): .* each of the 200 training"),
        (np.zeros(200), r"'logits' have shape \(200,\)"),
        (np.full((200, 10), np.nan), "must be floats, all of them finite"),
        (np.zeros((200, 10), int), "must be floats"),
        ([], "of no teacher"),
        ([np.zeros((200, 10)), np.zeros((200, 9))], "of several teachers must be alike"),
        ([np.zeros((200, 10)), {"pooled": np.zeros((200, 9))}], "other taps: logits and pooled"),
        ("nowhere.npz", "nowhere.npz cannot be read as an .npz file"),
    ],
)
def test_outputs_that_do_not_fit(data, outputs, message):
    with pytest.raises(UsageError, match=message):
        data.with_teacher_outputs(outputs)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "pickled"])
def test_damaged_files_of_outputs_are_told_in_a_line(data, tmp_path, damage):
    path = tmp_path / "outputs.npz"
    np.savez_compressed(path, logits=np.random.default_rng(0).normal(size=(200, 10)))
    content = path.read_bytes()
    if damage == "pickled":
        np.savez(path, logits=np.array([{}], object))
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:middle], "changed": changed}[damage])
    with pytest.raises(UsageError, match="cannot be read as an .npz file"):
        data.with_teacher_outputs(path)


def test_logits_may_be_a_single_array_in_a_file(load, tmp_path):
    logits = np.random.default_rng(0).normal(size=(200, 10))
    np.save(tmp_path / "logits.npy", logits)
    data = load(indices=True).with_teacher_outputs(tmp_path / "logits.npy")
    labels = a_pass(data)[0][1]
    np.testing.assert_allclose(labels["teacher"]["logits"], logits[labels["index"]], rtol=1e-6)


def test_a_recorded_teacher_needs_a_student_of_known_shapes():
    class Model(keras.Model):
        pass

    with pytest.raises(UsageError, match="recorded needs a student whose shapes are known"):
        tfkd.models.recorded(Model())
