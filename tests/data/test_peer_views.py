"""Augmentations of their own for several students."""

import itertools

import numpy as np
import pytest

from tfkd.data import load
from tfkd.errors import UsageError

SETTINGS = {"batch_size": 32, "train_examples": 64, "normalize": False}


def first(data_dir, **settings):
    return next(load(data_dir=data_dir, **SETTINGS, **settings).train.as_numpy_iterator())


@pytest.mark.parametrize("settings", [{}, {"cache": False}, {"views": 2}])
def test_every_student_sees_shifts_of_its_own(data_dir, settings):
    images, labels = first(data_dir, peer_views=3, **settings)
    alone, numbers = first(data_dir, **settings)
    np.testing.assert_array_equal(images, alone)
    np.testing.assert_array_equal(labels["label"], numbers)
    seen = [images, *labels["peer_images"]]
    assert len(seen) == 3
    assert all(np.any(a != b) for a, b in itertools.combinations(seen, 2))
    # Whatever else, every student sees the same images.
    originals, _ = first(data_dir, augment=(), **settings)
    for own in seen:
        for image, original in zip(own, np.pad(originals, [(0, 0), (1, 1), (1, 1), (0, 0)])):
            shifts = [original[row : row + 8, column : column + 8] for row, column in PLACES]
            assert any(np.array_equal(image, shift) for shift in shifts)
    again = first(data_dir, peer_views=3, **settings)[1]["peer_images"]
    np.testing.assert_array_equal(again, labels["peer_images"])


PLACES = list(itertools.product(range(3), repeat=2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"peer_views": 0}, "peer_views must be .* at least 1"),
        ({"peer_views": 2, "augment": ()}, "augment must have one of them"),
        ({"peer_views": 2, "augment": ("resized_crop",)}, "no 'resized_crop'"),
        ({"peer_views": 2, "mixup": 0.2}, "mix the labels of each differently"),
    ],
)
def test_views_that_cannot_be(data_dir, settings, message):
    with pytest.raises(UsageError, match=message):
        load(data_dir=data_dir, **settings)
