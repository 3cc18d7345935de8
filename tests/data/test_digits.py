import random

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tfkd.data import load
from tfkd.data.digits import Digits
from tfkd.data.sources import Source


@pytest.fixture(scope="module")
def splits(data_dir):
    source = Source("digits", data_dir)
    return {split: source.into_memory(split, 0, source.size(split)) for split in ("train", "test")}


def rows(images, labels):
    """One sortable row per example: its pixels and its label."""
    table = np.concatenate([images.reshape(len(images), -1), labels[:, np.newaxis]], axis=1)
    return table[np.lexsort(table.T)]


def test_it_holds_scikit_learns_digits_each_once(splits):
    digits = load_digits()
    expected = rows(np.round(digits.images / 16 * 255), digits.target)
    images, labels = (
        np.concatenate([splits[split][part] for split in splits]) for part in range(2)
    )
    assert images.dtype == np.uint8 and (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(rows(images, labels), expected)


def test_the_test_split_is_the_last_fifty_of_every_class(splits):
    digits = load_digits()
    assert len(splits["train"][1]) == 1297
    np.testing.assert_array_equal(np.bincount(splits["test"][1]), [50] * 10)
    last = np.concatenate([np.flatnonzero(digits.target == digit)[-50:] for digit in range(10)])
    expected = rows(np.round(digits.images[last] / 16 * 255), digits.target[last])
    np.testing.assert_array_equal(rows(*splits["test"]), expected)


def test_tfds_knows_it_by_its_name(data_dir):
    load("digits", data_dir=data_dir)
    dataset, info = tfds.load("digits", split="test", data_dir=data_dir, with_info=True)
    assert info.supervised_keys == ("image", "label")
    assert len(list(dataset)) == 500


def test_preparation_is_silent_and_leaves_nothing_else(tmp_path, capfd):
    load("digits", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_processes_with_the_same_seed_may_prepare_at_once(tmp_path, monkeypatch):
    split_generators, directories = Digits._split_generators, []

    def interrupted(self, dl_manager):
        directories.append(self.data_dir)
        if len(directories) == 1:  # The other process overtakes this one in the middle.
            random.seed(0)
            Source("digits", tmp_path)
        return split_generators(self, dl_manager)

    monkeypatch.setattr(Digits, "_split_generators", interrupted)
    random.seed(0)
    expected = random.Random(0).random()
    source = Source("digits", tmp_path)
    assert len(set(directories)) == 2
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
    assert len(source.into_memory("test", 0, 500)[1]) == 500
    assert random.random() == expected
