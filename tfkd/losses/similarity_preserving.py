"""SP: which samples of a batch look alike (Tung and Mori, 2019)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss
from tfkd.losses.numerics import flatten, keep_selected, normalize, scale_to_batch, selection


def similarities(features, selected):
    """Inner products of all pairs of samples, each row of L2 norm 1.

    Args:
        features: Float32 tensor `(batch, features)`.
        selected: Float32 tensor `(batch,)` of zeros and ones; the others' rows and columns are 0.

    Returns:
        A tensor `(batch, batch)`.
    """
    features = keep_selected(features, selected)
    return normalize(ops.matmul(features, ops.transpose(features)))


def similarity_distance(student_tap, teacher_tap, sample_mask=None):
    """Mean squared difference of two similarity matrices.

    Args:
        student_tap: Float32 tensor `(batch, ...)`.
        teacher_tap: Float32 tensor `(batch, ...)`; the shapes may differ.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_tap)
    student = similarities(flatten(student_tap), selected)
    teacher = similarities(flatten(teacher_tap), selected)
    return scale_to_batch(ops.sum(ops.square(teacher - student)), selected, power=2)


@keras.saving.register_keras_serializable(package="tfkd")
class SimilarityPreserving(DistillationLoss):
    """Mean squared difference between the two networks' similarity matrices of the batch.

    `‖G(t) − G(s)‖² / n²` with `G(F) = F Fᵀ`, its rows divided by their L2 norms, and
    `F (n, everything)` the flattened features. The shapes of the taps may differ.

    Args:
        weight: Number. Defaults to 3000, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"last_map"`.

    Deviations: 0 where fewer than two samples are selected.

    Example:
    ```python
    loss = tfkd.losses.SimilarityPreserving()
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Similarity-Preserving Knowledge Distillation](https://arxiv.org/abs/1907.09682),
          section 3.1.
        - Weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "sp"
    spots = "last_map"
    relational = True

    def __init__(self, weight=3000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps of any shape; see the class."""
        return similarity_distance(student_tap, teacher_tap, sample_mask)
