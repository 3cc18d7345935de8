"""Branched: students that share a trunk and differ in the rest, and teach each other."""

import keras
from keras import ops

from tfkd import losses, pictures, schedules, taps
from tfkd.distillers import checks
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.trainer import Untracked
from tfkd.errors import UsageError, check_nonnegative, check_number

#: The learner that is made of several branches.
ENSEMBLE = "ensemble"


def ramped(name, weight, epochs):
    """Returns a weight that grows to its value as the published ones of branched students do.

    Args:
        name: String, the argument's name, for the message.
        weight: Number of at least 0, or a schedule, which stays as it is.
        epochs: Number of epochs after which a number is reached; 0 for at once.

    Returns:
        A number or a `tfkd.schedules.Schedule`.
    """
    weight = schedules.number_or_schedule(name, weight, nonnegative=True)
    check_nonnegative("ramp", epochs)
    if isinstance(weight, schedules.Schedule) or not epochs:
        return weight
    return schedules.GaussianWarmUp(0.0, weight, epochs)


class Branched(Distiller):
    """Base class of methods whose student is one of several branches of a common trunk.

    The student is cut at a tap. What is in front is the trunk, which runs once; the rest of the
    student is the first branch, and copies of it, with other initial weights, are the others.
    `distiller.student` is the plain student, trunk and first branch; `ensemble()` is a learner
    that is made of several branches.

    A method implements `join` and `teach`, and makes its own layers in `build_ensemble`.

    Args:
        student: A functional `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        branches: Integer, how many, the student's own included.
        branch_at: Tap of the student at which the trunk ends: every path must pass through it.
            None for the end of the last stage but one.
        temperature: Positive number or schedule.
        distillation_weight: Number of at least 0 or schedule, of what branches learn from each
            other.
        ramp: Number of epochs over which a `distillation_weight` that is a number grows to its
            value, see `tfkd.schedules.GaussianWarmUp`; 0 for none.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, an argument is out of its range, or the student cannot
            be cut there, has no stage before its last, or has no pooled vector where one is
            needed.
    """

    needs_teacher = False
    label_terms = ("student_loss", "branches_loss", "ensemble_loss")
    #: The least number of branches.
    least_branches = 2
    #: Whether the method reads the pooled vectors of the branches.
    needs_pooled = False

    def __init__(
        self,
        student,
        teacher=None,
        branches=3,
        branch_at=None,
        temperature=3.0,
        distillation_weight=1.0,
        ramp=80.0,
        name=None,
    ):
        checks.models.refuse_teacher(type(self), teacher)
        super().__init__(student, name=name)
        least = self.least_branches
        check_number(
            "branches", branches, f"a whole number of at least {least}", lambda x: x >= least, int
        )
        self.branch_at = self._end_of_trunk() if branch_at is None else branch_at
        self.pooled = taps.at_spots(student, "pooled")[0] if self.needs_pooled else None
        seen = [self.pooled] if self.needs_pooled else []
        if seen and taps.in_order(student, [self.branch_at, *seen])[1:] != seen:
            raise UsageError(
                f"branch_at={self.branch_at!r} leaves the branches no pooled vector "
                f"{self.pooled!r} of their own: cut the student before it."
            )
        #: The branches beside the student's own, each `{tap: tensor}` of the features at the cut.
        self.copies = taps.copies(student, self.branch_at, branches - 1, seen)
        self.watch([self.branch_at, *seen])
        weight = ramped("distillation_weight", distillation_weight, ramp)
        self.kd = losses.KnowledgeDistillation(temperature, weight=weight)
        self._ensemble = Untracked(model=None)

    def _end_of_trunk(self):
        stages = taps.at_spots(self.student, "stages")
        if len(stages) < 2:
            raise UsageError(
                f"Student {self.student.name!r} has one stage ({', '.join(stages)}), and the trunk "
                "ends with the last but one: name the tap where it ends, branch_at=..."
            )
        return stages[-2]

    @property
    def branch_names(self):
        """The names of the branches after the first, as in logs."""
        return [copy.name for copy in self.copies]

    def build(self, input_shape):
        """Creates the ensemble's layers for inputs of this shape."""
        shapes, _ = self.tap_shapes(input_shape)
        spots = [shapes[taps.LOGITS]] * (len(self.copies) + 1)
        self.kd.build(spots, spots)
        self.build_ensemble(shapes)

    def build_ensemble(self, shapes):
        """Creates the method's own layers; by default there are none.

        Args:
            shapes: `{tap: shape}` of the student.
        """

    def join(self, branches, training):
        """Runs what joins the branches.

        Args:
            branches: Dictionary, as from `observe`, without what is joined.
            training: Whether the method's layers run in training mode.

        Returns:
            A dictionary of tensors `(batch, ...)` with `"ensemble"`, its float32 logits.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement join().")

    def teach(self, batch, branches):
        """Returns the terms of the objective, as `compute_losses` does.

        Args:
            batch: The `Batch`.
            branches: Dictionary, as from `observe`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement teach().")

    def compute_losses(self, batch):
        """Runs the trunk and every branch once; the branches learn from labels and each other."""
        branches = self.observe_branches(batch)
        return branches["logits"][0], self.teach(batch, branches)

    def observe_branches(self, batch, training=True):
        """Runs trunk and branches, and logs their accuracies; see `observe`."""
        branches = self.run_student(batch, self.student, self.observe, training)
        for name, logits in zip(self.branch_names, branches["logits"][1:]):
            self.track_accuracy(f"{name}_accuracy", logits, batch)
        self.track_accuracy(f"{ENSEMBLE}_accuracy", branches["ensemble"], batch)
        return branches

    def observe(self, inputs, training):
        """Runs trunk and branches once.

        Args:
            inputs: The student's inputs.
            training: Whether in training mode.

        Returns:
            A dictionary: `"trunk"`, the features at which the branches begin; `"pooled"`, where
            the method needs them, and `"logits"`, lists of one tensor per branch, the student's
            own first; and what `join` returns. Logits are float32.
        """
        return self._branch_out(self._observers.student(inputs, training=training), training)

    def _branch_out(self, student, training):
        """Runs the copies and the ensemble on the student's taps, symbolic ones too."""
        trunk = student[self.branch_at]
        ends = [student, *(copy(trunk, training=training) for copy in self.copies)]
        branches = {
            "trunk": trunk,
            "pooled": [end[self.pooled] for end in ends] if self.needs_pooled else [],
            "logits": [ops.cast(end[taps.LOGITS], "float32") for end in ends],
        }
        return {**branches, **self.join(branches, training)}

    def label_losses(self, batch, branches):
        """Returns the terms of the labels: the student's own, and the sum of the other branches'.

        Args:
            batch: The `Batch`.
            branches: Dictionary, as from `observe`.
        """
        own, *others = [self.student_loss(batch, logits) for logits in branches["logits"]]
        return {"student_loss": (1.0, own), "branches_loss": (1.0, sum(others))}

    def divergence(self, batch, pupils, targets):
        """Returns the pair of weight and sum of the divergences of logits from their targets.

        Args:
            batch: The `Batch`.
            pupils: List of logits `(batch, classes)`.
            targets: List of as many logits.
        """
        value = self.distillation_loss(self.kd, batch, pupils, targets)
        return self.kd.value_of(self.kd.weight), value

    def test_step(self, data):
        """Evaluates the student, the other branches and the ensemble; called by `evaluate`."""
        batch = self.unpack(data)
        return self.evaluated(batch, self.observe_branches(batch, training=False)["logits"][0])

    def learners(self):
        """Returns `{"ensemble": ensemble of the branches}`."""
        return {ENSEMBLE: self.ensemble()}

    def ensemble(self):
        """Returns trunk, branches and what joins them as one Keras model.

        It shares layers and weights with the distiller, is made of Keras' own parts, and can be
        saved and loaded without tfkd where the student can.

        Returns:
            A `keras.Model` that outputs the ensemble's logits `(batch, classes)`.
        """
        self.ensure_built()
        if self._ensemble.model is None:
            observer = self._observers.student
            logits = self._branch_out(observer.output, training=None)["ensemble"]
            self._ensemble.model = keras.Model(observer.input, logits, name=ENSEMBLE)
        return self._ensemble.model

    def pictures(self, history):
        """Returns `{"ID.png": ...}`: accuracies of the branches and the ensemble."""
        names = [*self.branch_names, *self.learners()]
        labels = {"student": "accuracy", **{name: f"{name}_accuracy" for name in names}}
        contents = pictures.accuracy_panels(labels)
        return {f"{self.id}.png": pictures.Panels(history, contents)}
