"""RKD: distances and angles between the samples of a batch (Park et al., 2019)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss
from tfkd.losses.numerics import (
    flatten,
    keep_selected,
    normalize,
    scale_to_batch,
    selection,
    smooth_l1,
)


def relations(features, selected):
    """Distances of all pairs and angles of all triples of selected samples.

    Args:
        features: Float32 tensor `(batch, features)`.
        selected: Float32 tensor `(batch,)` of zeros and ones. What involves another sample is 0.

    Returns:
        `(distances, cosines)`: a tensor `(batch, batch)`, the Euclidean distances divided by
        their mean over pairs of different samples; and a tensor `(batch, batch, batch)`, at
        `[i, j, k]` the cosine of the angle at `i` between `j` and `k`.
    """
    features = keep_selected(features, selected)
    pairs = selected[:, None] * selected[None, :]
    pairs = pairs * (1.0 - ops.eye(ops.shape(selected)[0], dtype="float32"))
    # One tensor of differences serves both; squared distances from inner products would cancel
    # where samples are close.
    differences = (features[None, :, :] - features[:, None, :]) * pairs[:, :, None]
    # The floor is the published one: two equal samples are 1e-6 apart.
    squared = ops.maximum(ops.sum(ops.square(differences), axis=-1), 1e-12)
    distances = ops.sqrt(squared) * pairs
    mean = ops.sum(distances) / ops.maximum(ops.sum(pairs), 1.0)
    distances = distances / ops.where(mean > 0, mean, 1.0)
    directions = normalize(differences)
    return distances, ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def relational_distance(
    student_tap, teacher_tap, sample_mask=None, distance_weight=25.0, angle_weight=50.0
):
    """Weighted sum of the distance-wise and the angle-wise loss.

    Args:
        student_tap: Float32 tensor `(batch, ...)`.
        teacher_tap: Float32 tensor `(batch, ...)`; the shapes may differ.
        sample_mask: Tensor `(batch,)` that selects samples, or None.
        distance_weight: Number.
        angle_weight: Number.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_tap)
    student_distances, student_cosines = relations(flatten(student_tap), selected)
    teacher_distances, teacher_cosines = relations(flatten(teacher_tap), selected)
    distance = ops.sum(smooth_l1(student_distances - teacher_distances))
    angle = ops.sum(smooth_l1(student_cosines - teacher_cosines))
    return distance_weight * scale_to_batch(distance, selected, power=2) + (
        angle_weight * scale_to_batch(angle, selected, power=3)
    )


@keras.saving.register_keras_serializable(package="tfkd")
class RelationalKnowledgeDistillation(DistillationLoss):
    """Smooth L1 between pairwise distances and between the angles of triples.

    `25 · mean_{ij} h(d_ij(s) − d_ij(t)) + 50 · mean_{ijk} h(cos_ijk(s) − cos_ijk(t))`, where `h`
    is the smooth L1 (Huber, delta 1), `d` the Euclidean distances divided by their mean over the
    batch, and `cos_ijk` the cosine between the directions from sample `i` to `j` and to `k`.
    Taps `(batch, ...)` are flattened and may differ in shape.

    Args:
        distance_weight: Number. Defaults to 25, as in the CRD benchmark.
        angle_weight: Number. Defaults to 50, as in the CRD benchmark.
        weight: Number. Defaults to 1, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"pooled"`.

    The means count all `n²` pairs and `n³` triples, those of a sample with itself included (their
    terms are 0). Time grows with `n³`, memory with `n³` and `n² · features`.

    Deviations: 0 where fewer than two samples are selected; the published code gives NaN for one.

    Example:
    ```python
    loss = tfkd.losses.RelationalKnowledgeDistillation()
    value = loss([student_vector], [teacher_vector])
    ```

    References:
        - [Relational Knowledge Distillation](https://arxiv.org/abs/1904.05068), section 3.2.
        - Weights: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "rkd"
    spots = "pooled"
    relational = True

    def __init__(self, distance_weight=25.0, angle_weight=50.0, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps of any shape; see the class."""
        return relational_distance(
            student_tap, teacher_tap, sample_mask, self.distance_weight, self.angle_weight
        )

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }
