"""KnowledgeDistiller: one teacher, one student, any list of losses."""

import tensorflow as tf

from tfkd import losses as losses_module
from tfkd import runtime, taps
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.preparation import Preparation
from tfkd.errors import UsageError


class KnowledgeDistiller(Distiller):
    """Trains a student on its labels and on any list of distillation losses.

    `loss = student_loss_weight · student_loss + Σ weight_i · loss_i (+ regularizers)`

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)`; None trains the
            student on its labels alone.
        losses: List of `tfkd.losses.DistillationLoss` objects or ids such as `"kd"`. Each is
            multiplied by its own `weight`. Defaults to `["kd"]` where there is a teacher.
        student_loss_weight: Number, the weight of the loss on the labels. Defaults to 0.1 where
            `kd` is the only loss and to 1 otherwise, as in the CRD benchmark.
        relational_scope: `"global"` or `"replica"`; see `Distiller`.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If the models do not fit each other (see `Distiller`), or a loss finds no
            spot in one of them.

    Example:
    ```python
    distiller = tfkd.KnowledgeDistiller(
        student, teacher, losses=[tfkd.losses.KnowledgeDistillation(temperature=4.0)]
    )
    distiller.compile(
        optimizer="sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, `student_loss`, `distillation_loss` (the weighted sum) and each loss under its
    own name with `_loss` appended, unweighted: `kd_loss`.

    References:
        - [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531)
        - Protocol and default weights: the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

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
        super().__init__(student, teacher, relational_scope, teacher_preprocessing, name=name)
        if isinstance(losses, (str, losses_module.DistillationLoss)):
            losses = [losses]
        if losses is None:
            losses = [] if teacher is None else ["kd"]
        if losses and teacher is None:
            raise UsageError("Distillation losses need a teacher: pass one, or losses=[].")
        self.distillation_losses = [losses_module.get(loss) for loss in losses]
        names = [loss.name for loss in self.distillation_losses]
        if len(set(names)) < len(names):
            raise UsageError(f"Losses need different names to be logged; received {names}.")
        if student_loss_weight is None:
            student_loss_weight = 0.1 if names == ["kd"] else 1.0
        if not isinstance(student_loss_weight, (int, float)) or student_loss_weight < 0:
            raise UsageError(
                f"student_loss_weight must be a number of at least 0; received "
                f"{student_loss_weight!r}."
            )
        self.student_loss_weight = student_loss_weight
        self._spots = [self._pair(loss) for loss in self.distillation_losses]
        for pairs in self._spots:
            self.watch([student for student, _ in pairs], [teacher for _, teacher in pairs])
        if losses:
            active = [loss.name for loss in self.distillation_losses if loss.weight != 0]
            for part in ("student", "distillation", *active):
                self.add_tracker(f"{part}_loss")
        if taps.output(student) is not None:
            self.build(student.input_shape)

    def _pair(self, loss):
        """Returns `[(student tap, teacher tap), ...]`: where a loss distils.

        Different numbers of stages are an error rather than matched in silence: which stages
        belong together decides what is learned, and neither equal sizes nor equal depth is right
        for all models. `taps.suggest_pairs` matches them, where a user can read what it chose.
        """
        if not isinstance(loss.spots, str):
            return loss.spots
        student = taps.at_spots(self.student, loss.spots)
        teacher = taps.at_spots(self.teacher, loss.spots)
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
        runtime.synchronize_batch_normalization(self)
        self.built = True

    def distillation_parts(self):
        """Returns `[(loss, [(student tap, teacher tap), ...]), ...]`."""
        return list(zip(self.distillation_losses, self._spots))

    def preparations(self):
        """Returns what is to be trained before the student, as a list of `Preparation`.

        A loss that has been prepared, here or in the run whose weights were loaded, needs none.
        """
        return [
            Preparation(self, loss, pairs)
            for loss, pairs in self.distillation_parts()
            if loss.preparation is not None and not float(loss.prepared)
        ]

    def prepare(self, x=None, y=None, epochs=None, verbose="auto", **kwargs):
        """Runs the stage before training that some losses need; `fit` does it where it is due.

        Args:
            x: As in `fit`.
            y: As in `fit`.
            epochs: Integer, for how long; None for what each loss asks for.
            verbose: As in `fit`.
            **kwargs: Other arguments of `keras.Model.fit` that describe the data, such as
                `batch_size` or `steps_per_epoch`.

        Raises:
            UsageError: If the shapes of the student's features are not known yet.
        """
        if any(loss.preparation is not None for loss in self.distillation_losses):
            if not self.built:
                raise UsageError(
                    f"Student {self.student.name!r} has not run yet, so its shapes are unknown: "
                    "call the distiller on a batch first."
                )
            for preparation in self.preparations():
                if verbose:
                    print(f"Preparing loss {preparation.prepared_loss.name!r}")
                preparation.fit(
                    x, y, epochs=epochs or preparation.epochs, verbose=verbose, **kwargs
                )
                preparation.finish()

    def fit(self, x=None, y=None, **kwargs):
        """Trains the student, after the preparation that a loss may need; see `prepare`."""
        of_data = ("batch_size", "sample_weight", "class_weight", "steps_per_epoch", "shuffle")
        described = {name: kwargs[name] for name in of_data if name in kwargs}
        self.prepare(x, y, verbose=kwargs.get("verbose", "auto"), **described)
        return super().fit(x, y, **kwargs)

    def start_epoch(self, epoch):
        """Tells the losses, whose weights and temperatures may be schedules."""
        super().start_epoch(epoch)
        for loss in self.distillation_losses:
            loss.start_epoch(epoch)

    def train_step(self, data):
        """Runs both models once and takes one step on the weighted sum of all losses."""
        batch = self.unpack(data)
        teacher = self.observe_teacher(batch)
        with tf.GradientTape() as tape:
            student = self.observe_student(batch)
            terms = {
                "student_loss": (
                    self.student_loss_weight,
                    self.student_loss(batch, student["logits"]),
                )
            }
            for loss, pairs in self.distillation_parts():
                if loss.weight == 0:
                    # It acts in its preparation only.
                    continue
                value = self.distillation_loss(
                    loss,
                    batch,
                    [student[tap] for tap, _ in pairs],
                    [teacher[tap] for _, tap in pairs],
                )
                terms[f"{loss.name}_loss"] = (loss.value_of(loss.weight), value)
            objective = self.objective(batch, terms)
        self.update(tape, objective, self.optimizer, self.trainable_variables)
        return self.logs(batch, student["logits"])
