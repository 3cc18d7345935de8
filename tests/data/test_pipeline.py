import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.data import load
from tfkd.data.sources import Source

BOTH_CACHES = pytest.mark.parametrize("cache", [True, False], ids=["memory", "streamed"])


def one_pass(data):
    """Returns the images and labels of one pass over the training data."""
    return tuple(np.concatenate(part) for part in zip(*data.train.as_numpy_iterator()))


def assert_same(first, second):
    for left, right in zip(first, second):
        np.testing.assert_array_equal(left, right)


def differ(first, second):
    """Whether two passes differ both in order and in images."""
    ordered = [np.sort(images.reshape(len(images), -1), axis=0) for images, _ in (first, second)]
    return np.any(first[1] != second[1]) and np.any(ordered[0] != ordered[1])


def rows(images, labels):
    """One sortable row per example: its pixels and its label."""
    table = np.concatenate([images.reshape(len(images), -1), labels.reshape(len(images), -1)], 1)
    return table[np.lexsort(table.T)]


def pixels(data, images):
    """Undoes the normalisation."""
    return np.round((images * np.array(data.std) + np.array(data.mean)) * 255).astype("uint8")


@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_pass_is_a_function_of_seed_and_epoch(data_dir, cache):
    def make(seed):
        return load(seed=seed, augment=("crop", "flip"), data_dir=data_dir, cache=cache)

    data = make(3)
    epochs = [one_pass(data) for _ in range(3)]
    assert differ(epochs[0], epochs[1]) and differ(epochs[1], epochs[2])
    assert differ(epochs[0], one_pass(make(4)))

    tf.random.set_seed(123)  # The global seed has no say in it.
    resumed = make(3)
    resumed.start_epoch(2)
    assert_same(one_pass(resumed), epochs[2])
    resumed.start_epoch(0)
    assert_same(one_pass(resumed), epochs[0])
    assert_same(one_pass(resumed), epochs[1])


@pytest.mark.slow
def test_neither_batch_size_nor_cache_changes_what_is_done_to_an_example(data_dir):
    settings = {"train_examples": 320, "augment": ("crop", "flip"), "data_dir": data_dir}
    small, large = (one_pass(load(batch_size=size, **settings)) for size in (10, 160))
    assert_same(small, large)
    streamed = one_pass(load(batch_size=64, cache=False, **settings))
    np.testing.assert_array_equal(rows(*streamed), rows(*small))


@BOTH_CACHES
def test_a_pass_holds_every_example_once_with_its_label(data_dir, cache):
    data = load(
        batch_size=60, train_examples=600, augment=(), data_dir=data_dir, cache=cache, validation=0
    )
    images, labels = one_pass(data)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    raw_images, raw_labels = Source("digits", data_dir).into_memory("train", 0, 1297)
    every = {row.tobytes() for row in rows(raw_images, raw_labels)}
    found = {row.tobytes() for row in rows(pixels(data, images), labels)}
    assert len(found) == 600 and found < every
    assert np.any(labels[:-1] > labels[1:]) and data.validation is None


def test_images_are_normalised_channel_by_channel(data_dir):
    data = load(augment=(), validation=0, batch_size=1297, data_dir=data_dir)
    images, _ = one_pass(data)
    raw, _ = Source("digits", data_dir).into_memory("train", 0, 1297)
    expected = (raw / 255 - data.mean[0]) / data.std[0]
    np.testing.assert_allclose(
        np.sort(images.ravel()), np.sort(expected.ravel()), rtol=1e-5, atol=1e-6
    )
    # The known statistics are those of the training split.
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3


@BOTH_CACHES
def test_evaluation_is_in_order_complete_and_never_augmented(data_dir, cache):
    data = load(augment=("crop", "flip"), mixup=0.4, data_dir=data_dir, cache=cache, batch_size=64)
    source = Source("digits", data_dir)
    for dataset, part in ((data.test, ("test", 0, 500)), (data.validation, ("train", 1167, 1297))):
        images, labels = source.into_memory(*part)
        for _ in range(2):
            batches = list(dataset.as_numpy_iterator())
            assert len(batches) == dataset.cardinality() == -(-len(labels) // 64)
            seen = np.concatenate([batch[0] for batch in batches])
            np.testing.assert_array_equal(pixels(data, seen), images)
            one_hot = np.concatenate([batch[1] for batch in batches])
            np.testing.assert_array_equal(one_hot, np.eye(10)[labels])


def test_mixed_labels_follow_the_mixed_images(data_dir):
    settings = {"augment": (), "data_dir": data_dir, "batch_size": 50}
    plain_images, plain_labels = next(iter(load(one_hot=True, **settings).train))
    images, labels = next(iter(load(mixup=1.0, **settings).train))
    # The share of each image follows from its label, save where both labels are the same.
    partners = tf.roll(plain_labels, -1, 0)
    different = np.flatnonzero(np.argmax(plain_labels, -1) != np.argmax(partners, -1))
    share = tf.reduce_sum(labels * plain_labels, -1)[:, None, None, None]
    expected = share * plain_images + (1 - share) * tf.roll(plain_images, -1, 0)
    np.testing.assert_allclose(images.numpy()[different], expected.numpy()[different], atol=1e-5)
    assert len(different) > 30 and np.std(share.numpy()[different]) > 0.1


def test_only_a_pass_to_its_end_counts(data_dir):
    data = load(data_dir=data_dir)
    first = one_pass(load(data_dir=data_dir))
    iterator = iter(data.train)
    for _ in range(data.steps_per_epoch - 1):
        next(iterator)
    assert_same(one_pass(data), first)
    iter(data.train)
    assert differ(one_pass(data), first)


def test_fit_sees_one_epoch_after_another(data_dir):
    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.seen = []
            self.dense = keras.layers.Dense(10)

        def call(self, images):
            return self.dense(keras.ops.reshape(images, (-1, 64)))

        def train_step(self, batch):
            self.seen.append([part.numpy() for part in batch])
            return super().train_step(batch)

    settings = {"train_examples": 200, "batch_size": 50, "data_dir": data_dir}
    data = load(**settings)
    expected = [one_pass(data) for _ in range(5)]
    data.start_epoch(0)
    model = Recorder()
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True
    )
    model.fit(data.train, validation_data=data.validation, epochs=3, verbose=0)
    model.fit(data.train, initial_epoch=3, epochs=5, verbose=0)
    seen = tuple(np.concatenate(part) for part in zip(*model.seen))
    assert_same(seen, tuple(np.concatenate(part) for part in zip(*expected)))


@pytest.mark.slow
def test_fit_under_a_strategy_sees_the_same_epochs(data_dir):
    """Two replicas and deterministic ops, which only a process of its own can set up."""
    load(data_dir=data_dir)
    process = start("fit_on_two_replicas.py", {"TFDS_DATA_DIR": str(data_dir)})
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.split() == ["memory", "ok", "streamed", "ok"]


@pytest.mark.slow
def test_workers_share_out_each_batch(data_dir):
    data = load(data_dir=data_dir)
    expected = [labels for _, labels in data.train.as_numpy_iterator()]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("localhost", 0))
        workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    processes = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": workers}, "task": task})
        environment = {"TFDS_DATA_DIR": str(data_dir), "TF_CONFIG": cluster}
        processes.append(start("batches_of_a_worker.py", environment))
    shares = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        shares.append(json.loads(output))
    for step, labels in enumerate(expected):
        np.testing.assert_array_equal(shares[0][step] + shares[1][step], labels)
    assert [len(share) for share in shares] == [len(expected)] * 2


def start(script, environment):
    """Starts a script of this folder."""
    return subprocess.Popen(
        [sys.executable, pathlib.Path(__file__).with_name(script)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("cache", [True, False])
def test_indices_are_positions_in_the_training_set(data_dir, cache):
    arguments = {"data_dir": data_dir, "cache": cache, "augment": (), "train_examples": 200}
    data = load("digits", batch_size=50, indices=True, **arguments)
    plain = load("digits", batch_size=50, **arguments)
    labels, seen = data.train_labels(), []
    for (images, target), (same_images, same_labels) in zip(data.train, plain.train):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(target["label"], same_labels)
        np.testing.assert_array_equal(labels[target["index"]], target["label"])
        seen.extend(target["index"].numpy())
    assert sorted(seen) == list(range(200)) == list(range(len(labels)))
