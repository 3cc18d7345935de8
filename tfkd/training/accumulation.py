"""Accumulation: one step of an optimizer for the gradients of several batches."""

import tensorflow as tf

from tfkd import runtime


class Accumulation:
    """Sums an optimizer's gradients over k steps and applies their mean at the k-th.

    The sums and the count are variables of the optimizer, so that they are saved, restored and
    resumed with it. They hold the gradients of all replicas.

    Replicas cannot communicate inside of a condition. So the optimizer takes a step every time,
    and its variables are restored unless it was the k-th.

    Args:
        optimizer: A Keras optimizer that has been built.
        variables: List of the variables that it updates.

    Attributes:
        steps: Integer, the k above.
    """

    def __init__(self, optimizer, variables):
        self.steps = 1
        # Accumulations are found by the id of the optimizer, which a reference keeps unique.
        self._optimizer = optimizer
        # Listed before the sums exist: the optimizer does not change those.
        self._changed = [variable.value for variable in (*variables, *optimizer.variables)]
        self._sums = {
            id(variable): optimizer.add_variable_from_reference(variable, name="accumulated")
            for variable in variables
        }
        self._count = optimizer.add_variable(
            (), dtype="int32", aggregation="only_first_replica", name="accumulated_steps"
        )

    def apply(self, gradients, variables, apply):
        """Adds gradients, and at the k-th call takes a step on their mean.

        Args:
            gradients: List of tensors, the gradients of all replicas.
            variables: List of their variables.
            apply: Function of such a list that lets the optimizer take a step.
        """
        sums = [self._sums[id(variable)].value for variable in variables]
        totals = [total + gradient for total, gradient in zip(sums, gradients)]
        count = self._count.value + 1
        complete = count >= self.steps
        before = [tf.identity(variable) for variable in self._changed]
        apply([total / self.steps for total in totals])
        runtime.assign_on_replicas(
            [*self._changed, *sums, self._count.value],
            [
                *(tf.where(complete, after, old) for after, old in zip(self._changed, before)),
                *(tf.where(complete, tf.zeros_like(total), total) for total in totals),
                tf.where(complete, 0, count),
            ],
        )
