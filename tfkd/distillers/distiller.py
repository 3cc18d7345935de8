"""Distiller: the base class of all methods, with everything of a step but the algorithm."""

import tensorflow as tf
from keras import ops

from tfkd import optimizers, runtime, schedules, taps
from tfkd.distillers import checks
from tfkd.distillers.trainer import Trainer, Untracked
from tfkd.errors import UsageError, check_one_of
from tfkd.inspection import check
from tfkd.losses.label_losses import BINARY, kind_of
from tfkd.training.divergence import TOTAL


class Distiller(Trainer):
    """Trains a student under a teacher; the base class of every method.

    `fit` trains the student; `evaluate`, `predict` and calling the distiller run the student
    alone. `distiller.student` is, and stays, the plain Keras model that was passed in, and
    `distiller.save(path)` saves that model.

    A method implements `compute_losses`:

    ```python
    def compute_losses(self, batch):
        teacher = self.observe_teacher(batch)["logits"]
        student = self.observe_student(batch)["logits"]
        return student, {
            "student_loss": (0.1, self.student_loss(batch, student)),
            "kd_loss": (0.9, self.distillation_loss(self.kd, batch, [student], [teacher])),
        }
    ```

    Gradients, replicas, precision, regularizers, logs and evaluation follow from it. A method of
    several optimizers names them in `extra_optimizers` and `optimizers`, and overrides
    `train_step`. Layers and losses with weights are attributes, which `build` builds.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)`. It is run in
            inference mode, without gradients, and never changed. A list of several is joined by
            `tfkd.models.ensemble`: their mean teaches, and losses such as `aekd` weigh them. None
            for methods without one.
        relational_scope: `"global"`: losses that compare samples with each other see the whole
            batch of all replicas, so that N devices give what one gives. `"replica"`: only the
            replica's own part, which saves the exchange.
        teacher_preprocessing: Keras layer or function of a batch of the student's inputs that
            returns the teacher's, such as `tfkd.layers.TeacherPreprocessing`. It runs once per
            step, in inference mode and without gradient. None where both take the same. Beside
            several teachers one for all, or a list with one for each. Where batches carry images
            for the teacher (`tfkd.data.load(..., teacher_image_size=224)`) it gets these, and
            what would resize the student's leaves them as they are.
        name: String, optional.

    Raises:
        UsageError: If the models share variables, differ in their number of classes or in the
            shape of their inputs, or output probabilities instead of logits.
    """

    #: The method's short name in configs; None for a class that is not a method by itself.
    id = None
    #: The weight of the loss on the labels.
    student_loss_weight = 1.0
    #: The terms of `compute_losses` that are losses on the labels; the others distil.
    label_terms = ("student_loss",)
    #: The names of those of `learners()` that are classifiers like the student.
    peer_names = ()
    #: Whether the method has a teacher; configs pass one then.
    needs_teacher = True
    #: Whether its constructor takes `students`, a list, in place of one student.
    takes_students = False
    #: Whether its constructor takes the `image_mean` and `image_std` of the data.
    needs_image_range = False
    #: Whether the teacher must have the student's classes.
    same_classes = True
    #: Whether every image must be of one class, so that other losses on the labels are refused.
    needs_classes = False
    #: The kind of training step in this epoch; None for methods with one kind.
    phase = None
    #: How many steps of the student's optimizer a training step takes.
    student_steps = 1
    #: The gradient of variables on which the objective does not depend; see `update`.
    unconnected = "none"

    def __new__(cls, *args, **kwargs):
        """Raises a clear error for unknown arguments."""
        checks.arguments.check_constructor_arguments(cls, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        student,
        teacher=None,
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        runtime.check_strategy(tf.distribute.get_strategy())
        if teacher is None and self.id is not None and self.needs_teacher:
            raise UsageError(f"{type(self).__name__} needs a teacher: pass a trained keras.Model.")
        if isinstance(teacher, (list, tuple)):
            teacher = checks.models.joined(student, teacher, teacher_preprocessing)
            teacher_preprocessing = None
        checks.models.check_models(student, teacher, teacher_preprocessing, self.same_classes)
        super().__init__(student, name=name)
        check_one_of("relational_scope", relational_scope, ("global", "replica"))
        self.relational_scope = relational_scope
        self._frozen = Untracked(teacher=teacher, preprocessing=teacher_preprocessing)
        self._observers = Untracked(student=None, teacher=None)
        self._watched = Untracked(student=[], teacher=[])
        self.watch()

    @property
    def teacher(self):
        """The teacher, frozen; None for methods without one."""
        return self._frozen.teacher

    @property
    def teacher_preprocessing(self):
        """The layer or function from the student's inputs to the teacher's, or None."""
        return self._frozen.preprocessing

    def teacher_inputs(self, inputs):
        """Returns the teacher's inputs for some of the student's."""
        return checks.models.preprocessed(self.teacher_preprocessing, inputs)

    def __dir__(self):
        # Keras saves all attributes with weights that it finds here; the teacher is not saved.
        return [x for x in super().__dir__() if x not in ("teacher", "teacher_preprocessing")]

    # The interface between a method and the base class.

    def watch(self, student=(), teacher=()):
        """Adds taps to the outputs of `observe_student` and `observe_teacher`.

        Args:
            student: Iterable of taps of the student.
            teacher: Iterable of taps of the teacher.

        Raises:
            UsageError: If a model has no such tap.
        """
        for role, model, wanted in (
            ("student", self.student, student),
            ("teacher", self.teacher, teacher),
        ):
            if model is None:
                continue
            watched = getattr(self._watched, role)
            watched.extend(tap for tap in wanted if tap not in watched)
            setattr(self._observers, role, taps.extractor(model, watched))

    def tap_shapes(self, input_shape):
        """Returns the shapes of all watched taps.

        Args:
            input_shape: Shape of the models' input, the batch included.

        Returns:
            `{tap: shape}` of the student and of the teacher; empty for a teacher that is None.
        """
        student, teacher = self._observers.student, self._observers.teacher
        shapes = {} if teacher is None else taps.shapes(teacher, input_shape, self.teacher_inputs)
        return taps.shapes(student, input_shape), shapes

    def value_of(self, number_or_schedule):
        """Returns a number as it is, and a schedule's value at the current epoch."""
        if isinstance(number_or_schedule, schedules.Schedule):
            return number_or_schedule(self._epoch)
        return number_or_schedule

    def distillation_parts(self):
        """Returns `[(loss, [(student tap, teacher tap), ...]), ...]`; by default none."""
        return []

    def learners(self):
        """Returns `{name: keras.Model}` of further classifiers in training; by default none.

        They are evaluated with the student, and logged as `val_{name}_accuracy`.
        """
        return {}

    def pictures(self, history):
        """Returns `{file name: picture}`, such as a `tfkd.pictures.Panels`; by default none.

        Args:
            history: What `fit` returned, or a list of the logs of each epoch, `{name: value}`.
        """
        return {}

    def epoch_pictures(self, history, inputs, labels, class_names):
        """Returns `{file name: picture}` of an epoch, as `pictures`; drawn after every epoch.

        Args:
            history: List of the logs of each epoch so far, `{name: value}`.
            inputs: A few validation images, as the student takes them, the same in every epoch.
            labels: Their labels, integers.
            class_names: List of strings.
        """
        return {}

    def warnings(self, inputs):
        """Returns a list of warnings about some inputs, for `check`."""
        return []

    def check(self, x, y=None, sample_weight=None, *, batch_size=32, batches=20):
        """Checks models, losses and data before training, in one pass over some data.

        It changes no variable, metric or random state.

        Args:
            x: Data as the student will see it, preferably validation data: as in `fit`, or a tuple
                of arrays `(inputs, labels)` or `(inputs, labels, sample weights)`.
            y: Array of labels, where `x` is an array.
            sample_weight: Array of sample weights, where `x` is an array, or None.
            batch_size: Integer, of arrays, which are read in a fixed random order.
            batches: Integer, the largest number of batches to read.

        Returns:
            A `tfkd.inspection.CheckResult`: accuracies, outputs and sizes of both models, every
            loss at the start, and `warnings`. `print` shows it as a table.

        Raises:
            UsageError: If the distiller is not compiled, its student's shapes are unknown, or
                labels are missing or outside of the classes.

        Example:
        ```python
        print(distiller.check(data.validation))
        ```
        """
        return check.check(self, x, y, sample_weight, batch_size, batches)

    # Steps.

    def call(self, inputs, training=None):
        """Runs the student."""
        return self.student(inputs, training=training)

    def train_step(self, data):
        """Takes one training step on the losses of `compute_losses`; called by `fit`."""
        batch = self.unpack(data)
        if self.distillation_parts():
            # Outside of the tape, which would keep its activations.
            self.observe_teacher(batch)
        return self.logs(batch, self.learn(batch))

    def learn(self, batch, *given):
        """Takes one step of every optimizer of the students, and returns the student's logits.

        Args:
            batch: The `Batch`.
            *given: Further arguments of the method's `compute_losses`.
        """
        steps = self.student_optimizers().values()
        apart = [optimizers.takes_two_gradients(optimizer) for optimizer, _ in steps]
        with tf.GradientTape(persistent=len(steps) > 1 or any(apart)) as tape:
            logits, terms = self.compute_losses(batch, *given)
            objective = self.objective(batch, terms)
        for (optimizer, variables), separate in zip(steps, apart):
            parts = batch.objectives if separate else objective
            self.update(tape, parts, optimizer, variables, self.unconnected)
        return logits

    def compute_losses(self, batch):
        """Runs the networks and computes all parts of the students' objective.

        It takes no step of an optimizer; `train_step` and diagnostics call it.

        Args:
            batch: The `Batch`.

        Returns:
            The tuple `(logits, terms)`: the student's logits `(batch, classes)`, and
            `{name in the logs: (weight, value)}`, whose values are float32 scalars, means over
            this replica's samples.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute_losses().")

    def test_step(self, data):
        """Evaluates the student on one batch; called by `evaluate`."""
        batch = self.unpack(data)
        return self.evaluated(batch, self.observe_student(batch, training=False)[taps.LOGITS])

    def evaluated(self, batch, logits):
        """Updates loss and metrics by the student's logits; returns the logs of `test_step`."""
        value = self.student_loss(batch, logits) + self.regularization(batch)
        self.track(TOTAL, value, batch)
        return self.logs(batch, logits)

    # The pieces of compute_losses.

    def observe_teacher(self, batch):
        """Runs the teacher, in inference mode and without gradient, once for a batch.

        It does not run where its outputs came with the data.

        Returns:
            `{tap: tensor}` of all watched taps and `"logits"`; empty where there is no teacher.
        """
        if self.teacher is None:
            return {}
        if batch.teacher is None:
            observed = dict(batch.given or {})
            if not observed.keys() >= {*self._watched.teacher, taps.LOGITS}:
                run = self._observers.teacher
                observed = run(self.teacher_inputs(batch.for_teacher), training=False) | observed
            batch.teacher = {tap: tf.stop_gradient(tensor) for tap, tensor in observed.items()}
        return batch.teacher

    def observe_student(self, batch, training=True):
        """Runs the student once, and records its activity regularization.

        Returns:
            `{tap: tensor}` of all watched taps and `"logits"`.
        """
        return self.run_student(batch, self.student, self._observers.student, training)

    def run_student(self, batch, student, run, training=True):
        """Runs one of the students, or an extractor of its taps, on the inputs of a batch.

        Every pass of a student that is part of the objective must use it, so that its activity
        regularization counts once.

        Args:
            batch: The `Batch`.
            student: The `keras.Model`.
            run: Function of inputs and `training` that runs it.
            training: Whether in training mode.

        Returns:
            The outputs of `run`.
        """
        if training:
            outputs = run(batch.inputs, training=True)
        else:
            outputs = runtime.run_padded(lambda x: run(x, training=False), batch.inputs)
        batch.activity.append(runtime.take_activity_losses(student))
        return outputs

    def student_loss(self, batch, logits):
        """Returns the loss on the labels: the mean over this replica's samples.

        Args:
            batch: The `Batch`.
            logits: Tensor `(batch, classes)`.

        Returns:
            A float32 scalar, not yet scaled for replicas: `objective()` scales all losses at once.
        """
        checks.labels.check_label_shape(self.label_loss, batch.labels, logits)
        value = self.label_loss(batch.labels, ops.cast(logits, "float32"), batch.sample_weight)
        # A Keras loss divides by the number of replicas.
        return value * runtime.num_replicas()

    def distillation_loss(self, loss, batch, student_taps, teacher_taps, sample_masks=None):
        """Returns the unweighted value of a distillation loss for this replica's samples.

        Samples of weight 0 are left out; other sample weights scale losses that are a mean over
        samples (see `distillation_sample_weight` of `compile`). Relational losses use the batch of
        all replicas.

        Args:
            loss: A `tfkd.losses.DistillationLoss`.
            batch: The `Batch`.
            student_taps: List of the student's tensors, one per spot.
            teacher_taps: List of the teacher's tensors, one per spot.
            sample_masks: List of masks `(batch,)` of zeros and ones, one per spot: the samples
                that a method lets the loss see. None for all.

        Returns:
            A float32 scalar, to be scaled by `objective()`.
        """
        arguments = batch.loss_arguments(loss, self.distillation_sample_weight, sample_masks)
        gather = loss.relational and self.relational_scope == "global"
        if gather:
            student_taps, teacher_taps, arguments = runtime.gather_batch(
                (student_taps, teacher_taps, arguments)
            )
        value = loss(student_taps, teacher_taps, training=True, **arguments)
        if gather and runtime.num_replicas() > 1:
            # All replicas computed the same value: each contributes an equal part of it.
            value = batch.sum_as_mean(value / runtime.num_replicas())
        return value

    def objective(self, batch, terms):
        """Sums weighted losses and regularizers, scales the sum for replicas and logs the parts.

        Args:
            batch: The `Batch`.
            terms: `{name: (weight, value)}`, as from `compute_losses`. They are logged
                unweighted, and where there is a teacher the weighted sum of all but
                `label_terms` as `distillation_loss`.

        Returns:
            A scalar whose gradients, summed over the replicas, are those of the loss on the
            global batch.
        """
        weighted = self._weighted(batch, terms, logged=len(terms) > 1)  # One alone is the loss.
        distillation = [v for name, v in weighted.items() if name not in self.label_terms]
        if len(terms) > 1 and self.teacher is not None:
            self.track("distillation_loss", sum(distillation), batch)
        regularization = self.regularization(batch)
        of_labels = sum(v for name, v in weighted.items() if name in self.label_terms)
        parts = [of_labels + regularization]
        if distillation:
            parts.append(sum(distillation))
        batch.objectives = tuple(batch.scaled(part) for part in parts)
        total = sum(parts)
        batch.parts.update({"regularization": regularization, TOTAL: total})
        self.track(TOTAL, total, batch)
        return batch.scaled(total)

    def auxiliary_objective(self, batch, terms):
        """Sums, scales and logs the losses of a method's own network, such as a discriminator.

        They are no part of the log `loss`, and the student's regularizers are no part of them.

        Args:
            batch: The `Batch`.
            terms: `{name: (weight, value)}`; see `objective()`.

        Returns:
            As `objective()`.
        """
        return batch.scaled(sum(self._weighted(batch, terms).values()))

    def _weighted(self, batch, terms, logged=True):
        """Returns `{name: weighted value}`, in which the step looks for divergence."""
        if logged:
            for name, (_, value) in terms.items():
                self.track(name, value, batch)
        weighted = {name: weight * value for name, (weight, value) in terms.items()}
        batch.parts.update(weighted)
        return weighted

    def regularization(self, batch):
        """Returns the losses of all regularizers: those of weights, and of every recorded pass."""
        activity = sum([*batch.activity, runtime.take_activity_losses(self)])
        weights = sum(ops.cast(loss, "float32") for loss in self.losses)
        return weights + activity

    def track_accuracy(self, name, logits, batch):
        """Logs the accuracy of some logits.

        Args:
            name: String.
            logits: Tensor `(batch, classes)`.
            batch: The `Batch`.
        """
        self.track(name, batch.accuracy(logits, kind_of(self.label_loss) == BINARY), batch)
