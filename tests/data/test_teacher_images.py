"""Images for a teacher that sees another size: the same box and flip of the original image."""

import keras
import numpy as np
import pytest

import tfkd
from tfkd.callbacks.diagnostics import draw
from tfkd.errors import UsageError
from tfkd.inspection import diagnostics

SIDE = 100
CROPS = ("resized_crop", "flip")


def positions(count):
    """Images whose pixels say where they are: 2·row, 2·column, and the number of the image."""
    images = np.empty((count, SIDE, SIDE + 20, 3), np.uint8)
    images[..., 0] = 2 * np.arange(SIDE)[:, None]
    images[..., 1] = 2 * np.arange(SIDE + 20)
    images[..., 2] = np.arange(count)[:, None, None]
    return images, np.arange(count) % 3


def load(**settings):
    arrays = tfkd.data.Arrays(positions(24), validation=positions(8), test=positions(4))
    chosen = {"batch_size": 8, "image_size": 16, "augment": CROPS, "normalize": False}
    return tfkd.data.load(arrays, **{**chosen, **settings})


@pytest.fixture(scope="module")
def teacher():
    """A model that sees nothing but the mean of each channel, of images of 32 pixels."""
    kernel = keras.initializers.RandomNormal(stddev=0.02, seed=1)
    layers = [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, kernel_initializer=kernel),
    ]
    return keras.Sequential([keras.Input((32, 32, 3)), *layers])


def distiller(teacher):
    pixels = keras.Input((16, 16, 3))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
    resize = tfkd.layers.TeacherPreprocessing(size=32)
    made = tfkd.KnowledgeDistiller(
        keras.Model(pixels, logits), teacher, teacher_preprocessing=resize
    )
    made.compile(tfkd.optimizers.SGD(0.0), run_eagerly=True)
    return made


def assert_same_place(student, teacher):
    """Asserts that each pixel of the student lies in the middle of four pixels of the teacher."""
    assert student.shape[1:] == (16, 16, 3) and teacher.shape[1:] == (32, 32, 3)
    four = teacher.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
    # At the borders the filter of the one is cut more than that of the other. Pixels are rounded.
    inner = np.abs(four - student)[:, 2:-2, 2:-2]
    assert inner.max() <= 1


@pytest.mark.parametrize(
    "augment",
    [CROPS, *(pytest.param(names, marks=pytest.mark.slow) for names in (("flip",), ()))],
    ids=str,
)
def test_box_and_flip_are_those_of_the_student(augment):
    data = load(teacher_image_size=32, augment=augment)
    boxes, flips = set(), set()
    for _ in range(2):
        for images, labels in data.train.as_numpy_iterator():
            assert_same_place(images, labels["teacher_images"])
            rise = images[:, 8, 8, 1] - images[:, 8, 7, 1]
            flips |= set(np.sign(rise))
            boxes |= {*np.round(np.abs(rise)), *images[:, 0, 8, 0]}
            np.testing.assert_array_equal(labels["label"], images[:, 0, 0, 2] % 3)
    assert flips == ({-1, 1} if "flip" in augment else {1})
    assert (len(boxes) > 9) == ("resized_crop" in augment)


@pytest.mark.slow
def test_they_are_what_would_be_loaded_in_that_size_and_the_students_stay():
    data, large, small = load(teacher_image_size=32), load(image_size=32), load(cache=False)
    for _ in range(2):
        for pair, teacher, student in zip(data.train, large.train, small.train, strict=True):
            np.testing.assert_array_equal(pair[1]["teacher_images"], teacher[0])
            np.testing.assert_array_equal(pair[0], student[0])
    for split in ("validation", "test"):
        pairs = data.with_teacher_images(split).as_numpy_iterator()
        for pair, teacher in zip(pairs, getattr(large, split), strict=True):
            assert_same_place(pair[0], pair[1]["teacher_images"])
            np.testing.assert_array_equal(pair[1]["teacher_images"], teacher[0])
            np.testing.assert_array_equal(pair[1]["label"], teacher[1])
    assert data.of_teacher.input_shape == (32, 32, 3) and data.of_teacher is data.of_teacher
    # Normalised alike, by the statistics of the student's images.
    normalized = load(teacher_image_size=32, normalize=True)
    assert normalized.of_teacher.mean == normalized.mean == load(normalize=True).mean


def test_nothing_changes_where_the_teacher_sees_the_same_size():
    data = load(teacher_image_size=16)
    assert data.of_teacher is data and data.with_teacher_images("test") is data.test
    assert not isinstance(data.train.element_spec[1], dict)


@pytest.mark.slow
def test_mixup_mixes_them_as_the_students():
    data = load(teacher_image_size=32, augment=(), mixup=1.0)
    mixed = 0
    for images, labels in data.train.as_numpy_iterator():
        assert_same_place(images, labels["teacher_images"])
        own = images[:, 0, 0, 2]
        np.testing.assert_allclose(labels["teacher_images"][..., 2].mean((1, 2)), own, rtol=1e-4)
        mixed += np.sum(np.abs(own - np.round(own)) > 1e-2)
    assert mixed > 5


def test_the_distiller_shows_them_to_its_teacher(teacher):
    made = distiller(teacher)
    data = load(teacher_image_size=32)
    for images, labels in data.train:
        # Images that no resizing makes of the student's.
        labels["teacher_images"] = 255 - labels["teacher_images"]
        seen = made.observe_teacher(made.unpack((images, labels)))["logits"]
        np.testing.assert_allclose(seen, teacher(labels["teacher_images"]), rtol=1e-5, atol=1e-5)
        resized = made.observe_teacher(made.unpack((images, labels["label"])))["logits"]
        expected = teacher(made.teacher_preprocessing(images))
        np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-5)
    logs = made.fit(data.train, validation_data=data.validation, verbose=0).history
    assert np.isfinite(logs["kd_loss"][0])


@pytest.mark.slow
def test_cached_outputs_are_theirs(teacher, tmp_path):
    data = load(teacher_image_size=32, views=2)
    cached = data.cache_teacher(teacher, path=tmp_path)
    passes = [list(cached.train.as_numpy_iterator()) for _ in range(3)]
    for batches in passes:
        for _, labels in batches:
            expected = teacher(labels["teacher_images"])
            np.testing.assert_allclose(labels["teacher"]["logits"], expected, rtol=1e-4, atol=1e-4)
    by_number = [
        {
            labels["teacher_images"][i, 0, 0, 2]: image
            for one, labels in batches
            for i, image in enumerate(one)
        }
        for batches in passes
    ]
    assert all(np.array_equal(image, by_number[2][n]) for n, image in by_number[0].items())
    assert not all(np.array_equal(image, by_number[1][n]) for n, image in by_number[0].items())


@pytest.mark.slow
def test_check_and_diagnostics_look_at_them_and_check_tells_so(teacher):
    made, data = distiller(teacher), load(teacher_image_size=32)
    images = data.with_teacher_images("validation")
    report = made.check(images)
    assert "16x16x3\n" in str(report) and "32x32x3, its own" in str(report)
    assert report.teacher["own_images"] and report.teacher["images"] == (32, 32, 3)
    assert "32x32x3, made of the student's" in str(made.check(data.validation))
    (_, labels), (teachers, _) = draw(images, 6), draw(data.of_teacher.validation, 6)
    np.testing.assert_array_equal(labels["teacher_images"], teachers)
    look = tfkd.callbacks.Diagnostics(images, examples=6)
    made.fit(data.train, epochs=1, verbose=0, callbacks=[look])
    expected = diagnostics.entropy(np.array(teacher(teachers)))
    logs = look._history[-1]
    assert logs["teacher_entropy"] == pytest.approx(expected, rel=1e-4)
    assert logs["gradient_norm"] > 0


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"augment": ("crop",)}, "teacher_image_size: 'crop' moves whole pixels"),
        ({"augment": (), "cutmix": 1.0}, "teacher_image_size: 'cutmix' moves whole pixels"),
        ({"augment": (), "cache": True}, "teacher_image_size reads the original images in every"),
        ({"teacher_image_size": 0}, "teacher_image_size must be an integer of at least 1"),
    ],
)
def test_what_does_not_go_with_them(settings, line):
    with pytest.raises(UsageError, match=line) as raised:
        load(**{"teacher_image_size": 32, **settings})
    assert "\n" not in str(raised.value)
