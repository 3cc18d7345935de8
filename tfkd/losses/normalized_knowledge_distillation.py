"""NKD: the label by its own weight, the others normalised (Yang et al., 2023)."""

import keras
from keras import ops

from tfkd.losses.decoupled_knowledge_distillation import without_label
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.schedules import number_or_schedule


def normalized_cross_entropies(student_logits, teacher_logits, labels, temperature=1.0):
    """The two parts of the cross-entropy with the teacher's predictions, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        labels: Integer tensor `(batch,)`.
        temperature: Positive number that divides the logits in the second part.

    Returns:
        `(target, others)`, tensors `(batch,)`: the labelled class's term at temperature 1, and the
        cross-entropy of the predictions among the other classes at the temperature.
    """
    is_label = ops.one_hot(labels, student_logits.shape[-1], dtype="float32")
    target = ops.sum(
        is_label * ops.softmax(teacher_logits) * ops.log_softmax(student_logits), axis=-1
    )
    student, teacher = (
        without_label(logits / temperature, is_label) for logits in (student_logits, teacher_logits)
    )
    others = ops.sum(ops.softmax(teacher) * ops.log_softmax(student), axis=-1)
    return -target, -others


@keras.saving.register_keras_serializable(package="tfkd")
class NormalizedKnowledgeDistillation(DistillationLoss):
    """Cross-entropy with the teacher's predictions, the labelled class apart from the others.

    `mean_i [−t_y log s_y − gamma · temperature² · Σ_{c ≠ y} t̂_c log ŝ_c]`, on logits
    `(batch, classes)`: `s`, `t` are the softmax of all logits, `y` is the label, and `ŝ`, `t̂` the
    softmax of the other classes' logits divided by the temperature.

    Args:
        gamma: Number, the weight of the other classes' part. Defaults to 1.5.
        temperature: Positive number, or a schedule of such, of that part. Defaults to 1.
        weight: Number or schedule. Defaults to 1, next to the cross-entropy at 1.
        spots: Defaults to `"logits"`.

    `call()` needs `labels`, integers `(batch,)`.

    Raises:
        UsageError: If `temperature` is not positive, or labels are missing.

    Deviations: the published code also takes soft labels, and reads their largest entry.

    Example:
    ```python
    loss = tfkd.losses.NormalizedKnowledgeDistillation()
    value = loss([student_logits], [teacher_logits], labels=labels)
    ```

    References:
        - [From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
          Normalized Loss and Customized Soft Labels](https://arxiv.org/abs/2303.13005), whose code
          gives the defaults.
    """

    id = "nkd"
    spots = "logits"
    needs_labels = True
    compares_classes = True

    def __init__(self, gamma=1.5, temperature=1.0, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.gamma = gamma
        self.temperature = number_or_schedule("temperature", temperature, positive=True)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        temperature = self.value_of(self.temperature)
        target, others = normalized_cross_entropies(student_tap, teacher_tap, labels, temperature)
        return masked_mean(target + self.gamma * temperature**2 * others, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "temperature": keras.saving.serialize_keras_object(self.temperature),
        }
