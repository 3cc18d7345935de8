"""LearnersDistiller: the base class of methods whose student has auxiliary learners."""

import keras
from keras import ops

from tfkd import pictures, taps
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.trainer import Untracked
from tfkd.errors import UsageError, unknown
from tfkd.layers import AuxiliaryLearner

#: The name of the student as a learner.
MAIN = "main"


class LearnersDistiller(Distiller):
    """Base class that puts auxiliary learners on the stages of the plain student.

    Each classifies by the features of an intermediate stage, which it brings to the shape of the
    last one. Learners are called `auxiliary1` (after the first stage), `auxiliary2`, ... and
    `main`, the student itself. They are trained with the student and are no part of it; an early
    exit is the student up to a stage with the learner there, a model by itself.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model`, or None.
        stages: List of taps of the student that are maps, in the order in which it computes
            them, its last feature map at the end. None for its stages as `tfkd.taps` finds them.
        auxiliary_learners: Integer, how many intermediate stages get a learner, from the last one
            down; −1 for all.
        auxiliary_design: `"separable"` or `"bottleneck"`; see `tfkd.layers.AuxiliaryLearner`.
        relational_scope: `"global"` or `"replica"`; see `Distiller`.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If the stages are none of the student's, or there are not as many.
    """

    #: The least number of auxiliary learners.
    fewest_learners = 1

    def __init__(
        self,
        student,
        teacher=None,
        stages=None,
        auxiliary_learners=-1,
        auxiliary_design="separable",
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        super().__init__(student, teacher, relational_scope, teacher_preprocessing, name=name)
        self.auxiliary_design = auxiliary_design
        self.stages = find_stages(self.student, stages)
        self.auxiliary_stages = self._auxiliary_stages(auxiliary_learners)
        self._joined = Untracked(models={})
        self.watch(self.stages)

    def _auxiliary_stages(self, number):
        """Returns `{learner's name: position of its stage}`."""
        intermediate, fewest = len(self.stages) - 1, self.fewest_learners
        if number != 0 and intermediate < 1:
            raise UsageError(
                f"Student {self.student.name!r} has one stage ({', '.join(self.stages)}), and "
                "auxiliary learners need an intermediate one: name at least two taps, stages=[...]."
            )
        if type(number) is not int or not (number == -1 or fewest <= number <= intermediate):
            raise UsageError(
                f"auxiliary_learners must be -1 (all) or {fewest} to {intermediate}, the number of "
                f"the student's intermediate stages; received {number!r}."
            )
        first = 0 if number == -1 else intermediate - number
        return {f"auxiliary{stage + 1}": stage for stage in range(first, intermediate)}

    def build(self, input_shape):
        """Creates the auxiliary learners for inputs of this shape."""
        shapes = self.tap_shapes(input_shape)[0]
        self.auxiliary = self.make_learners(shapes, self.stages, self.student)

    def make_learners(self, shapes, stages, model):
        """Returns new auxiliary learners of a model, `{learner: layer}`.

        Args:
            shapes: `{tap: shape}` of the model.
            stages: List of its taps, as many as the student's.
            model: The `keras.Model`, for its precision.

        Raises:
            UsageError: If a stage is no map.
        """
        for stage in stages:
            if len(shapes[stage]) != 4:
                raise UsageError(
                    f"stages must be maps (batch, height, width, channels); {stage!r} has shape "
                    f"{shapes[stage]}."
                )
        made = {}
        for learner, stage in self.auxiliary_stages.items():
            made[learner] = AuxiliaryLearner(
                [shapes[following][1:] for following in stages[stage + 1 :]],
                shapes[taps.LOGITS][-1],
                self.auxiliary_design,
                name=learner,
                dtype=model.dtype_policy,
            )
            made[learner].build(shapes[stages[stage]])
        return made

    def run_learners(self, student, training=False):
        """Runs the auxiliary learners on the student's features.

        Args:
            student: `{tap: tensor}`, as from `observe_student`.
            training: Whether they run in training mode.

        Returns:
            The pair `(maps, logits)`: `{learner: map}` and `{learner: logits}`, `main` the last.
        """
        return self.run_on(student, self.auxiliary, self.stages, training)

    def run_on(self, observed, learners, stages, training):
        """Runs the auxiliary learners of a model; see `run_learners` and `make_learners`."""
        maps, logits = {}, {}
        for learner, layer in learners.items():
            features = observed[stages[self.auxiliary_stages[learner]]]
            maps[learner], logits[learner] = runner(layer, features)(features, training=training)
        maps[MAIN], logits[MAIN] = observed[stages[-1]], observed[taps.LOGITS]
        return maps, logits

    def learn_labels(self, batch, logits):
        """Returns the student's loss on the labels, and the sum of the auxiliary learners'.

        Args:
            batch: The `Batch`.
            logits: `{learner: logits}`.
        """
        own = {learner: self.student_loss(batch, tensor) for learner, tensor in logits.items()}
        return own.pop(MAIN), sum(own.values())

    def track_learners(self, batch, logits):
        """Logs the accuracies of all learners but the student, which has its own metrics."""
        for learner, tensor in logits.items():
            if learner != MAIN:
                self.track_accuracy(f"{learner}_accuracy", tensor, batch)

    def test_step(self, data):
        """Evaluates the student, and the auxiliary learners beside it; called by `evaluate`."""
        batch = self.unpack(data)
        logits = self.run_student(batch, self.student, self.all_logits, training=False)
        self.track_learners(batch, logits)
        return self.evaluated(batch, logits[MAIN])

    def all_logits(self, inputs, training):
        """Returns `{learner: logits}` for some inputs."""
        return self.run_learners(self._observers.student(inputs, training=training), training)[1]

    def learners(self):
        """Returns `{learner: early exit}`; nothing where the student is subclassed."""
        if not isinstance(self._observers.student, keras.Model):
            return {}
        return {learner: self.early_exit(learner) for learner in self.auxiliary_stages}

    def early_exit(self, learner):
        """Returns the student up to a stage, with the auxiliary learner there, as a Keras model.

        It shares its layers and weights with the distiller, is made of Keras' own layers, and can
        be saved and loaded without tfkd where the student can.

        Args:
            learner: String, such as `"auxiliary1"`.

        Returns:
            A `keras.Model` that outputs logits `(batch, classes)`.

        Raises:
            UsageError: If there is no such learner, or the student is subclassed.
        """
        if learner not in self.auxiliary_stages:
            raise unknown("auxiliary learner", learner, self.auxiliary_stages)
        return self.joined(learner, lambda student: self.run_learners(student, None)[1][learner])

    def joined(self, name, run):
        """Returns the student and what follows its taps as one Keras model, made once.

        Args:
            name: String, what the model is called after the student.
            run: Function of the student's taps, symbolic, `{tap: tensor}`, that returns the
                output.
        """
        self.ensure_built()
        if name not in self._joined.models:
            observer = self._observers.student
            if not isinstance(observer, keras.Model):
                raise UsageError(
                    f"Student {self.student.name!r} is subclassed, so it cannot be joined with "
                    "the learners in one Keras model; a functional model can."
                )
            self._joined.models[name] = keras.Model(
                observer.input, run(observer.output), name=f"{self.student.name}_{name}"
            )
        return self._joined.models[name]

    def pictures(self, history):
        """Returns a picture of the accuracies of all learners, named after the method."""
        names = {name: f"{name}_accuracy" for name in self.auxiliary_stages}
        logs = {**names, "main (the student)": "accuracy"}
        contents = pictures.accuracy_panels(logs)
        return {f"{self.id}.png": pictures.Panels(history, contents)}


def find_stages(model, stages, argument="stages", role="student"):
    """Returns the taps at the ends of a model's stages.

    Args:
        model: `keras.Model`.
        stages: List of taps; None for those that `tfkd.taps` finds.
        argument: String, the name of the argument, for messages.
        role: `"student"` or `"teacher"`, for messages.

    Raises:
        UsageError: If they are no different taps of the model in its order.
    """
    if stages is None:
        return taps.at_spots(model, "stages")
    names = list(stages) if isinstance(stages, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"{argument} must be a list of taps of the {role}, its last feature map at the end; "
            f"received {stages!r}."
        )
    taps.check(model, names)
    in_order = len(set(names)) == len(names)
    if taps.output(model) is not None:
        in_order = in_order and names == taps.in_order(model, names)
    if not in_order:
        raise UsageError(
            f"{argument} must be different taps in the order in which the {role} computes them; "
            f"received {', '.join(names)}."
        )
    return names


def pooled(maps):
    """Returns the mean over the positions of every map, `{learner: vector}`."""
    return {learner: ops.mean(tensor, axis=(1, 2)) for learner, tensor in maps.items()}


def runner(layer, tensor):
    """Returns the layer, or its `call` for symbolic tensors.

    So a functional model of it consists of Keras' layers, which load without tfkd.
    """
    return layer.call if keras.utils.is_keras_tensor(tensor) else layer
