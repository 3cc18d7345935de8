"""WTTM: TTM, more where the teacher is uncertain (Zheng and Yang, 2024)."""

import keras

from tfkd.losses.distillation_loss import masked_mean
from tfkd.losses.transformed_teacher_matching import (
    TransformedTeacherMatching,
    transformed_divergence,
)


@keras.saving.register_keras_serializable(package="tfkd")
class WeightedTransformedTeacherMatching(TransformedTeacherMatching):
    """Divergence from the teacher's softened predictions, each sample by how soft these are.

    `mean_i U_i · KL(q_i ‖ softmax(s_i))` on logits `(batch, classes)`, with `q` as in
    `TransformedTeacherMatching` and `U = Σ_c softmax(t)_c^power`: from 1, where the teacher is
    certain, to `classes^(1 − power)`, where it takes all classes for equally likely.

    Args:
        power: Positive number, below 1 to soften. Defaults to 0.2.
        weight: Number or schedule. Defaults to 4, next to the cross-entropy at 1. Both defaults
            are the published ones for vgg13 and vgg8 on CIFAR-100 beside `crd`, the only ones that
            the code names.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If `power` is not positive.

    Example:
    ```python
    loss = tfkd.losses.WeightedTransformedTeacherMatching()
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Knowledge Distillation Based on Transformed Teacher
          Matching](https://arxiv.org/abs/2402.11148), and its code.
    """

    id = "wttm"

    def __init__(self, power=0.2, weight=4.0, **kwargs):
        super().__init__(power=power, weight=weight, **kwargs)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        divergence, mass = transformed_divergence(student_tap, teacher_tap, self.power)
        return masked_mean(mass * divergence, sample_mask)
