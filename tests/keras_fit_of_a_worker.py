"""Run by test_workers.py in each of two workers: Keras' own fit, without our help."""

import json
import pathlib
import sys

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()

import keras  # noqa: E402


class Built(keras.Sequential):
    """Is built already, and does not look at a batch for it."""

    def _maybe_symbolic_build(self, **kwargs):
        pass


def failure_of_fit(kind):
    """Returns what fit fails with; an empty string if it works."""
    with strategy.scope():
        model = kind([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((tf.ones((8, 3)), tf.zeros(8))).batch(4)
    try:
        model.fit(data, shuffle=False, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


found = [failure_of_fit(kind) for kind in (keras.Sequential, Built)]
if strategy.extended.should_checkpoint:
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
