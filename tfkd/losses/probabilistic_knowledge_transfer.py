"""PKT: how likely samples are to be neighbours (Passalis and Tefas, 2018)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss
from tfkd.losses.numerics import flatten, keep_selected, norm_or_one, scale_to_batch, selection

EPSILON = 1e-7


def neighbour_probabilities(features, selected):
    """Cosine similarities of all pairs, scaled to probabilities along each row.

    Args:
        features: Float32 tensor `(batch, features)`.
        selected: Float32 tensor `(batch,)` of zeros and ones; the others' rows and columns are 0.

    Returns:
        A tensor `(batch, batch)` whose selected rows add up to 1.
    """
    features = keep_selected(features, selected)
    directions = features / (norm_or_one(features) + EPSILON)
    cosines = ops.matmul(directions, ops.transpose(directions))
    kernel = (cosines + 1.0) / 2.0 * (selected[:, None] * selected[None, :])
    total = ops.sum(kernel, axis=1, keepdims=True)
    return kernel / ops.where(selected[:, None] > 0, total, ops.ones_like(total))


def neighbour_divergence(student_tap, teacher_tap, sample_mask=None):
    """Divergence of the neighbour probabilities, the mean over all pairs.

    Args:
        student_tap: Float32 tensor `(batch, ...)`.
        teacher_tap: Float32 tensor `(batch, ...)`; the shapes may differ.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_tap)
    student = neighbour_probabilities(flatten(student_tap), selected)
    teacher = neighbour_probabilities(flatten(teacher_tap), selected)
    divergence = teacher * ops.log((teacher + EPSILON) / (student + EPSILON))
    return scale_to_batch(ops.sum(divergence), selected, power=2)


@keras.saving.register_keras_serializable(package="tfkd")
class ProbabilisticKnowledgeTransfer(DistillationLoss):
    """Kullback-Leibler divergence between probabilities of being neighbours.

    `mean_{ij} p_ij(t) ln((p_ij(t) + 1e-7) / (p_ij(s) + 1e-7))`, where `p` is the kernel
    `(cosine similarity + 1) / 2` of all pairs, each row divided by its sum. Taps `(batch, ...)`
    are flattened and may differ in shape.

    Args:
        weight: Number. Defaults to 30000, as in the CRD benchmark and the spot-adaptive study:
            the mean over `n²` pairs is small.
        spots: Defaults to `"pooled"`.

    Deviations: 0 where fewer than two samples are selected.

    Example:
    ```python
    loss = tfkd.losses.ProbabilisticKnowledgeTransfer()
    value = loss([student_vector], [teacher_vector])
    ```

    References:
        - [Learning Deep Representations with Probabilistic Knowledge
          Transfer](https://arxiv.org/abs/1803.10837), section 3.
        - Form and weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "pkt"
    spots = "pooled"
    relational = True

    def __init__(self, weight=30000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps of any shape; see the class."""
        return neighbour_divergence(student_tap, teacher_tap, sample_mask)
