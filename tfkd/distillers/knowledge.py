"""KnowledgeDistiller: one teacher, one student, any list of losses."""

from tfkd import taps
from tfkd.distillers.losses_distiller import LossesDistiller
from tfkd.errors import check_nonnegative


class KnowledgeDistiller(LossesDistiller):
    """Trains a student on its labels and on any list of distillation losses.

    `loss = student_loss_weight · student_loss + Σ weight_i · loss_i (+ regularizers)`

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits, or a list of several; None to train
            on labels alone. Its classes may differ where no loss compares logits.
        losses: List of `tfkd.losses.DistillationLoss` objects, each with its `weight`, or ids
            such as `"kd"`. Defaults to `["kd"]` where there is a teacher.
        student_loss_weight: Number, the weight of the loss on the labels. Defaults to 0.1 where
            `kd` is the only loss and to 1 otherwise, as in the CRD benchmark.
        relational_scope: `"global"` or `"replica"`; see `Distiller`.
        teacher_preprocessing: From the student's inputs to the teacher's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If the models do not fit each other, or a loss finds no spot in one of them.

    Example:
    ```python
    kd = tfkd.losses.KnowledgeDistillation(temperature=4.0)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=[kd])
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, `student_loss`, `distillation_loss` (the weighted sum) and each loss by name,
    unweighted: `kd_loss`.

    References:
        - [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531)
        - Default weights: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    same_classes = False

    def __init__(
        self,
        student,
        teacher=None,
        losses=None,
        student_loss_weight=None,
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        if losses is None:
            losses = [] if teacher is None else ["kd"]
        super().__init__(student, teacher, losses, relational_scope, teacher_preprocessing, name)
        if student_loss_weight is None:
            names = [loss.name for loss in self.distillation_losses]
            student_loss_weight = 0.1 if names == ["kd"] else 1.0
        check_nonnegative("student_loss_weight", student_loss_weight)
        self.student_loss_weight = student_loss_weight

    def compute_losses(self, batch):
        """Runs both models once and returns the loss on the labels and those of the list."""
        teacher = self.observe_teacher(batch)
        student = self.observe_student(batch)
        logits = student[taps.LOGITS]
        return logits, {
            "student_loss": (self.student_loss_weight, self.student_loss(batch, logits)),
            **self.distillation_terms(batch, student, teacher),
        }
