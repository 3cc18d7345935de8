"""ReviewKD: early features, fused with deeper ones (Chen et al., 2021)."""

import functools

import keras
from keras import ops

from tfkd import schedules
from tfkd.errors import check_nonnegative
from tfkd.layers.review_fusion import ReviewFusion
from tfkd.losses.distillation_loss import DistillationLoss
from tfkd.losses.hierarchical_context import hierarchical_context_loss
from tfkd.losses.numerics import as_map, selection

#: Fused maps are at most so wide, as published.
LARGEST_WIDTH = 512


@keras.saving.register_keras_serializable(package="tfkd")
class KnowledgeReview(DistillationLoss):
    """Hierarchical context loss between the teacher's maps and fused maps of the student.

    From the last spot to the first, the student's map is joined with the fused map of the stage
    behind it and brought to the teacher's shape by a `tfkd.layers.ReviewFusion`, trained with the
    student; its output is compared with the teacher's map by `hierarchical_context_loss`, the
    value is the sum over the spots. Taps are maps `(batch, height, width, channels)`, or vectors
    `(batch, features)`, which count as maps of one position; shapes may differ. Fused maps are as
    wide as the student's last tap, but not wider than 512.

    Args:
        weight: Number, the weight after the warm-up, or a schedule, which leaves none to be done.
            Defaults to 1, as published for resnet110 and resnet32.
        warm_up_epochs: Number, the epochs in which a `weight` that is a number grows from 0 by
            equal steps. Defaults to 20, as published.
        spots: Defaults to `"after_relu+pooled"` of the student, every stage behind its last ReLU
            and the pooled vector, and `"before_relu+pooled"` of the teacher.

    Published for CIFAR-100, teacher and student: 5 for wide ResNets, resnet32x4 and resnet8x4,
    and shufflenet_v1; 8 for shufflenet_v2; 0.6 for resnet56 and resnet20.

    The connectors have many parameters, 1.81 million for resnet32x4 and resnet8x4, a network of
    1.2 million; they are no part of the student.

    Deviations: the published code leaves the teacher in training mode, so that batches normalise
    its features; here it is frozen. Stages of ShuffleNetV2 and bottlenecks of MobileNetV2 end
    without one ReLU for all channels, and are read there on both sides. With one mask per spot,
    batch normalisation takes its statistics from the samples that any of them selects.

    Example:
    ```python
    loss = tfkd.losses.KnowledgeReview()
    value = loss(
        [student_map, later_student_map, student_vector],
        [teacher_map, later_teacher_map, teacher_vector],
        training=True,
    )
    ```

    References:
        - [Distilling Knowledge via Knowledge Review](https://arxiv.org/abs/2104.09044), and its
          [code](https://github.com/dvlab-research/ReviewKD).
    """

    id = "reviewkd"
    spots = "after_relu+pooled"
    teacher_spots = "before_relu+pooled"
    tap_rank = (2, 4)

    def __init__(self, weight=1.0, warm_up_epochs=20, **kwargs):
        check_nonnegative("warm_up_epochs", warm_up_epochs)
        if isinstance(weight, (int, float)) and warm_up_epochs > 0:
            weight = schedules.LinearWarmUp(0.0, weight, warm_up_epochs)
        super().__init__(weight=weight, **kwargs)
        self.warm_up_epochs = warm_up_epochs
        self.fusions = []

    def build(self, student_taps_shape, teacher_taps_shape):
        """Makes the fusions, the first one for the last spot."""
        super().build(student_taps_shape, teacher_taps_shape)
        width = min(LARGEST_WIDTH, student_taps_shape[-1][-1])
        deeper = []
        for spot in reversed(range(len(student_taps_shape))):
            student, teacher = (
                as_map(keras.KerasTensor(self.shapes_taken(shapes)[spot])).shape
                for shapes in (student_taps_shape, teacher_taps_shape)
            )
            name = f"{self.name}_fusion_{spot}"
            fusion = ReviewFusion(width, teacher[1:], name=name, dtype=self.dtype_policy)
            fusion.build([student, *deeper])
            deeper = [fusion.compute_output_shape([student])[1]]
            self.fusions.append(fusion)

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Fuses from the last spot to the first; see the class and `DistillationLoss.call()`."""
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        spots = list(zip(student_taps, teacher_taps, masks))
        selected = None
        if all(mask is not None for mask in masks):
            selected = functools.reduce(
                ops.maximum, [selection(mask, tap) for mask, tap in zip(masks, student_taps)]
            )
        total, deeper = 0.0, []
        for fusion, (student, teacher, mask) in zip(self.fusions, reversed(spots)):
            maps = [as_map(student), *deeper]
            output, fused = fusion(maps, training=training, selected=selected)
            teacher = as_map(ops.stop_gradient(teacher))
            total += hierarchical_context_loss([output], [teacher], mask)
            deeper = [fused]
        return total

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "warm_up_epochs": self.warm_up_epochs}
