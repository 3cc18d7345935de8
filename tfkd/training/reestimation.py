"""Reestimation: batch-norm statistics of the plain student, without the teacher's blocks."""

import time

import keras
import numpy as np
import tensorflow as tf

from tfkd import runtime
from tfkd.errors import UsageError


class Reestimation(keras.callbacks.Callback):
    """Recomputes the student's batch-norm statistics after every epoch, before validation.

    A distiller that swaps parts of the student for the teacher's trains batch normalizations on
    features that the plain student does not have. This callback sets their moving mean and
    variance to the averages over some batches of training data that pass the student alone.

    Training mode does not read these statistics, so that training is the same with and without
    the callback, and checkpoints and evaluation use those of the plain student. Random generators
    of the student, such as a dropout's, are restored.

    Args:
        inputs: What `fit` trains on, a `tf.data.Dataset` or arrays.
        batch_size: Integer, for arrays; None for Keras' 32.
        batches: Integer, the largest number of batches. Of a data set of known length the last
            batch is left out, so that a pipeline which counts its passes does not count this one.

    Raises:
        UsageError: If the inputs are of another kind, such as a generator, whose batches training
            would then miss.

    Logs: `reestimation_seconds`, its run time.
    """

    def __init__(self, inputs, batch_size, batches):
        super().__init__()
        self._dataset = _batches(inputs, batch_size or 32, batches)
        self._seconds = None
        self._measure = None

    def on_epoch_begin(self, epoch, logs=None):
        """Resets the time of the epoch."""
        self._seconds = None

    def on_test_begin(self, logs=None):
        """Runs before validation."""
        self._run()

    def on_epoch_end(self, epoch, logs=None):
        """Runs after an epoch without validation, and logs."""
        if self._seconds is None:
            self._run()
        logs["reestimation_seconds"] = self._seconds

    def _run(self):
        started = time.perf_counter()
        student = self.model.student
        layers = [
            layer
            for layer in runtime.all_layers(student)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        statistics = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
        ours = {id(variable) for variable in statistics}
        others = [v for v in student.non_trainable_variables if id(v) not in ours]
        before = [np.array(variable) for variable in others]
        with self.model.distribute_strategy.scope():
            if self._measure is None:
                self._measure = _measuring(student, layers, self.model.jit_compile)
            sums, total = [0.0] * len(statistics), 0
            strategy = self.model.distribute_strategy
            for data in strategy.experimental_distribute_dataset(self._dataset):
                inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
                size, values = runtime.of_one_replica(self._measure(inputs))
                sums = [total_ + int(size) * value.numpy() for total_, value in zip(sums, values)]
                total += int(size)
            for variable, value in zip(statistics + others, [s / total for s in sums] + before):
                variable.assign(value)
        self._seconds = time.perf_counter() - started


def _measuring(student, layers, jit_compile):
    """Returns a function of a batch that returns its size and its statistics in every layer."""

    def measure(inputs):
        for layer in layers:
            layer.moving_mean.assign(tf.zeros_like(layer.moving_mean.value))
            layer.moving_variance.assign(tf.zeros_like(layer.moving_variance.value))
        student(inputs, training=True)
        values = []
        for layer in layers:
            # From 0 a layer moves this part of the way to the batch's own statistics.
            part = 1 - layer.momentum
            values += [layer.moving_mean.value / part, layer.moving_variance.value / part]
        return runtime.sum_over_replicas(tf.shape(tf.nest.flatten(inputs)[0])[0]), values

    strategy = tf.distribute.get_strategy()
    return tf.function(
        lambda inputs: strategy.run(measure, args=(inputs,)),
        jit_compile=jit_compile,
        reduce_retracing=True,
        autograph=False,
    )


def _batches(inputs, batch_size, batches):
    """Returns the first batches of the training data, as a data set."""
    if isinstance(inputs, tf.data.Dataset):
        length = int(inputs.cardinality())
        return inputs.take(min(batches, length - 1) if length > 1 else batches)
    arrays = tf.nest.flatten(inputs)
    if not arrays or not all(isinstance(x, np.ndarray) or tf.is_tensor(x) for x in arrays):
        raise UsageError(
            "The student's batch-norm statistics are recomputed on training data, which must then "
            "be a tf.data.Dataset or arrays; pass one, or reestimation='never'. Received "
            f"{type(inputs).__name__}."
        )
    first = tf.nest.map_structure(lambda x: x[: batches * batch_size], inputs)
    # As a tuple, since a data set takes a pair for inputs and labels.
    return tf.data.Dataset.from_tensor_slices((first,)).batch(batch_size)
