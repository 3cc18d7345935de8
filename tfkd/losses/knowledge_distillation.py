"""KD: the teacher's softened class probabilities (Hinton et al., 2015)."""

import keras
from keras import ops

from tfkd.errors import UsageError, check_boolean, unknown
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.label_losses import BINARY, REGRESSION, kind_of, title_of
from tfkd.losses.numerics import standardize
from tfkd.schedules import number_or_schedule

ACTIVATIONS = ("softmax", "sigmoid")


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


def binary_kl_divergence(student_logits, teacher_logits, temperature=1.0):
    """KL divergence of softened yes-or-no predictions, per sample.

    Args:
        student_logits: Float32 tensor `(batch, classes)`.
        teacher_logits: Float32 tensor `(batch, classes)`.
        temperature: Positive number that divides both logits.

    Returns:
        A tensor `(batch,)`: the mean over the classes of
        `KL(Bernoulli(sigmoid(teacher / temperature)) || Bernoulli(sigmoid(student / temperature)))`
        in nats, not multiplied by the squared temperature.
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    # Logarithms of yes and of no, each from the logits: that of 1 - sigmoid would lose its digits.
    yes = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    no = ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.mean(yes + no, axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class KnowledgeDistillation(DistillationLoss):
    """Kullback-Leibler divergence between softened class probabilities.

    `temperature² · mean_i KL(softmax(t_i / temperature) ‖ softmax(s_i / temperature))`, on logits
    `(batch, classes)`. The squared temperature keeps the gradient's size as the temperature
    changes.

    Where each logit is a yes or no of its own, as in binary and multi-label classification, it is
    `temperature² · mean_i mean_c KL(sigmoid(t_ic / temperature) ‖ sigmoid(s_ic / temperature))`,
    that of one Bernoulli variable per class. The mean over the classes, not the sum, is what
    `keras.losses.BinaryCrossentropy` takes: the weights of both keep their meaning for any number
    of classes, and a teacher that is certain of the labels gives at temperature 1 that very loss.

    With `standardize` both logits are first brought to mean 0 and deviation 1 within each sample,
    so that the student must have the teacher's relations between classes, and not the size of its
    logits: `(z − mean_c z) / (std_c z + 1e-7)`, with the unbiased deviation. The published protocol
    for CIFAR-100 is `KnowledgeDistillation(2.0, weight=9.0, standardize=True)`, next to 0.1 times
    the cross-entropy. A part of its gain is that of the weight: for resnet32x4 and resnet8x4 the
    paper reports 73.60, 74.38 and 73.33 % without standardisation at the weights 0.9, 3 and 9, and
    74.14, 76.11 and 76.62 % with it.

    Args:
        temperature: Positive number, a schedule of such, or a
            `tfkd.schedules.CurriculumTemperature`, which learns. Defaults to 4, as in the CRD
            benchmark.
        weight: Number or schedule. Defaults to 0.9, next to 0.1 times the cross-entropy: the CRD
            benchmark's weights for KD alone. As a companion of another loss its protocol uses 1.
        activation: What makes probabilities of logits, `"softmax"` or `"sigmoid"`. Defaults to
            what the loss on the labels that the distiller is compiled with says: `"sigmoid"` for
            binary (focal) cross-entropy, otherwise `"softmax"`.
        standardize: Whether the logits are standardised, as above. Defaults to False.
        spots: Defaults to `"logits"`.

    Raises:
        UsageError: If `temperature` is not positive or `activation` none of these; if it is not
            given, and the loss on the labels is one of regression, whose outputs are no logits;
            in `call()`, if it is the softmax of a single logit, which is always 1.

    Example:
    ```python
    loss = tfkd.losses.KnowledgeDistillation(temperature=4.0)
    value = loss([student_logits], [teacher_logits])
    ```

    References:
        - [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531),
          section 2.
        - Weights: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
        - `standardize`: [Logit Standardization in Knowledge
          Distillation](https://arxiv.org/abs/2403.01427), tables 1, 2 and 4, and its code.
    """

    id = "kd"
    spots = "logits"
    compares_classes = True

    def __init__(self, temperature=4.0, weight=0.9, activation=None, standardize=False, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if activation not in (None, *ACTIVATIONS):
            raise unknown("activation", activation, ACTIVATIONS)
        self.temperature = number_or_schedule("temperature", temperature, positive=True)
        self.activation = activation
        check_boolean("standardize", standardize)
        self.standardize = standardize
        self._activation_of_labels = "softmax"
        self._check_standardized(activation)

    def _check_standardized(self, activation):
        if self.standardize and activation == "sigmoid":
            raise UsageError(
                f"Loss {self.name!r}: standardize=True compares the classes of a sample with each "
                "other, and with sigmoids each logit is a yes or no of its own: leave it out."
            )

    def match_labels(self, label_loss):
        """Chooses the activation by the loss on the labels, where none was given."""
        super().match_labels(label_loss)
        kind = kind_of(label_loss)
        if self.activation is None and kind == REGRESSION:
            raise UsageError(
                f"Loss {self.name!r} compares class probabilities, and the outputs that "
                f"{title_of(label_loss)} takes are no logits: take a loss of features, such "
                "as losses=['fitnet'], or say activation='softmax' if they are logits all the "
                "same."
            )
        self._activation_of_labels = "sigmoid" if kind == BINARY else "softmax"
        self._check_standardized(self.activation or self._activation_of_labels)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares `(batch, classes)` logits; see the class."""
        activation = self.activation or self._activation_of_labels
        if activation == "softmax" and student_tap.shape[-1] == 1:
            raise UsageError(
                f"Loss {self.name!r} compares the softmax of a single logit, which is always 1: "
                "compile with keras.losses.BinaryCrossentropy(from_logits=True), or say "
                "activation='sigmoid'."
            )
        of_samples = binary_kl_divergence if activation == "sigmoid" else kl_divergence
        if self.standardize:
            student_tap, teacher_tap = standardize(student_tap), standardize(teacher_tap)
        temperature = self.value_of(self.temperature)
        divergence = of_samples(student_tap, teacher_tap, temperature)
        return temperature**2 * masked_mean(divergence, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        temperature = keras.saving.serialize_keras_object(self.temperature)
        return {
            **super().get_config(),
            "temperature": temperature,
            "activation": self.activation,
            "standardize": self.standardize,
        }
