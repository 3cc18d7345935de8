"""Teacher-free regularization: a teacher that is made up from the label (Yuan et al., 2020)."""

from keras import ops

from tfkd import losses, taps
from tfkd.distillers.checks import arguments
from tfkd.distillers.distiller import Distiller
from tfkd.errors import UsageError, check_nonnegative, check_positive, check_share


def virtual_teacher(labels, classes, confidence=0.99):
    """What a teacher would predict that is right about every image.

    Args:
        labels: Integer tensor `(batch,)`.
        classes: Integer, the number of classes, at least 2.
        confidence: Number from 0 to 1.

    Returns:
        A float32 tensor `(batch, classes)`: `confidence` at the label, and what remains of 1
        shared by the other classes.
    """
    is_label = ops.one_hot(labels, classes, dtype="float32")
    rest = (1 - confidence) / (classes - 1)
    return rest + (confidence - rest) * is_label


class TeacherFree(Distiller):
    """Trains a student on its labels and on a teacher that is made up from them.

    `loss = (1 − alpha) · student_loss + alpha · multiplier · virtual_teacher_loss`

    The virtual teacher's part is `mean_i KL(softmax(u_i / temperature) ‖ softmax(s_i))`, on logits
    `s (batch, classes)`; `u` is `confidence` at the label and `(1 − confidence) / (classes − 1)`
    elsewhere. No teacher is trained or run: it is a smoothing of the labels.

    The other method of the same paper, self-training, is `tfkd.KnowledgeDistiller` with `kd` and a
    teacher of the student's own kind, trained before.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        alpha: Number from 0 to 1. Defaults to 0.1, as published for ResNet-18.
        temperature: Positive number, which divides the virtual teacher's predictions, not the
            student's logits. Defaults to 20, as published for ResNet-18.
        confidence: Number from 0 to 1. Defaults to 0.99, from the published code.
        multiplier: Number of at least 0, a further weight of the virtual teacher's part. Defaults
            to 1. The published code divides this part by the number of classes, too, so that its
            multiplier, 100 for ResNet-18 on CIFAR-100, is `multiplier · classes` here.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, or a number is out of its range; in training, if the
            labels are no classes, or there are fewer than two.

    Example:
    ```python
    distiller = tfkd.TeacherFree(student)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, `student_loss` and `virtual_teacher_loss`, unweighted.

    Deviations: none from the code but the sum over the classes, see `multiplier`. The code softens
    the virtual teacher by a softmax of its probabilities divided by the temperature, which at 20
    leaves all classes within 5 % of each other, and does not soften the student.

    References:
        - [Revisiting Knowledge Distillation via Label Smoothing
          Regularization](https://arxiv.org/abs/1909.11723), and its code.
    """

    id = "teacher_free"
    needs_teacher = False
    needs_classes = True

    def __init__(
        self,
        student,
        teacher=None,
        alpha=0.1,
        temperature=20.0,
        confidence=0.99,
        multiplier=1.0,
        name=None,
    ):
        arguments.check_no_teacher(type(self), teacher)
        super().__init__(student, name=name)
        check_share("alpha", alpha)
        check_positive("temperature", temperature)
        check_share("confidence", confidence)
        check_nonnegative("multiplier", multiplier)
        self.student_loss_weight = 1 - alpha
        self.virtual_teacher_weight = alpha * multiplier
        self.temperature = temperature
        self.confidence = confidence
        # The temperature is of the virtual teacher alone, and is applied to it here.
        self.divergence = losses.KnowledgeDistillation(1.0, activation="softmax")

    def build(self, input_shape):
        """Checks the number of classes."""
        logits = self.tap_shapes(input_shape)[0][taps.LOGITS]
        if logits[-1] < 2:
            raise UsageError(
                f"TeacherFree needs at least two classes; student {self.student.name!r} outputs "
                f"logits of shape {logits}."
            )
        self.divergence.build([logits], [logits])

    def compute_losses(self, batch):
        """Runs the student once; it learns from the labels and from the virtual teacher."""
        logits = self.observe_student(batch)[taps.LOGITS]
        classes = logits.shape[-1]
        labels = batch.class_numbers(classes)
        teacher = virtual_teacher(labels, classes, self.confidence) / self.temperature
        value = self.distillation_loss(self.divergence, batch, [logits], [teacher])
        return logits, {
            "student_loss": (self.student_loss_weight, self.student_loss(batch, logits)),
            "virtual_teacher_loss": (self.virtual_teacher_weight, value),
        }
