import numpy as np
import pytest

from tfkd.data import Data, load
from tfkd.data.loading import balanced_subset
from tfkd.errors import UsageError


def examples(dataset):
    """The set of a dataset's examples, without its order."""
    return {
        (image.tobytes(), int(label))
        for images, labels in dataset.as_numpy_iterator()
        for image, label in zip(images, labels)
    }


def test_what_it_says_about_the_data(data_dir):
    data = load(data_dir=data_dir)
    assert isinstance(data, Data)
    assert data.name == "digits" and data.input_shape == (8, 8, 1)
    assert data.num_classes == 10 and data.class_names == tuple("0123456789")
    assert data.sizes == {"train": 1167, "validation": 130, "test": 500}
    assert data.steps_per_epoch == 18 == data.train.cardinality() and data.batch_size == 64
    assert data.augment == ("crop",) and data.one_hot is False and data.seed == 0
    assert data.train.element_spec[0].shape == (64, 8, 8, 1)
    assert "Data('digits', train=1167, validation=130, test=500" in repr(data)


def test_validation_and_subsets_ignore_the_seed_and_stay_apart(data_dir):
    settings = {"validation": 97, "augment": (), "data_dir": data_dir}
    whole = load(batch_size=1200, **settings)
    subset = load(seed=1, batch_size=100, train_examples=100, **settings)
    again = load(seed=2, batch_size=50, train_examples=100, **settings)
    larger = load(seed=3, batch_size=155, train_examples=155, **settings)
    assert examples(whole.validation) == examples(subset.validation)
    train, validation, test = (
        examples(getattr(whole, split)) for split in ("train", "validation", "test")
    )
    assert [len(part) for part in (train, validation, test)] == [1200, 97, 500]
    assert not train & validation and not (train | validation) & test
    assert examples(subset.train) == examples(again.train) < examples(larger.train) < train
    for data, fewest in ((subset, 10), (larger, 15)):
        counts = np.bincount([label for _, label in examples(data.train)])
        assert counts.min() == fewest and counts.max() - counts.min() <= 1


def test_balanced_subset_takes_more_of_others_where_a_class_is_exhausted():
    labels = [0, 0, 0, 0, 0, 1, 2, 2, 2]
    np.testing.assert_array_equal(balanced_subset(labels, 3), [0, 5, 6])
    np.testing.assert_array_equal(balanced_subset(labels, 6), [0, 1, 2, 5, 6, 7])
    np.testing.assert_array_equal(balanced_subset(labels, 9), np.arange(9))


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1}, {"one_hot": True}]
)
def test_labels_of_all_splits_have_one_form(data_dir, settings):
    data = load(data_dir=data_dir, **settings)
    assert data.one_hot is True
    for dataset in (data.train, data.validation, data.test):
        assert dataset.element_spec[1].shape[1:] == (10,)
        assert dataset.element_spec[1].dtype == "float32"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; received 0"),
        ({"batch_size": 6.4}, "batch_size must be an integer of at least 1; received 6.4"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"batch_size": 1200}, "more than the 1167 training examples: it must be at most 1167"),
        ({"batch_size": 64, "train_examples": 50}, "it must be at most 50"),
        ({"train_examples": 1168}, "train_examples=1168 is more than the 1167"),
        ({"train_examples": 0}, "train_examples must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0; received -1"),
        ({"validation": 1.5}, r"validation must be a fraction in \[0, 1\) or an integer"),
        ({"validation": -1}, "validation must be a fraction"),
        ({"validation": "0.1"}, "validation must be a fraction"),
        ({"validation": 1297}, "sets aside 1297 of the 1297 examples"),
        ({"validation": 1e-6}, "sets aside 0 of the 1297 examples"),
        ({"augment": "crop"}, "augment must be a tuple of names, or None; received 'crop'"),
        ({"augment": ("rotate",)}, "Unknown augmentation 'rotate': it must be one of crop, flip"),
        ({"mixup": -0.1}, "mixup must be a number of at least 0; received -0.1"),
        ({"mixup": float("nan")}, "mixup must be a number"),
        ({"cutmix": "1"}, "cutmix must be a number"),
        ({"cutmix": 1.0, "one_hot": False}, "which one_hot=False does not allow"),
        ({"one_hot": "yes"}, "one_hot must be True, False or None"),
        ({"cache": "never"}, "cache must be 'auto', True or False; received 'never'"),
        ({"image_size": (8, 8, 1)}, r"image_size must be a pair \(height, width\)"),
        ({"image_size": 0}, "image_size must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(data_dir, settings, message):
    with pytest.raises(UsageError, match=message) as raised:
        load(data_dir=data_dir, **settings)
    assert "\n" not in str(raised.value)


def test_wrong_epochs(data_dir):
    data = load(data_dir=data_dir)
    for epoch in (-1, 1.0, None):
        with pytest.raises(UsageError, match="epoch must be an integer of at least 0"):
            data.start_epoch(epoch)


def test_pixels_are_what_is_normalised(data_dir):
    data = load(batch_size=50, train_examples=100, validation=97.0, data_dir=data_dir)
    for split, size in (("test", 500), ("validation", 97), ("train", 100)):
        pairs = list(data.pixels(split).as_numpy_iterator())
        assert sum(len(images) for images, _ in pairs) == size
        assert all(images.dtype == np.uint8 for images, _ in pairs)
        if split != "train":
            for (raw, labels), (images, same) in zip(pairs, getattr(data, split), strict=True):
                np.testing.assert_array_equal(labels, same)
                np.testing.assert_allclose((raw / 255 - data.mean) / data.std, images, atol=1e-5)
    # In order, which training is not; and not moved.
    labels = np.concatenate([labels for _, labels in data.pixels("train").as_numpy_iterator()])
    np.testing.assert_array_equal(labels, data.train_labels())
    assert load(batch_size=50, validation=0, data_dir=data_dir).pixels("validation") is None
    with pytest.raises(UsageError, match="Unknown split 'dev': it must be one of train, "):
        data.pixels("dev")
