"""WSLD: soft labels, more where the student lags behind (Zhou et al., 2021)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.schedules import number_or_schedule


def soft_label_weights(student_logits, teacher_logits, labels):
    """How far the student is behind its teacher on the labels, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        labels: Integer tensor `(batch,)`.

    Returns:
        A tensor `(batch,)` from 0 to 1, without gradient: `1 − exp(−CE_s / (CE_t + 1e-7))` of both
        cross-entropies with the labels.
    """
    student, teacher = (
        keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        for logits in (student_logits, teacher_logits)
    )
    return ops.stop_gradient(1 - ops.exp(-student / (teacher + 1e-7)))


@keras.saving.register_keras_serializable(package="tfkd")
class WeightedSoftLabels(DistillationLoss):
    """Cross-entropy with softened predictions, each sample by how far the student is behind.

    `temperature² · mean_i w_i · (−Σ_c t_c log s_c)` on logits `(batch, classes)`, where `s` and `t`
    are their softmax at the temperature, and `w_i = 1 − exp(−CE(s_i, y_i) / (CE(t_i, y_i) + 1e-7))`
    at temperature 1, without gradient: near 0 where the student knows the label better than the
    teacher does, near 1 where it does not.

    Args:
        temperature: Positive number, or a schedule of such. Defaults to 2, as published for
            ImageNet.
        weight: Number or schedule. Defaults to 2.5, as published for ImageNet, next to the
            cross-entropy at 1.
        spots: Defaults to `"logits"`.

    `call()` needs `labels`, integers `(batch,)`.

    Raises:
        UsageError: If `temperature` is not positive, or labels are missing.

    Deviations: the published `alpha` is `weight` here. As in its code, the value is a
    cross-entropy, not a divergence: it is not 0 for equal logits; the gradients are equal.

    Example:
    ```python
    loss = tfkd.losses.WeightedSoftLabels()
    value = loss([student_logits], [teacher_logits], labels=labels)
    ```

    References:
        - [Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
          Perspective](https://arxiv.org/abs/2102.00650), whose code gives the defaults.
    """

    id = "wsld"
    spots = "logits"
    needs_labels = True
    compares_classes = True

    def __init__(self, temperature=2.0, weight=2.5, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.temperature = number_or_schedule("temperature", temperature, positive=True)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        temperature = self.value_of(self.temperature)
        soft_labels = ops.softmax(teacher_tap / temperature)
        cross_entropy = -ops.sum(soft_labels * ops.log_softmax(student_tap / temperature), axis=-1)
        weights = soft_label_weights(student_tap, teacher_tap, labels)
        return temperature**2 * masked_mean(weights * cross_entropy, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        temperature = keras.saving.serialize_keras_object(self.temperature)
        return {**super().get_config(), "temperature": temperature}
