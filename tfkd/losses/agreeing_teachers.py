"""AE-KD: a direction on which the teachers agree (Du et al., 2020)."""

import keras
import numpy as np
from keras import ops

from tfkd.errors import UsageError, check_boolean, check_nonnegative, check_share
from tfkd.losses.numerics import selection
from tfkd.losses.weighted_teachers import WeightedTeachers

#: Few teachers need a handful of steps.
_MOST_STEPS = 100


def minimum_norm_weights(gram, largest_weight, tolerance=0.0):
    """Finds the convex combination of vectors that is the shortest.

    By sequential minimal optimisation, as libsvm does it: in each step weight moves between the
    two vectors for which that helps the most.

    Args:
        gram: Float32 tensor `(vectors, vectors)` of their inner products.
        largest_weight: Number, the upper bound of a weight, at least `1 / vectors`.
        tolerance: Number of at least 0. It stops where, of weights divided by `largest_weight`,
            no two slopes differ by more: in the units of `gram`.

    Returns:
        A tensor `(vectors,)` of weights from 0 to `largest_weight` that add up to 1.
    """
    vectors = gram.shape[0]
    lengths = ops.diagonal(gram)
    size = ops.max(lengths)
    size = ops.where(size > 0, size, ops.ones_like(size))
    gram, lengths = gram / size, lengths / size
    least = ops.maximum(tolerance * largest_weight / size, 1e-6)
    # As libsvm begins: the first ones have as much as they may.
    start = np.clip(1 - largest_weight * np.arange(vectors), 0, largest_weight)

    def last_of(which):
        # Of equals libsvm takes the last one, and each step makes two of them equal.
        return ops.one_hot(ops.max(ops.where(which, np.arange(vectors), 0)), vectors)

    def step(weights, violation):
        slopes = ops.sum(gram * weights, axis=1)
        room = ops.where(weights < largest_weight - 1e-7, slopes, np.inf)
        lowest = ops.min(room)
        to = last_of(room <= lowest + 1e-6)
        gap = slopes - lowest
        gap = ops.where((weights > 1e-7) & (gap > 1e-6), gap, ops.zeros_like(gap))
        curvature = lengths + ops.sum(to * lengths) - 2 * ops.sum(to[:, None] * gram, axis=0)
        curvature = ops.maximum(curvature, 1e-12)
        gain = gap * gap / curvature
        taken = last_of(gain >= ops.max(gain) * (1 - 1e-6))
        amount = ops.minimum(ops.sum(taken * gap / curvature), ops.sum(taken * weights))
        amount = ops.minimum(amount, largest_weight - ops.sum(to * weights))
        violation = ops.max(gap)
        amount = ops.where(violation > least, amount, ops.zeros_like(amount))
        return weights + amount * (to - taken), violation

    weights, _ = ops.while_loop(
        lambda weights, violation: violation > least,
        step,
        (ops.convert_to_tensor(start, "float32"), ops.convert_to_tensor(np.inf, "float32")),
        maximum_iterations=_MOST_STEPS,
    )
    return weights


def _constant(tensors):
    return [ops.stop_gradient(tensor) for tensor in tensors]


@keras.saving.register_keras_serializable(package="tfkd")
class AgreeingTeachers(WeightedTeachers):
    """Several teachers, weighted so that following all of them goes against none.

    `Σ_k w_k · KD_k`, with `KD_k = temperature² · mean_i KL(softmax(t_ik / temperature) ‖
    softmax(s_i / temperature))` on logits `(batch, classes)` of the student and of `K` teachers.
    The weights, the same for all samples, make the combination of the gradients as short as
    possible:

    `min_w ‖Σ_k w_k g_k‖²`, `Σ_k w_k = 1`, `0 ≤ w_k ≤ largest_weight`

    where `g_k (classes,)` is the gradient of `KD_k` with respect to the student's logits, averaged
    over the batch. Where no bound is met, its negative is a direction of descent for each teacher.

    Args:
        temperature: Positive number or schedule. Defaults to 4, as published.
        largest_weight: Number from `1 / K` to 1, the tolerance to disagreement that the paper
            calls C. At 1 it is multiple-gradient descent, at `1 / K` the mean of the losses.
            Defaults to 0.6, as in the published code.
        normalize: Whether gradients are brought to length 1 before, so that a teacher that is far
            from the student is not left out for that. Defaults to False, as published.
        solver_tolerance: Number of at least 0, at which the search for the weights stops; see the
            deviations. Defaults to 0.
        weight: Number or schedule. Defaults to 0.9, next to the cross-entropy at 1, as published.
        spots: Defaults to `"teachers"`: the logits of every teacher.

    Raises:
        UsageError: If an argument is out of its range; when it is built, if there is one teacher
            only, or `largest_weight` leaves no weights that add up to 1.

    Deviations: the published code lets libsvm find the weights, as those of a one-class support
    vector machine, on gradients that are divided by the batch size twice. libsvm stops where slopes
    differ by less than 1e-3, and in batches of usual size they all do at once: unless gradients
    are normalised, its weights stay where it starts, at `largest_weight` for the first teacher and
    what is left for the next. Here the search goes on to the optimum; `solver_tolerance=1e-3` is
    the published behaviour.

    Example:
    ```python
    loss = tfkd.losses.AgreeingTeachers()
    value = loss([student_logits] * 2, [teacher_logits, 0.5 * teacher_logits])
    ```

    References:
        - [Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient
          Space](https://proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html),
          and its [code](https://github.com/AnTuo1998/AE-KD).
    """

    id = "aekd"
    # Gradients are averaged over the batch of all replicas.
    relational = True

    def __init__(
        self,
        temperature=4.0,
        largest_weight=0.6,
        normalize=False,
        solver_tolerance=0.0,
        weight=0.9,
        **kwargs,
    ):
        super().__init__(temperature, weight=weight, **kwargs)
        check_share("largest_weight", largest_weight)
        check_boolean("normalize", normalize)
        check_nonnegative("solver_tolerance", solver_tolerance)
        self.largest_weight = largest_weight
        self.normalize = normalize
        self.solver_tolerance = solver_tolerance

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks that weights of at most `largest_weight` can add up to 1."""
        super().build(student_taps_shape, teacher_taps_shape)
        teachers = len(teacher_taps_shape)
        if self.largest_weight * teachers < 1 - 1e-6:
            raise UsageError(
                f"Loss {self.name!r}: the weights of {teachers} teachers cannot add up to 1 where "
                f"none is above largest_weight={self.largest_weight}; it must be at least "
                f"1 / {teachers}."
            )

    def gradients(self, student_logits, teacher_logits, masks):
        """Returns the gradient of each teacher's divergence, averaged over the batch.

        Args:
            student_logits: List of the student's logits `(batch, classes)`, one for each teacher.
            teacher_logits: List of the teachers' logits `(batch, classes)`.
            masks: List of masks `(batch,)`, one for each teacher, or None each.

        Returns:
            A float32 tensor `(teachers, classes)`.
        """
        temperature = self.value_of(self.temperature)
        found = []
        for student, teacher, mask in zip(student_logits, teacher_logits, masks):
            difference = ops.softmax(student / temperature) - ops.softmax(teacher / temperature)
            # Zeros, which differ by nothing, stand in for the samples that do not count.
            count = ops.maximum(ops.sum(selection(mask, student)), 1.0)
            # A mean over the batch of gradients of a mean over the batch.
            found.append(temperature * ops.sum(difference, axis=0) / count**2)
        return ops.stack(found)

    def gram(self, student_logits, teacher_logits, masks):
        """Returns the inner products of the gradients, as the weights are made of them.

        Args:
            student_logits: As in `gradients()`.
            teacher_logits: As in `gradients()`.
            masks: As in `gradients()`.

        Returns:
            `(gram, lengths)`: a tensor `(teachers, teachers)`, and the lengths `(teachers,)` that
            the gradients were divided by.
        """
        gradients = self.gradients(student_logits, teacher_logits, masks)
        lengths = ops.ones_like(gradients[:, :1])
        if self.normalize:
            lengths = ops.norm(gradients, axis=-1, keepdims=True)
            lengths = ops.where(lengths > 0, lengths, ops.ones_like(lengths))
        gradients = gradients / lengths
        return ops.matmul(gradients, ops.transpose(gradients)), lengths[:, 0]

    def teacher_weights(self, student_logits, teacher_logits, labels, masks):
        """Returns the weights `(teachers,)`; see the class."""
        gram, lengths = self.gram(*map(_constant, (student_logits, teacher_logits)), masks)
        weights = minimum_norm_weights(gram, self.largest_weight, self.solver_tolerance)
        # Of the gradients as they are.
        weights = weights / lengths
        return weights / ops.sum(weights)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "largest_weight": self.largest_weight,
            "normalize": self.normalize,
            "solver_tolerance": self.solver_tolerance,
        }
