"""LossesDistiller: the base class of methods with a list of losses."""

import warnings

from tfkd import losses as losses_module
from tfkd import taps
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.preparation import Preparation
from tfkd.errors import UsageError


def _takes_part(loss):
    return loss.weight != 0 or loss.preparation is not None


class LossesDistiller(Distiller):
    """Base class that creates losses, finds their spots, prepares them and computes them.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)`, or None.
        losses: List of `tfkd.losses.DistillationLoss` objects or ids, or a single one.
        relational_scope: `"global"` or `"replica"`; see `Distiller`.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If the models do not fit each other (see `Distiller`), or a loss finds no
            spot in one of them.
    """

    def __init__(
        self,
        student,
        teacher,
        losses,
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        super().__init__(student, teacher, relational_scope, teacher_preprocessing, name=name)
        if isinstance(losses, (str, losses_module.DistillationLoss)):
            losses = [losses]
        if losses and teacher is None:
            raise UsageError("Distillation losses need a teacher: pass one, or losses=[].")
        self.distillation_losses = [losses_module.get(loss) for loss in losses]
        if teacher is not None and not any(map(_takes_part, self.distillation_losses)):
            warnings.warn(
                f"{type(self).__name__} has a teacher and no loss that distils: it trains the "
                "student on its labels alone. Leave losses out for kd, or pass no teacher.",
                stacklevel=3,
            )
        names = [loss.name for loss in self.distillation_losses]
        if len(set(names)) < len(names):
            raise UsageError(f"Losses need different names to be logged; received {names}.")
        self._spots = [self._pair(loss) for loss in self.distillation_losses]
        for loss, pairs in zip(self.distillation_losses, self._spots):
            loss.read_models(self.student, self.teacher, pairs)
            self.watch([student for student, _ in pairs], [teacher for _, teacher in pairs])

    def _pair(self, loss):
        """Returns `[(student tap, teacher tap), ...]`: where a loss distils.

        Different numbers of stages are an error and not matched in silence: neither equal sizes
        nor equal depth is right for all models. `taps.suggest_pairs` matches them in sight of the
        user.
        """
        if not isinstance(loss.spots, str):
            return loss.spots
        of_teacher = loss.teacher_spots or loss.spots
        of_student = taps.LOGITS if loss.spots == taps.TEACHERS else loss.spots
        student = taps.at_spots(self.student, of_student)
        teacher = taps.at_spots(self.teacher, of_teacher)
        if of_teacher.startswith(taps.TEACHERS):
            # The student has one place, for all of them.
            student = student * len(teacher)
        if len(student) != len(teacher):
            raise UsageError(
                f"Loss {loss.name!r} pairs the {loss.spots} of both models, and the student has "
                f"{len(student)} ({', '.join(student)}), the teacher {len(teacher)} "
                f"({', '.join(teacher)}): pass spots=[('student tap', 'teacher tap'), ...], or "
                "spots=tfkd.taps.suggest_pairs(student, teacher)."
            )
        return list(zip(student, teacher))

    def build(self, input_shape):
        """Creates the weights of the losses for inputs of this shape."""
        student, teacher = self.tap_shapes(input_shape)
        for loss, pairs in self.distillation_parts():
            if not loss.built:
                loss.build([student[tap] for tap, _ in pairs], [teacher[tap] for _, tap in pairs])

    def distillation_parts(self):
        """Returns `[(loss, [(student tap, teacher tap), ...]), ...]`."""
        return list(zip(self.distillation_losses, self._spots))

    def preparations(self):
        """Returns the preparations of losses before training, as a list of `Preparation`.

        A loss that is prepared, here or in the run whose weights were loaded, needs none.

        Raises:
            UsageError: If the shapes of the student's features are not known yet.
        """
        due = [part for part in self.distillation_parts() if part[0].preparation is not None]
        if due and not self.built:
            raise UsageError(
                f"Student {self.student.name!r} has not run yet, so its shapes are unknown: call "
                "the distiller on a batch first."
            )
        return [Preparation(self, *part) for part in due if not part[0].prepared.numpy()]

    def distillation_terms(self, batch, student, teacher, masks=None):
        """Computes every loss, at its spots.

        Args:
            batch: The `Batch`.
            student: `{tap: tensor}`, from `observe_student`.
            teacher: `{tap: tensor}`, from `observe_teacher`.
            masks: `{(student tap, teacher tap): mask}`, the samples `(batch,)` that each spot
                counts; None for all.

        Returns:
            `{name of the log: (weight, value)}`, for `objective()`.
        """
        terms = {}
        for loss, pairs in self.distillation_parts():
            if loss.weight == 0:
                # It is used in its preparation only.
                continue
            value = self.distillation_loss(
                loss,
                batch,
                [student[tap] for tap, _ in pairs],
                [teacher[tap] for _, tap in pairs],
                None if masks is None else [masks[pair] for pair in pairs],
            )
            terms[f"{loss.name}_loss"] = (loss.value_of(loss.weight), value)
        return terms
