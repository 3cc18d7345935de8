"""DKD: the labelled class apart from the others (Zhao et al., 2022)."""

import keras
from keras import ops

from tfkd.errors import check_boolean
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import standardize
from tfkd.schedules import number_or_schedule


def decoupled_divergence(student_logits, teacher_logits, labels, temperature=1.0):
    """The two parts of the divergence of softened predictions, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        labels: Integer tensor `(batch,)`.
        temperature: Positive number that divides both logits.

    Returns:
        `(target, others)`, tensors `(batch,)`: the divergence of the predictions "labelled class
        or another", and that of the predictions among the other classes.
    """
    is_label = ops.one_hot(labels, student_logits.shape[-1], dtype="float32")
    student_target, student_others = _decouple(student_logits / temperature, is_label)
    teacher_target, teacher_others = _decouple(teacher_logits / temperature, is_label)
    return (
        _divergence(student_target, teacher_target),
        _divergence(student_others, teacher_others),
    )


def without_label(logits, is_label):
    """Puts -1e9 in place of each sample's labelled class, whose softmax is then 0.

    Args:
        logits: Float32 tensor `(batch, classes)`.
        is_label: Float32 tensor `(batch, classes)`, the labels one-hot.

    Returns:
        A tensor of the same shape.
    """
    return ops.where(is_label > 0, -1e9, logits)


def _decouple(logits, is_label):
    """Returns log-probabilities of (label, not label), and among the classes but the label."""
    others = without_label(logits, is_label)
    total = ops.logsumexp(logits, axis=-1)
    label = ops.sum(is_label * logits, axis=-1) - total
    not_label = ops.logsumexp(others, axis=-1) - total
    return ops.stack([label, not_label], axis=-1), ops.log_softmax(others)


def _divergence(student_log, teacher_log):
    return ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class DecoupledKnowledgeDistillation(DistillationLoss):
    """Knowledge distillation with separate weights for the labelled class and the others.

    `temperature² · mean_i [alpha · KL(b_t ‖ b_s) + beta · KL(q_t ‖ q_s)]`, on logits
    `(batch, classes)` divided by the temperature: `b` are the probabilities of the labelled class
    and of all others together, `q` those among the other classes alone.

    Args:
        alpha: Number, the weight of the labelled class's part. Defaults to 1.
        beta: Number, the weight of the others' part. Defaults to 8, as published for most pairs
            on CIFAR-100.
        temperature: Positive number, a schedule of such, or a
            `tfkd.schedules.CurriculumTemperature`, which learns. Defaults to 4.
        weight: Number or schedule. Defaults to 1, next to the cross-entropy at 1.
        standardize: Whether both logits are first brought to mean 0 and deviation 1 within each
            sample, as `KnowledgeDistillation` describes. Defaults to False. The published protocol
            adds `temperature=2` and, for CIFAR-100, a `beta` of its own for each pair of models.
        spots: Defaults to `"logits"`.

    `call()` needs `labels`, integers `(batch,)`.

    Raises:
        UsageError: If `temperature` is not positive, or labels are missing.

    Deviations: the published training raises the weight over the first 20 epochs, from a
    twentieth in the first: pass `weight=tfkd.schedules.LinearWarmUp(0.05, 1.0, epochs=19)`.

    Example:
    ```python
    loss = tfkd.losses.DecoupledKnowledgeDistillation()
    value = loss([student_logits], [teacher_logits], labels=labels)
    ```

    References:
        - [Decoupled Knowledge Distillation](https://arxiv.org/abs/2203.08679), section 3, whose
          code gives the defaults.
        - `standardize`: [Logit Standardization in Knowledge
          Distillation](https://arxiv.org/abs/2403.01427).
    """

    id = "dkd"
    spots = "logits"
    needs_labels = True
    compares_classes = True

    def __init__(
        self, alpha=1.0, beta=8.0, temperature=4.0, weight=1.0, standardize=False, **kwargs
    ):
        super().__init__(weight=weight, **kwargs)
        self.alpha = alpha
        self.beta = beta
        self.temperature = number_or_schedule("temperature", temperature, positive=True)
        check_boolean("standardize", standardize)
        self.standardize = standardize

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        temperature = self.value_of(self.temperature)
        if self.standardize:
            student_tap, teacher_tap = standardize(student_tap), standardize(teacher_tap)
        target, others = decoupled_divergence(student_tap, teacher_tap, labels, temperature)
        value = masked_mean(self.alpha * target + self.beta * others, sample_mask)
        return temperature**2 * value

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "temperature": keras.saving.serialize_keras_object(self.temperature),
            "standardize": self.standardize,
        }
