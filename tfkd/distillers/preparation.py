"""Preparation: the training of a loss, before that of the student."""

from tfkd.distillers.distiller import Distiller
from tfkd.optimizers import SGD


class Preparation(Distiller):
    """Trains a loss before the student is trained with it.

    For example the paraphraser of factor transfer, or the student's features for activation
    boundaries. Made by `KnowledgeDistiller.preparations()`, compiled with the optimizer of the
    loss.

    Args:
        distiller: The `KnowledgeDistiller` whose loss it is.
        loss: A `DistillationLoss` with a `preparation`.
        pairs: List of `(student tap, teacher tap)`, where the loss distils.

    Logs: `loss`, the preparation loss.
    """

    same_classes = False

    def __init__(self, distiller, loss, pairs):
        super().__init__(
            distiller.student,
            distiller.teacher,
            distiller.relational_scope,
            distiller.teacher_preprocessing,
            name=f"preparation_{loss.name}",
        )
        self.prepared_loss = loss
        self._pairs = pairs
        self.watch([student for student, _ in pairs], [teacher for _, teacher in pairs])
        settings = {**loss.preparation}
        self.epochs = settings.pop("epochs")
        # The loss on the labels is no part of it, but the losses depend on its kind.
        labels = getattr(distiller, "label_loss", None)
        self.compile(SGD(**settings), labels, accumulation_steps=distiller.accumulation_steps)

    def ensure_built(self):
        """Marks it as built: the distiller has built all parts."""
        if not self.built:
            self.build(None)

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        loss = self.prepared_loss
        variables = list(loss.preparation_variables)
        if loss.prepares_student:
            variables += self.student.trainable_variables
        return {"optimizer": (self.optimizer, variables)}

    def finish(self):
        """Marks the loss as prepared; the mark is saved with its weights."""
        self.prepared_loss.prepared.assign(1)

    def compute_losses(self, batch):
        """Computes the preparation loss."""
        loss = self.prepared_loss
        teacher = self.observe_teacher(batch)
        student = self.observe_student(batch, training=loss.prepares_student)
        value = loss.preparation_loss(
            [student[tap] for tap, _ in self._pairs],
            [teacher[tap] for _, tap in self._pairs],
            training=True,
        )
        return None, {"preparation_loss": (1.0, value)}
