"""KD: the teacher's softened class probabilities (Hinton et al., 2015)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.schedules import number_or_schedule


def kl_divergence(student_logits, teacher_logits, temperature=1.0):
    """KL divergence of softened predictions, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        temperature: Positive number that divides both logits.

    Returns:
        A tensor `(batch,)`: `KL(softmax(teacher / temperature) || softmax(student / temperature))`
        in nats, not multiplied by the squared temperature.
    """
    student_log = ops.log_softmax(student_logits / temperature)
    teacher_log = ops.log_softmax(teacher_logits / temperature)
    return ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class KnowledgeDistillation(DistillationLoss):
    """Kullback-Leibler divergence between softened class probabilities.

    `temperature² · mean_i KL(softmax(t_i / temperature) ‖ softmax(s_i / temperature))`, on logits
    `(batch, classes)`. The squared temperature keeps the gradient's size as the temperature
    changes.

    Args:
        temperature: Positive number, or a schedule of such. Defaults to 4, as in the CRD
            benchmark.
        weight: Number or schedule. Defaults to 0.9, next to 0.1 times the cross-entropy: the CRD
            benchmark's weights for KD alone. As a companion of another loss its protocol uses 1.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If `temperature` is not positive.

    Example:
    ```python
    loss = tfkd.losses.KnowledgeDistillation(temperature=4.0)
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531),
          section 2.
        - Weights: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "kd"
    spots = "logits"

    def __init__(self, temperature=4.0, weight=0.9, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.temperature = number_or_schedule("temperature", temperature, positive=True)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        temperature = self.value_of(self.temperature)
        divergence = kl_divergence(student_tap, teacher_tap, temperature)
        return temperature**2 * masked_mean(divergence, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        temperature = keras.saving.serialize_keras_object(self.temperature)
        return {**super().get_config(), "temperature": temperature}
