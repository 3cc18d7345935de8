"""Gradients of the parts of a loss, without a training step."""

import numpy as np
import tensorflow as tf

from tfkd import runtime
from tfkd.inspection.check import unchanged


class PartGradients:
    """Measures the gradient of each part of a distiller's objective, on one batch.

    The parts are those that `compute_losses` returns, in training mode and on the replicas that
    train. No training step is taken, and the variables that networks and losses update as they
    run (moving statistics, random generators, memories) are restored.

    Args:
        distiller: A compiled and built `Distiller`.
        data: The batch, a structure of tensors as `fit` hands it to `train_step`. Replicas share
            it.
    """

    def __init__(self, distiller, data):
        self._distiller = distiller
        self._strategy = tf.distribute.get_strategy()
        self._data, self._signature = runtime.distribute_batch(data)
        self._steps = {}

    def measure(self):
        """Runs the step.

        Returns:
            The tuple `(parts, products, weights)`: the names of those terms that depend on the
            student, and `"regularization"` where there is some; the inner products of their
            gradients with respect to the student's trainable variables, float32
            `(parts, parts)`, unweighted for `student_loss` and weighted for the others; and what
            each is still to be multiplied by, `(parts,)`.
        """
        phase = self._distiller.phase
        with unchanged(self._distiller):
            if phase not in self._steps:
                self._steps[phase] = self._compile()
            parts, run = self._steps[phase]
            found = runtime.of_one_replica(run(self._data))
        products, weights = (np.array(values, "float32") for values in found)
        return list(parts), products, weights

    def _compile(self):
        """Returns a list that will hold the names of the parts, and the compiled step."""
        parts = []

        def step(data):
            batch = self._distiller.unpack(data)
            with tf.GradientTape(persistent=True) as tape:
                terms = self._terms(batch)
            connected = {}
            for name, (weight, value) in terms.items():
                gradients = self._gradients(tape, value)
                if gradients is not None:
                    connected[name] = weight, runtime.sum_over_replicas(gradients)
            parts[:] = connected
            weights = [tf.cast(weight, "float32") for weight, _ in connected.values()]
            return _products([one for _, one in connected.values()]), tf.stack(weights)

        if self._distiller.jit_compile:
            step = tf.function(step, jit_compile=True, autograph=False)
        run = tf.function(
            lambda data: self._strategy.run(step, args=(data,)),
            input_signature=[self._signature],
            autograph=False,
        )
        return parts, run

    def _terms(self, batch):
        """Returns `{name: (weight still to be multiplied, value scaled for the replicas)}`."""
        _, given = self._distiller.compute_losses(batch)
        terms = {}
        for name, (weight, value) in given.items():
            if name != "student_loss":
                weight, value = 1.0, weight * value
            terms[name] = weight, batch.scaled(value)
        terms["regularization"] = 1.0, batch.scaled(self._distiller.regularization(batch))
        return terms

    def _gradients(self, tape, value):
        """Returns float32 gradients; None for what does not depend on the student."""
        if not tf.is_tensor(value):
            return None
        # As in training under mixed_float16, in which small gradients would vanish.
        scale = self._distiller.optimizer.scale_loss(tf.ones((), value.dtype))
        variables = self._distiller.student.trainable_variables
        found = tape.gradient(value, variables, output_gradients=scale)
        if all(gradient is None for gradient in found):
            return None
        zeros = (tf.zeros(variable.shape) for variable in variables)
        return [
            zero if gradient is None else tf.cast(tf.convert_to_tensor(gradient), "float32") / scale
            for gradient, zero in zip(found, zeros)
        ]


def _products(gradients):
    """Returns the inner products `(parts, parts)` of gradients, a list of lists of tensors."""
    rows = [tf.stack([tf.reshape(one, [-1]) for one in same]) for same in zip(*gradients)]
    return tf.add_n([tf.matmul(row, row, transpose_b=True) for row in rows])
