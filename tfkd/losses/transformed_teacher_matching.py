"""TTM: the teacher softened, the student as it is (Zheng and Yang, 2024)."""

import keras
from keras import ops

from tfkd.errors import check_positive
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean


def transformed_divergence(student_logits, teacher_logits, power):
    """Divergence of the student's predictions from the teacher's to a power, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        power: Positive number.

    Returns:
        `(divergence, mass)`, tensors `(batch,)`: `KL(q ‖ softmax(student))` in nats, where `q` is
        `softmax(teacher)` to the power, divided by its sum over the classes, and that sum.
    """
    powers = power * ops.log_softmax(teacher_logits)
    log_mass = ops.logsumexp(powers, axis=-1, keepdims=True)
    teacher_log = powers - log_mass
    divergence = ops.exp(teacher_log) * (teacher_log - ops.log_softmax(student_logits))
    return ops.sum(divergence, axis=-1), ops.exp(log_mass[:, 0])


@keras.saving.register_keras_serializable(package="tfkd")
class TransformedTeacherMatching(DistillationLoss):
    """Divergence from the teacher's softened predictions, the student's not softened.

    `mean_i KL(q_i ‖ softmax(s_i))` on logits `(batch, classes)`, with
    `q = softmax(t)^power / Σ_c softmax(t)_c^power`, which is `softmax(power · t)`: a temperature of
    `1 / power` for the teacher alone.

    Args:
        power: Positive number, below 1 to soften. Defaults to 0.1.
        weight: Number or schedule. Defaults to 45, next to the cross-entropy at 1. Both defaults
            are the published ones for vgg13 and vgg8 on CIFAR-100; each pair has its own.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If `power` is not positive.

    Example:
    ```python
    loss = tfkd.losses.TransformedTeacherMatching()
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Knowledge Distillation Based on Transformed Teacher
          Matching](https://arxiv.org/abs/2402.11148), and its code.
    """

    id = "ttm"
    spots = "logits"
    compares_classes = True

    def __init__(self, power=0.1, weight=45.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_positive("power", power)
        self.power = power

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        divergence, _ = transformed_divergence(student_tap, teacher_tap, self.power)
        return masked_mean(divergence, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "power": self.power}
