"""MLKD: predictions and their correlations (Jin et al., 2023)."""

import keras
from keras import ops

from tfkd.errors import UsageError, check_boolean, check_positive
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.knowledge_distillation import kl_divergence
from tfkd.losses.numerics import keep_selected, selection, standardize


def correlation_differences(student_logits, teacher_logits, temperature, selected):
    """Squared differences of the products of predictions, by class and by sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        temperature: Positive number that divides both logits.
        selected: Float32 tensor `(batch,)` of zeros and ones, the samples that count.

    Returns:
        `(by_class, by_sample)`, tensors `(classes,)` and `(batch,)`: the sums over the rows of
        `(PᵀP)_s − (PᵀP)_t` squared and of `(PPᵀ)_s − (PPᵀ)_t` squared, where `P` are the softmax of
        the logits divided by the temperature.
    """
    student, teacher = (
        keep_selected(ops.softmax(logits / temperature), selected)
        for logits in (student_logits, teacher_logits)
    )
    of_classes = ops.matmul(ops.transpose(student), student) - ops.matmul(
        ops.transpose(teacher), teacher
    )
    of_samples = ops.matmul(student, ops.transpose(student)) - ops.matmul(
        teacher, ops.transpose(teacher)
    )
    return ops.sum(ops.square(of_classes), axis=-1), ops.sum(ops.square(of_samples), axis=-1)


def at_most_the_median(values, counted):
    """Which of the counted values are not above their median.

    Args:
        values: Float32 tensor `(n,)`.
        counted: Float32 tensor `(n,)` of zeros and ones.

    Returns:
        A float32 tensor `(n,)` of zeros and ones; 0 where a value does not count.
    """
    ordered = ops.sort(ops.where(counted > 0, values, float("inf")))
    count = ops.maximum(ops.cast(ops.sum(counted), "int32"), 1)
    low, high = (ops.take(ordered, place) for place in ((count - 1) // 2, count // 2))
    return counted * ops.cast(values <= 0.5 * (low + high), "float32")


@keras.saving.register_keras_serializable(package="tfkd")
class MultiLevelLogitDistillation(DistillationLoss):
    """Divergence, class correlation and sample correlation of predictions at five temperatures.

    `Σ_T (f · KD_T + g · cc_T + f · bc_T)` on logits `(batch, classes)`: `KD_T` is `T²` times the
    mean divergence, as in `KnowledgeDistillation`, `cc_T = ‖P_sᵀ P_s − P_tᵀ P_t‖² / classes` and
    `bc_T = ‖P_s P_sᵀ − P_t P_tᵀ‖² / batch` with the predictions `P` at the temperature `T`.

    The paper means to leave out samples of which the teacher is more certain than of most, and
    classes that it predicts more than most. Its code multiplies these masks with means
    that are taken already, so that they select nothing: what remains are the shares `f` of samples
    and `g` of classes up to the median, about a half. That is the default here, since the published
    numbers come from it. With `select` the masks select.

    Args:
        temperatures: Sequence of positive numbers. Defaults to `(2, 3, 4, 5, 6)`.
        select: Whether samples and classes above the median are left out. Defaults to False: all
            count, times the share of the others.
        weight: Number or schedule. Defaults to 0.9, next to 0.1 times the cross-entropy: pass
            `student_loss_weight=0.1` to the distiller.
        standardize: Whether the logits of `KD_T` are first brought to mean 0 and deviation 1 within
            each sample, as `KnowledgeDistillation` describes; as published, those of `cc_T` and
            `bc_T` are not. Defaults to False.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If a temperature is not positive, there is none, or `select` or `standardize`
            is not True or False.

    Deviations: one view of each image, where the published training has a weakly and a strongly
    augmented one. There the cross-entropy and `KD_T` of both are added up, the strong view's at the
    temperatures 3, 4 and 5 and the weak view's at 2 and 6 once more; `cc_T` and `bc_T` are those of
    the weak view, as here.

    Example:
    ```python
    loss = tfkd.losses.MultiLevelLogitDistillation()
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Multi-level Logit Distillation](https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html),
          and its code, which gives the defaults.
        - `standardize`: [Logit Standardization in Knowledge
          Distillation](https://arxiv.org/abs/2403.01427), and its code.
    """

    id = "mlkd"
    spots = "logits"
    compares_classes = True
    relational = True

    def __init__(
        self,
        temperatures=(2.0, 3.0, 4.0, 5.0, 6.0),
        select=False,
        weight=0.9,
        standardize=False,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        self.temperatures = tuple(temperatures)
        if not self.temperatures:
            raise UsageError("temperatures must name at least one, such as (2.0, 3.0, 4.0).")
        for temperature in self.temperatures:
            check_positive("temperatures", temperature)
        check_boolean("select", select)
        self.select = select
        check_boolean("standardize", standardize)
        self.standardize = standardize

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        selected = selection(sample_mask, student_tap)
        predictions = keep_selected(ops.softmax(teacher_tap), selected)
        samples = at_most_the_median(ops.max(predictions, axis=-1), selected)
        by_class = ops.sum(predictions, axis=0)
        classes = at_most_the_median(by_class, ops.ones_like(by_class))
        if not self.select:
            # The same factor for all that count.
            samples = selected * ops.sum(samples) / ops.maximum(ops.sum(selected), 1.0)
            classes = ops.mean(classes)
        compared = [student_tap, teacher_tap]
        if self.standardize:
            compared = [standardize(logits) for logits in compared]
        value = 0.0
        for temperature in self.temperatures:
            divergence = temperature**2 * kl_divergence(*compared, temperature)
            of_classes, of_samples = correlation_differences(
                student_tap, teacher_tap, temperature, selected
            )
            value += masked_mean(divergence + of_samples, samples)
            value += ops.mean(classes * of_classes) * ops.mean(selected)
        return value

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "temperatures": list(self.temperatures),
            "select": self.select,
            "standardize": self.standardize,
        }
