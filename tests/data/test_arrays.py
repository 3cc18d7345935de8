"""Images and labels in memory as a data set."""

import numpy as np
import pytest

from tfkd.data import Arrays, load, register, sources
from tfkd.errors import UsageError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (60, 6, 5, 3), np.uint8)
LABELS = RANDOM.integers(0, 4, 60)


def raw(dataset):
    """Returns the images and labels of a pipeline that does not normalise."""
    images, labels = zip(*dataset.as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("cache", [True, False])
def test_splits_are_the_arrays(cache):
    arrays = Arrays((IMAGES[:40], LABELS[:40]), (IMAGES[40:45], LABELS[40:45]), test=None)
    data = load(arrays, batch_size=5, normalize=False, cache=cache, test=10)
    assert data.sizes == {"train": 30, "validation": 5, "test": 10}
    assert data.class_names == ("0", "1", "2", "3") and data.input_shape == (6, 5, 3)
    for split, rows in (("validation", slice(40, 45)), ("test", slice(30, 40))):
        images, labels = raw(getattr(data, split))
        np.testing.assert_array_equal(images, IMAGES[rows])
        np.testing.assert_array_equal(labels, LABELS[rows])
    images, labels = raw(data.train)
    order = [np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0] for image in images]
    assert sorted(order) == list(range(30)) and order != list(range(30))
    np.testing.assert_array_equal(labels, LABELS[order])


def test_statistics_and_augmentation_are_those_of_other_data_sets():
    data = load(Arrays((IMAGES, LABELS)), batch_size=5, augment=("flip",), validation=0, test=10)
    pixels = IMAGES[:50].reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(0), rtol=1e-6)
    cropped = load(Arrays((IMAGES, LABELS)), batch_size=5, augment=("resized_crop",))
    assert raw(cropped.train)[0].shape[1:] == (6, 5, 3)


def test_grey_images_and_columns_of_labels():
    data = load(Arrays((IMAGES[..., 0], LABELS[:, None])), batch_size=5)
    assert data.input_shape == (6, 5, 1)


def test_a_name_stands_for_arrays(monkeypatch):
    monkeypatch.setattr(sources, "_REGISTERED", {})
    register("marks", lambda: Arrays((IMAGES, LABELS), class_names="abcd"))
    data = load("marks", batch_size=5)
    assert (data.name, data.class_names) == ("marks", ("a", "b", "c", "d"))
    register("wrong", lambda: IMAGES)
    with pytest.raises(UsageError, match="'wrong': what was registered must return .*ndarray"):
        load("wrong")
    with pytest.raises(UsageError, match="'wrong': give the function .*received ndarray"):
        register("wrong", IMAGES)
    with pytest.raises(UsageError, match="Unknown data set 'mark': .*'marks'"):
        load("mark")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": IMAGES}, r"train must be a pair \(images, labels\)"),
        ({"train": (IMAGES / 255, LABELS)}, "must be uint8 .*; received float64 of shape"),
        ({"train": (IMAGES[:0], LABELS[:0])}, "must be uint8"),
        ({"train": (IMAGES, LABELS[:-1])}, r"one for each of the 60 images; .* shape \(59,\)"),
        ({"train": (IMAGES, np.eye(4)[LABELS])}, r"must be integers.*float64 of shape \(60, 4\)"),
        ({"train": (IMAGES, LABELS - 1)}, "Labels of train must be 0 or greater; received -1"),
        ({"test": (IMAGES[:, :3], LABELS)}, "Images of all splits must have one shape"),
        ({"class_names": ["a", "b"]}, "Labels go up to 3, and there are 2 class_names"),
    ],
)
def test_arrays_that_are_no_data_set(arguments, message):
    with pytest.raises(UsageError, match=message):
        Arrays(**{"train": (IMAGES, LABELS), **arguments})


def test_balanced_classes_have_the_same_weight_in_all():
    labels = np.array([0] * 12 + [2] * 3 + [1])
    images = np.zeros((16, 4, 4, 1), "uint8")
    arrays = Arrays((images, labels), test=(images, labels), class_names="abcd")
    settings = {"batch_size": 16, "validation": 0, "balanced": True}
    expected = np.array([16 / 36, 16 / 3, 16 / 9, 0])

    def batch(**more):
        return next(load(arrays, **settings, **more).train.as_numpy_iterator())

    _, found, weights = batch(indices=True)
    np.testing.assert_allclose(weights, expected[found["label"]], rtol=1e-6)
    sums = np.bincount(found["label"], weights, minlength=4)
    np.testing.assert_allclose(sums, [16 / 3, 16 / 3, 16 / 3, 0], rtol=1e-6)
    _, found, weights = batch(mixup=1.0)
    assert np.any((found > 0) & (found < 1))
    np.testing.assert_allclose(weights, found @ expected, rtol=1e-5)
    assert len(next(iter(load(arrays, batch_size=16, validation=0, balanced=True).test))) == 2
