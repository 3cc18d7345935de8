"""DIST: which classes and which samples go together, not how much (Huang et al., 2022)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import correlation, keep_selected, selection
from tfkd.schedules import number_or_schedule


def relational_distances(student_logits, teacher_logits, temperature=1.0, sample_mask=None):
    """How far softened predictions are from a linear relation, by sample and by class.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        temperature: Positive number that divides both logits.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        `(inter, intra)`, scalars: one minus the correlation of the two models' probabilities,
        over the classes of a sample, averaged over the samples, and over the samples of a class,
        averaged over the classes.
    """
    selected = selection(sample_mask, student_logits)
    student, teacher = (
        ops.softmax(keep_selected(logits, selected) / temperature)
        for logits in (student_logits, teacher_logits)
    )
    inter = masked_mean(1 - correlation(student, teacher), selected)
    of_classes = correlation(ops.transpose(student), ops.transpose(teacher), selected)
    return inter, ops.mean(1 - of_classes) * ops.mean(selected)


@keras.saving.register_keras_serializable(package="tfkd")
class DistillationFromAStrongerTeacher(DistillationLoss):
    """One minus the correlation of softened predictions, over classes and over samples.

    `temperature² · (beta · inter + gamma · intra)` on logits `(batch, classes)`, with
    `p = softmax(logits / temperature)`, `inter = mean_i (1 − ρ(p_s[i, :], p_t[i, :]))`,
    `intra = mean_c (1 − ρ(p_s[:, c], p_t[:, c]))` and `ρ` Pearson's correlation. A student that is
    less certain than its teacher, but prefers the same classes and samples, pays nothing.

    Args:
        beta: Number, the weight of the relations within a sample. Defaults to 1.
        gamma: Number, the weight of the relations within a class. Defaults to 1.
        temperature: Positive number, or a schedule of such. Defaults to 4, as published for
            CIFAR-100; 1 for ImageNet.
        weight: Number or schedule. Defaults to 2, as published for CIFAR-100, next to the
            cross-entropy at 1.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If `temperature` is not positive.

    Deviations: the published code exists with and without the squared temperature; this is the
    one with it. A row or column that is constant up to rounding has no gradient, where the
    published one divides rounding errors by 1e-8. The intra part of a single sample is 1.

    Example:
    ```python
    loss = tfkd.losses.DistillationFromAStrongerTeacher()
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Knowledge Distillation from A Stronger Teacher](https://arxiv.org/abs/2205.10536),
          section 3, whose code gives the defaults.
    """

    id = "dist"
    spots = "logits"
    compares_classes = True
    relational = True

    def __init__(self, beta=1.0, gamma=1.0, temperature=4.0, weight=2.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.beta = beta
        self.gamma = gamma
        self.temperature = number_or_schedule("temperature", temperature, positive=True)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        temperature = self.value_of(self.temperature)
        inter, intra = relational_distances(student_tap, teacher_tap, temperature, sample_mask)
        return temperature**2 * (self.beta * inter + self.gamma * intra)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "beta": self.beta,
            "gamma": self.gamma,
            "temperature": keras.saving.serialize_keras_object(self.temperature),
        }
