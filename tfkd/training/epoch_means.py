"""EpochMeans: the mean over an epoch of every value that a step logs."""

import keras
import tensorflow as tf
from keras import ops

from tfkd.errors import UsageError

#: The largest number of values that one distiller can log.
_LIMIT = 256


class EpochMeans(keras.metrics.Metric):
    """Averages the logged values of steps, by name.

    Names are collected when a step is traced. All sums are in one variable, so that a step makes
    one update however many values it logs.
    """

    def __init__(self):
        super().__init__(name="epoch_means", dtype="float32")
        self._names = []
        self._sums, self._weights = (
            self.add_variable((_LIMIT,), initializer="zeros", name=name)
            for name in ("sums", "weights")
        )

    def declare(self, names):
        """Adds names, whose mean is 0 until a step logs them.

        Raises:
            UsageError: If there are too many.
        """
        self._names += [name for name in names if name not in self._names]
        if len(self._names) > _LIMIT:
            raise UsageError(f"A distiller logs at most {_LIMIT} values; it has more.")

    def update_state(self, values, sample_weight):
        """Adds the values of one step.

        Args:
            values: `{name: scalar}`, means over this replica's samples.
            sample_weight: Integer tensor, the number of these samples. Where it is 0 the values
                are left out.
        """
        if not values:
            return
        self.declare(values)
        weight = ops.cast(sample_weight, "float32")
        zero, padding = tf.zeros(()), [[0, _LIMIT - len(self._names)]]
        numbers = ops.stack([ops.cast(values.get(name, zero), "float32") for name in self._names])
        weights = ops.stack([weight if name in values else zero for name in self._names])
        self._sums.assign_add(tf.pad(tf.where(weights > 0, weights * numbers, 0.0), padding))
        self._weights.assign_add(tf.pad(weights, padding))

    def result(self):
        """Returns `{name: mean}`."""
        means = tf.math.divide_no_nan(self._sums.value, self._weights.value)
        return {name: means[row] for row, name in enumerate(self._names)}
