"""Gradients of the parts of a loss, taken by a training step that changes nothing."""

import contextlib
import threading

import numpy as np
import tensorflow as tf

from tfkd import runtime
from tfkd.distillers.preflight import unchanged


class PartGradients:
    """Measures which gradient each part of a distiller's objective has, on one batch.

    It runs the distiller's own training step: what it hands to `objective` is what is measured,
    whatever the method, in training mode and on the replicas that train. Optimizers, metrics and
    the watch for divergence are not touched, and variables that the step itself changes (moving
    statistics, random generators, memories) get their values back.

    Args:
        distiller: A compiled and built `Distiller`.
        data: The batch, a structure of tensors as `fit` hands it to `train_step`. Replicas share
            it.
    """

    def __init__(self, distiller, data):
        self._distiller = distiller
        self._strategy = tf.distribute.get_strategy()
        self._data, self._signature = runtime.shared_out(data)
        self._steps = {}
        # What the step hands over. Replicas are threads, which take turns wherever they meet.
        self._terms = threading.local()

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
        with unchanged(self._distiller), self._only_looking():
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
            self._terms.given = {}
            with tf.GradientTape(persistent=True) as tape:
                self._distiller.train_step(data)
            connected = {}
            for name, (weight, value) in self._terms.given.items():
                gradients = self._gradients(tape, value)
                if gradients is not None:
                    connected[name] = weight, runtime.sum_over_replicas(gradients)
            parts[:] = connected
            weights = [tf.cast(weight, "float32") for weight, _ in connected.values()]
            return _products([one for _, one in connected.values()]), tf.stack(weights)

        step = runtime.padded_step(step)
        if self._distiller.jit_compile:
            step = tf.function(step, jit_compile=True, autograph=False)
        run = tf.function(
            lambda data: self._strategy.run(step, args=(data,)),
            input_signature=[self._signature],
            autograph=False,
        )
        return parts, run

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

    @contextlib.contextmanager
    def _only_looking(self):
        """Lets a step hand over its terms, and do no more."""
        distiller, terms = self._distiller, self._terms

        def objective(batch, given):
            for name, (weight, value) in given.items():
                if name != "student_loss":
                    weight, value = 1.0, weight * value
                terms.given[name] = weight, distiller._scaled(batch, value)
            value = distiller._regularization() / runtime.num_replicas()
            terms.given["regularization"] = 1.0, value
            return tf.zeros(())

        hidden = {
            "objective": objective,
            "own_objective": lambda batch, given: tf.zeros(()),
            "update": lambda *args, **kwargs: None,
            "track": lambda *args: None,
            "logs": lambda *args: {},
        }
        # Then no step is counted.
        evaluating, distiller._evaluating = distiller._evaluating, True
        for name, function in hidden.items():
            # An instance attribute hides the method of the class until it is deleted again.
            object.__setattr__(distiller, name, function)
        try:
            yield
        finally:
            distiller._evaluating = evaluating
            for name in hidden:
                object.__delattr__(distiller, name)


def _products(gradients):
    """Returns the inner products `(parts, parts)` of gradients, a list of lists of tensors."""
    rows = [tf.stack([tf.reshape(one, [-1]) for one in same]) for same in zip(*gradients)]
    return tf.add_n([tf.matmul(row, row, transpose_b=True) for row in rows])
