"""Stops training where a loss is no longer a finite number."""

import keras
import tensorflow as tf

from tfkd import runtime
from tfkd.errors import DivergenceError

#: The sum of all parts, which can overflow where none of them does.
TOTAL = "loss"

#: What a batch consists of, in its order.
_DATA = ("inputs", "labels", "sample weights")

#: How many parts one distiller can have; further ones show in the total only.
_PARTS = 64

#: After how many steps the host looks: reading a variable waits for the device.
_STEPS_BETWEEN_LOOKS = 50


class LossWatch:
    """Notes in which step of an epoch which part of a loss, or of the data, was first not finite.

    The compiled step writes it down and nothing waits for it. Its variables belong to no model:
    they are neither saved nor restored, since nothing is saved once they are set.
    """

    def __init__(self):
        # Each replica writes its own copy, and all write the same.
        settings = {
            "trainable": False,
            "dtype": tf.int64,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self._parts = [TOTAL, *_DATA]
        self._step = tf.Variable(0, name="step_of_epoch", **settings)
        # Of each part the step, counted from 1, in which it was first not finite; 0 for none.
        self._first = tf.Variable([0] * _PARTS, name="first_not_finite", **settings)

    def start_epoch(self):
        """Forgets everything, and counts steps anew."""
        self._step.assign(0)
        self._first.assign([0] * _PARTS)

    def note(self, values, batch):
        """Counts a step, and notes which of its values are not finite.

        Args:
            values: `{part: scalar}`, of this replica.
            batch: The `Batch`.
        """
        self._step.assign_add(1)
        for part in values:
            if part not in self._parts and len(self._parts) < _PARTS:
                self._parts.append(part)
        # A sum takes one pass, and keeps NaN and infinity; which of the two does not matter.
        data = (batch.inputs, batch.labels, batch.sample_weight)
        values = {**values, **dict(zip(_DATA, map(_sum, data)))}
        watched = [tf.cast(values.get(part, 0.0), tf.float32) for part in self._parts]
        finite = tf.math.is_finite(tf.stack([tf.stop_gradient(value) for value in watched]))
        # One replica's is the others' in the next step, and the first one's step counts.
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
        # The total says nothing where one of its parts is to blame.
        parts = [part for part in parts if part != TOTAL] or [TOTAL]
        return first, parts, [part for part, step in data.items() if 0 < step <= first]


def _sum(tensors):
    """Returns a float32 scalar that is not finite where a value of some tensors is not."""
    total = tf.zeros(())
    for tensor in tf.nest.flatten(tensors):
        # Whole numbers are finite; the data may lack a part.
        if tensor is not None and tf.as_dtype(tensor.dtype).is_floating:
            # Sums of float16 may overflow.
            tensor = tf.cast(tensor, tf.float32) if tensor.dtype == tf.float16 else tensor
            total += tf.cast(tf.reduce_sum(tensor), tf.float32)
    return total


class StopAtDivergence(keras.callbacks.Callback):
    """Ends training with a `DivergenceError` soon after a loss has become NaN or infinite.

    It looks every few steps, and before validation and everything else that follows an epoch. The
    error tells the step in which it happened, not the one after which it was seen.

    Args:
        watch: The `LossWatch` into which the compiled step writes.
    """

    def __init__(self, watch):
        super().__init__()
        self._watch = watch
        self._epoch = 0
        self._begun = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Starts counting anew."""
        self._epoch, self._begun = epoch, 0
        self._watch.start_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        """Looks now and then: at the begin, since a hook at the end lets Keras read every log."""
        if self._begun % _STEPS_BETWEEN_LOOKS == 0:
            self._look()
        self._begun += 1

    def on_test_begin(self, logs=None):
        """Looks before validation."""
        self._look()

    def on_epoch_end(self, epoch, logs=None):
        """Looks before other callbacks save anything."""
        self._look()

    def _look(self):
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
