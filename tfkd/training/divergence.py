"""Stops training when a loss becomes NaN or infinite."""

import keras
import tensorflow as tf

from tfkd import runtime
from tfkd.errors import DivergenceError

#: The sum of all parts; it can overflow although no part does.
TOTAL = "loss"

#: A weight of each student. A ReLU may hide a weight that is NaN from all outputs, while the
#: gradient spreads it to the first layer.
WEIGHTS = "weights of the student"

#: The parts of a batch, in order.
_DATA = ("inputs", "labels", "sample weights")

#: The largest number of parts that are watched; further ones are part of the total only.
_PARTS = 64

#: The host checks every so many steps, since reading a variable waits for the device.
_STEPS_BETWEEN_CHECKS = 50


class LossWatch:
    """Records the first step of an epoch in which each part of the loss or data is not finite.

    The compiled step writes to its variables without waiting for the host. They belong to no
    model and are not saved, since nothing is saved once they are set.
    """

    def __init__(self):
        # Each replica writes the same values to its own copy.
        settings = {
            "trainable": False,
            "dtype": tf.int64,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self._parts = [TOTAL, WEIGHTS, *_DATA]
        self._step = tf.Variable(0, name="step_of_epoch", **settings)
        # For each part the step, from 1, in which it was first not finite; 0 for none.
        self._first = tf.Variable([0] * _PARTS, name="first_not_finite", **settings)

    def start_epoch(self):
        """Resets the records and the step count."""
        self._step.assign(0)
        self._first.assign([0] * _PARTS)

    def note(self, values, batch, students):
        """Counts a step, and records which of its values are not finite.

        Args:
            values: `{part: scalar}`, of this replica.
            batch: The `Batch`.
            students: The models in training, after the step; their first weight is watched.
        """
        self._step.assign_add(1)
        for part in values:
            if part not in self._parts and len(self._parts) < _PARTS:
                self._parts.append(part)
        # A sum takes one pass and is not finite where a value is not.
        data = (batch.inputs, batch.labels, batch.sample_weight)
        values = {**values, **dict(zip(_DATA, map(_sum, data)))}
        values[WEIGHTS] = _sum([one.value for s in students for one in s.trainable_variables[:1]])
        watched = [tf.cast(values.get(part, 0.0), tf.float32) for part in self._parts]
        finite = tf.math.is_finite(tf.stack([tf.stop_gradient(value) for value in watched]))
        # A NaN of one replica reaches the others in the next step: the first step counts.
        found = runtime.sum_over_replicas(tf.cast(tf.logical_not(finite), tf.int64))
        found = tf.pad(found, [[0, _PARTS - len(self._parts)]])
        new = tf.logical_and(found > 0, self._first == 0)
        self._first.assign(tf.where(new, self._step.read_value(), self._first))

    def found(self):
        """Returns `(step, [parts of the loss], [parts of the data])`, or None.

        The step is the first one in which a part of the loss is not finite; the parts of the data
        are those that were not until then.
        """
        steps = dict(zip(self._parts, self._first.read_value().numpy().tolist()))
        data = {part: steps.pop(part) for part in _DATA}
        if not any(steps.values()):
            return None
        first = min(step for step in steps.values() if step)
        parts = [part for part, step in steps.items() if step == first]
        # The total, and what the step has made of the weights, add no information where a part
        # is not finite.
        for implied in (WEIGHTS, TOTAL):
            parts = [part for part in parts if part != implied] or [implied]
        return first, parts, [part for part, step in data.items() if 0 < step <= first]


def _sum(tensors):
    """Returns a float32 scalar that is not finite where a value of some tensors is not."""
    total = tf.zeros(())
    for tensor in tf.nest.flatten(tensors):
        # Integers are finite; the data may lack a part.
        if tensor is not None and tf.as_dtype(tensor.dtype).is_floating:
            # Sums of float16 may overflow.
            tensor = tf.cast(tensor, tf.float32) if tensor.dtype == tf.float16 else tensor
            total += tf.cast(tf.reduce_sum(tensor), tf.float32)
    return total


class StopAtDivergence(keras.callbacks.Callback):
    """Ends training with a `DivergenceError` soon after a loss has become NaN or infinite.

    It checks every few steps, and at the end of an epoch before validation and other callbacks.
    The error names the step in which it happened, not the one after which it was detected.

    Args:
        watch: The `LossWatch` that the compiled step writes to.
    """

    def __init__(self, watch):
        super().__init__()
        self._watch = watch
        self._epoch = 0
        self._begun = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Resets the records and the step count."""
        self._epoch, self._begun = epoch, 0
        self._watch.start_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        """Checks every few steps; a hook at the end of batches would make Keras read every log."""
        if self._begun % _STEPS_BETWEEN_CHECKS == 0:
            self._check()
        self._begun += 1

    def on_test_begin(self, logs=None):
        """Checks before validation."""
        self._check()

    def on_epoch_end(self, epoch, logs=None):
        """Checks before other callbacks save anything."""
        self._check()

    def _check(self):
        found = self._watch.found()
        if found is None:
            return
        step, parts, data = found
        steps = self.params.get("steps")
        of_steps = f" of {steps}" if steps else ""
        when = f"in epoch {self._epoch + 1}, step {step}{of_steps}"
        if data:
            raise DivergenceError(
                f"The {' and '.join(data)} of the training data hold NaN or infinite values, so "
                f"that {' and '.join(parts)} became NaN or infinite {when}: correct the data."
            )
        raise DivergenceError(
            f"Training diverged: {' and '.join(parts)} became NaN or infinite {when}. Smaller "
            "learning rates or weights of losses may help."
        )
