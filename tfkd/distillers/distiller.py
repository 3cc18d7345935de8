"""What all distillers share: everything in a training step that is not the algorithm."""

import contextlib
import dataclasses
import inspect

import keras
import tensorflow as tf
from keras import ops

from tfkd import optimizers, runtime, schedules, taps
from tfkd.distillers import checks, preflight
from tfkd.distillers.accumulation import Accumulation
from tfkd.distillers.divergence import TOTAL, LossWatch, StopAtDivergence
from tfkd.errors import UsageError, check_positive_integer, unknown


@dataclasses.dataclass
class Batch:
    """One replica's part of a training batch.

    Attributes:
        inputs: What the models take, `(batch, height, width, channels)` for images.
        labels: The labels as the data set gives them.
        sample_weight: Float tensor `(batch,)`, or None. Class weights arrive here too.
        size: Integer tensor, the number of samples.
        rows: Integer tensor, the number of rows of the tensors: the samples, or one row of zeros
            where a replica has no sample, which then counts nowhere.
        indices: Integer tensor `(batch,)`, the samples' positions in the training set; None
            where the data does not tell.
    """

    inputs: object
    labels: object
    sample_weight: object
    size: object
    rows: object
    indices: object


class Untracked:
    """Keeps models out of the distiller's variables, so out of its checkpoints and optimizers."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Distiller(keras.Model):
    """Trains a student under a teacher; the base class of every method.

    `fit` trains the student; `evaluate`, `predict` and calling the distiller run the student
    alone. `distiller.student` is, and stays, the plain Keras model that was passed in, and
    `distiller.save(path)` saves that model.

    A method implements `train_step` from the pieces of this class:

    ```python
    def train_step(self, data):
        batch = self.unpack(data)
        teacher = self.observe_teacher(batch)
        with tf.GradientTape() as tape:
            student = self.observe_student(batch)
            objective = self.objective(batch, {"student_loss": (1.0, ...), ...})
        self.update(tape, objective, self.optimizer, self.trainable_variables)
        return self.logs(batch, student["logits"])
    ```

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)`. It is run in
            inference mode, without gradients, and never changed. None for methods without one.
        relational_scope: `"global"`: losses that compare samples with each other see the whole
            batch of all replicas, so that N devices give what one gives. `"replica"`: only the
            replica's own part, which saves the exchange.
        teacher_preprocessing: Keras layer or function of a batch of the student's inputs that
            returns the teacher's, such as `tfkd.layers.TeacherPreprocessing`. It runs once per
            step, in inference mode and without gradient. None where both take the same.
        name: String, optional.

    Raises:
        UsageError: If the models share variables, differ in their number of classes or in the
            shape of their inputs, or output probabilities instead of logits.
    """

    #: The method's short name in configs; None for a class that is not a method by itself.
    id = None
    #: The weight of the loss on the labels.
    student_loss_weight = 1.0
    #: `{argument of compile: default settings}` of the optimizers beside the student's; settings
    #: as `tfkd.optimizers.create` takes them.
    further_optimizers = {}
    #: The names of those of `learners()` that are classifiers like the student.
    peer_names = ()
    #: Which of its training steps the method takes in this epoch; None where it has but one.
    phase = None

    def __init__(
        self,
        student,
        teacher=None,
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        runtime.check_strategy(tf.distribute.get_strategy())
        checks.check_models(student, teacher, teacher_preprocessing)
        # The distiller only passes inputs on: casting them is up to each of the two models.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        if relational_scope not in ("global", "replica"):
            raise UsageError(
                f"relational_scope must be 'global' or 'replica'; received {relational_scope!r}."
            )
        self.student = student
        self.relational_scope = relational_scope
        self._frozen = Untracked(teacher=teacher, preprocessing=teacher_preprocessing)
        self._observers = Untracked(student=None, teacher=None)
        self._watched = Untracked(student=[], teacher=[])
        self._trackers = {}
        self._evaluated_trackers = set()
        self._evaluating = False
        self._loss_watch = LossWatch()
        self.accumulation_steps = 1
        self._accumulations = Untracked(by_optimizer={})
        # As a variable, so that a compiled step sees it change.
        self._epoch = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
            name="epoch",
        )
        runtime.synchronize_batch_normalization(student)
        self.watch()

    @property
    def teacher(self):
        """The teacher, frozen; None for methods without one."""
        return self._frozen.teacher

    @property
    def teacher_preprocessing(self):
        """What makes the teacher's inputs of the student's; None where both take the same."""
        return self._frozen.preprocessing

    def teacher_inputs(self, inputs):
        """Returns what the teacher sees where the student sees `inputs`."""
        return checks.preprocessed(self.teacher_preprocessing, inputs)

    def __dir__(self):
        # Keras saves whatever it finds here that has weights; the teacher stays out of files.
        hidden = ("teacher", "teacher_preprocessing")
        return [name for name in super().__dir__() if name not in hidden]

    # Construction: what a method asks for before training.

    def watch(self, student=(), teacher=()):
        """Asks for taps that `observe_student` and `observe_teacher` then return.

        Args:
            student: Iterable of taps of the student.
            teacher: Iterable of taps of the teacher.

        Raises:
            UsageError: If a model has no such tap; the message says which it has.
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

    def add_tracker(self, name, evaluated=False):
        """Adds a value to the training logs: its mean over the epoch, under this name.

        Args:
            name: String.
            evaluated: Whether `test_step` tracks it too, so that it is in the logs of
                `evaluate`.
        """
        if name not in self._trackers:
            self._trackers[name] = keras.metrics.Mean(name=name)
        if evaluated:
            self._evaluated_trackers.add(name)

    def tap_shapes(self, input_shape):
        """Returns the shapes of all watched taps.

        Args:
            input_shape: Shape of the models' input, the batch included.

        Returns:
            `{tap: shape}` of the student and of the teacher; empty for a teacher that is None.
        """
        inputs = tf.TensorSpec(input_shape, keras.config.floatx())

        def shapes(observe, prepare=lambda x: x):
            if observe is None:
                return {}
            outputs = getattr(observe, "output", None)
            if outputs is None or any(None in tensor.shape[1:] for tensor in outputs.values()):
                # A subclassed model, or one for any input size, tells its shapes when it runs.
                step = tf.function(lambda x: observe(prepare(x), training=False))
                outputs = step.get_concrete_function(inputs).structured_outputs
            return {tap: tuple(tensor.shape) for tap, tensor in outputs.items()}

        teacher = shapes(self._observers.teacher, self.teacher_inputs)
        return shapes(self._observers.student), teacher

    # What Keras calls.

    def compile(
        self,
        optimizer="sgd",
        loss=None,
        metrics=None,
        weighted_metrics=None,
        jit_compile="auto",
        run_eagerly=False,
        accumulation_steps=1,
        **kwargs,
    ):
        """Configures training.

        Args:
            optimizer: Optimizer of the student, and of connectors trained with it.
            loss: The student's loss on the labels, a Keras loss of logits. Defaults to
                `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
            metrics: List of metrics of the student, as in `keras.Model.compile`.
            weighted_metrics: The same, weighted by `sample_weight`.
            jit_compile: Whether to compile with XLA; `"auto"` for what is faster on the device.
            run_eagerly: Whether to run steps without compiling them, for debugging.
            accumulation_steps: Integer, over how many batches every optimizer takes the mean of
                its gradients before it takes one step: so a batch that does not fit into memory
                is trained on in parts. Learning-rate schedules count the optimizer's steps.
                What looks at a batch as a whole, such as batch normalization and relational
                losses, sees the parts.
            **kwargs: Other arguments of `keras.Model.compile`, and the method's own optimizers:
                each a Keras optimizer, its name, or a dictionary of settings as
                `tfkd.optimizers.create` takes them.

        Raises:
            UsageError: If the loss expects probabilities, or settings describe no optimizer.
        """
        self._check_compile_arguments(kwargs)
        check_positive_integer("accumulation_steps", accumulation_steps)
        self.accumulation_steps = accumulation_steps
        runtime.check_steps_per_execution(
            kwargs.get("steps_per_execution", 1), self.distribute_strategy
        )
        further = {
            name: kwargs.pop(name, None) or default
            for name, default in self.further_optimizers.items()
        }
        self.label_loss = checks.label_loss(loss)
        if jit_compile == "auto":
            jit_compile = runtime.jit_compile() and not run_eagerly
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            **kwargs,
        )
        for name, argument in further.items():
            setattr(self, name, self._own_optimizer(name, argument))
        if checks.one_is_there_twice([optimizer, *further.values()]):
            raise UsageError(
                f"optimizer and {', '.join(further)} must be different objects: each keeps the "
                "state of its own variables."
            )

    def _check_compile_arguments(self, given):
        """Raises a `UsageError` for arguments that neither Keras nor the method has."""
        known = [*self.further_optimizers]
        for method in (type(self).compile, keras.Model.compile):
            names = [*inspect.signature(method).parameters][1:]
            known += [name for name in names if name not in (*known, "kwargs")]
        for name in given:
            if name not in known:
                raise unknown(f"argument of {type(self).__name__}.compile", name, known)

    def _own_optimizer(self, name, optimizer):
        """Returns a further optimizer, ready for the distiller's precision.

        Under `mixed_float16` it scales the loss, as Keras lets the first one do.
        """
        if isinstance(optimizer, dict):
            optimizer = optimizers.create(student_optimizer=self.optimizer, **optimizer)
        try:
            optimizer = keras.optimizers.get(optimizer)
        except ValueError as error:
            raise UsageError(
                f"{name} must be a Keras optimizer, its name, or a dictionary of settings; "
                f"received {optimizer!r}."
            ) from error
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        return optimizer

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`; what a resumed run restores."""
        return {"optimizer": (self.optimizer, self.trainable_variables)}

    def preparations(self):
        """Returns the stages that must run before training, as distillers; by default none."""
        return []

    def distillation_parts(self):
        """Returns `[(loss, [(student tap, teacher tap), ...]), ...]`; by default none."""
        return []

    def learners(self):
        """Returns `{name: keras.Model}` of what is trained beside the student to classify.

        They are evaluated and reported with the student; by default there are none. Their
        validation accuracy is logged as `val_{name}_accuracy`.
        """
        return {}

    def pictures(self, history):
        """Returns `{file name: function that writes a PNG to a path}`; by default none.

        Args:
            history: What `fit` returned, or a list of the logs of each epoch, `{name: value}`.
        """
        return {}

    def epoch_pictures(self, history, inputs, labels, class_names):
        """Returns `{file name: function that writes a PNG to a path}`, drawn after every epoch.

        Args:
            history: List of the logs of each epoch so far, `{name: value}`.
            inputs: A few images of the validation data, as the student takes them, the same ones
                after every epoch.
            labels: Their labels, integers.
            class_names: List of strings.
        """
        return {}

    def warnings(self, inputs):
        """Returns a list of lines on what looks wrong in some inputs; `check` reports them."""
        return []

    def check(self, dataset, batches=20):
        """Looks for what would spoil training, before it: one pass over some data.

        Nothing changes by it: no variable, no metric, no random state.

        Args:
            dataset: `tf.data.Dataset`, or another iterable, of batches `(inputs, labels)` or
                `(inputs, labels, sample weights)`, as the student will see them. Validation data
                serves best.
            batches: Integer, how many batches to look at at most.

        Returns:
            A `tfkd.distillers.Report`: accuracies of both models on this data, their outputs
            and sizes, every loss at the start, and `warnings`, a list of lines on what looks
            wrong. `print` shows it as a table.

        Raises:
            UsageError: If the distiller is not compiled, or its student has never run and cannot
                tell its shapes; if the data has no labels, or some outside the classes.

        Example:
        ```python
        print(distiller.check(data.validation))
        ```
        """
        return preflight.check(self, dataset, batches)

    def call(self, inputs, training=None):
        """Runs the student."""
        return self.student(inputs, training=training)

    def start_training(self, epochs, steps):
        """Tells what depends on it how long training is; `fit` calls it before the first step.

        Args:
            epochs: Integer, those of earlier calls that this one resumes included.
            steps: Integer, the steps of an epoch; None where the data does not tell.
        """

    def start_epoch(self, epoch):
        """Tells what depends on the epoch which one begins; `fit` calls it at every beginning.

        Args:
            epoch: Number, counted from 0.
        """
        self._epoch.assign(epoch)

    def value_of(self, number_or_schedule):
        """Returns a number as it is, and a schedule's value at the current epoch."""
        if isinstance(number_or_schedule, schedules.Schedule):
            return number_or_schedule(self._epoch)
        return number_or_schedule

    def fit(self, x=None, y=None, *, callbacks=None, **kwargs):
        """Trains the student; the arguments are those of `keras.Model.fit`.

        They are keyword only from `batch_size` on. In the logs `val_loss` is the loss on the
        labels alone, since validation runs the student alone.

        Raises:
            DivergenceError: If a part of the loss becomes NaN or infinite.
            UsageError: If a label is outside the classes, or a model turns out to output
                probabilities.
        """
        self._check_ready(y)
        checks.check_first_batch(self.student, self.teacher, self.teacher_preprocessing, x)
        if isinstance(x, tf.data.Dataset):
            # Keras' default, which it warns that it ignores for a data set.
            kwargs.setdefault("shuffle", False)
        with self._scope():
            self.build_optimizers()
        announce = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self.start_training(
                announce.params["epochs"], announce.params["steps"]
            ),
            on_epoch_begin=lambda epoch, logs: self.start_epoch(epoch),
        )
        callbacks = [
            announce,
            StopAtDivergence(self._loss_watch),
            *keras.tree.flatten(callbacks or []),
        ]
        with self._scope(), checks.clear_label_errors(self.student):
            return super().fit(x, y, callbacks=callbacks, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """Takes one training step, as `keras.Model.train_on_batch`."""
        self._check_ready()
        with self._scope(), checks.clear_label_errors(self.student):
            self.build_optimizers()
            return super().train_on_batch(*args, **kwargs)

    def _scope(self):
        """The scope that the distiller was built in, which `fit` may be called outside of."""
        strategy = self._distribute_strategy
        return contextlib.nullcontext() if strategy is None else strategy.scope()

    def _check_ready(self, labels=None):
        """Raises a `UsageError` for what training would stumble over much later."""
        if not self.compiled or self.optimizer is None:
            raise UsageError("Compile the distiller with an optimizer before training it.")
        runtime.check_scope(self._distribute_strategy)
        if self.student.built and not self.student.trainable_variables:
            raise UsageError(
                f"Student {self.student.name!r} has nothing to train: set student.trainable = True."
            )
        checks.check_labels(labels)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and runtime.num_replicas() > 1:
            _, _, batches = next(iter(iterator))
            iterator, data_batch = None, runtime.of_one_replica(next(batches))
        super()._maybe_symbolic_build(iterator, data_batch)

    def _make_function(self, step_function):
        make = super()._make_function
        return runtime.function_of_step(make, step_function, self.distribute_strategy)

    def build_optimizers(self):
        """Makes the optimizers' own variables, each for the variables that it updates.

        Keras would make them for all trainable variables, of one optimizer only.
        """
        if not self.built:
            return
        accumulations = self._accumulations.by_optimizer
        for name, (optimizer, variables) in self.optimizers().items():
            runtime.check_accumulation(
                name, optimizer, self.accumulation_steps, self.distribute_strategy
            )
            # One that scales the loss would add its variables a second time.
            if not optimizer.built:
                optimizer.build(variables)
            if self.accumulation_steps > 1:
                if id(optimizer) not in accumulations:
                    accumulations[id(optimizer)] = Accumulation(optimizer, variables)
                accumulations[id(optimizer)].steps = self.accumulation_steps

    def evaluate(self, *args, **kwargs):
        """Evaluates the student; the arguments are those of `keras.Model.evaluate`."""
        return self._while_evaluating(super().evaluate, *args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Evaluates the student on one batch, as `keras.Model.test_on_batch`."""
        return self._while_evaluating(super().test_on_batch, *args, **kwargs)

    def _while_evaluating(self, function, *args, **kwargs):
        # The values tracked in training have no meaning there: `metrics` leaves them out.
        self._evaluating = True
        try:
            with self._scope(), checks.clear_label_errors(self.student):
                return function(*args, **kwargs)
        finally:
            self._evaluating = False

    @property
    def metrics(self):
        """The metrics of the student, and in training the values that the method tracks."""
        metrics = super().metrics
        if self._evaluating:
            trackers = {
                id(tracker)
                for name, tracker in self._trackers.items()
                if name not in self._evaluated_trackers
            }
            metrics = [metric for metric in metrics if id(metric) not in trackers]
        return metrics

    def test_step(self, data):
        """Evaluates the student on one batch; called by `evaluate`."""
        batch = self.unpack(data)
        return self.evaluated(batch, self.student(batch.inputs, training=False))

    def evaluated(self, batch, logits):
        """Updates loss and metrics by the student's logits; returns the logs of `test_step`."""
        logits = ops.cast(logits, "float32")
        value = self.student_loss(batch, logits) + self._regularization()
        self._loss_tracker.update_state(value, sample_weight=batch.size)
        return self.logs(batch, logits)

    def save(self, filepath, **kwargs):
        """Saves the plain student: see `keras.Model.save`.

        The state of training (connectors, optimizers) is in `save_weights`; the teacher in
        neither.
        """
        self.student.save(filepath, **kwargs)

    def load_weights(self, filepath, **kwargs):
        """Restores what `save_weights` has saved, of a distiller made in the same way.

        `keras.callbacks.ModelCheckpoint(..., save_weights_only=True)` saves by it, too. The
        student that was saved is then `distiller.student`.

        Raises:
            UsageError: If the file holds the weights of something else.
        """
        try:
            super().load_weights(filepath, **kwargs)
        except ValueError as error:
            if "could not be loaded" not in str(error):
                raise
            raise UsageError(
                f"{filepath} holds no weights of a {type(self).__name__} of these models and "
                "losses: make the distiller as the one that saved it; weights that a student saved "
                "by itself are loaded by distiller.student.load_weights()."
            ) from error

    def export(self, filepath, **kwargs):
        """Exports the plain student: see `keras.Model.export`."""
        self.student.export(filepath, **kwargs)

    # The pieces of a training step.

    def unpack(self, data):
        """Returns the `Batch` of what `fit` hands to `train_step`.

        Labels may come as `{"label": ..., "index": ...}`, with the positions of the samples in
        the training set, which some losses need.
        """
        if not self._evaluating:
            self._loss_watch.count_step()
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        rows = ops.shape(tf.nest.flatten(inputs)[0])[0]
        if not self.built and hasattr(inputs, "shape"):
            # A student whose shapes only data tells. Variables are made outside of the step.
            with tf.init_scope():
                self.build((None, *inputs.shape[1:]))
                self.build_optimizers()
        indices = None
        if isinstance(labels, dict):
            labels, indices = labels["label"], labels.get("index")
        return Batch(inputs, labels, sample_weight, runtime.size_of(rows), rows, indices)

    def observe_teacher(self, batch):
        """Runs the teacher once, in inference mode and without gradient.

        Returns:
            `{tap: tensor}` of all watched taps and `"logits"`; empty where there is no teacher.
        """
        if self.teacher is None:
            return {}
        observed = self._observers.teacher(self.teacher_inputs(batch.inputs), training=False)
        return {tap: tf.stop_gradient(tensor) for tap, tensor in observed.items()}

    def observe_student(self, batch, training=True):
        """Runs the student once.

        Returns:
            `{tap: tensor}` of all watched taps and `"logits"`.
        """
        return self._observers.student(batch.inputs, training=training)

    def student_loss(self, batch, logits):
        """Returns the loss on the labels: the mean over this replica's samples.

        Args:
            batch: The `Batch`.
            logits: Tensor `(batch, classes)`.

        Returns:
            A float32 scalar. It is not yet scaled for several replicas: `objective()` does that,
            once, for all losses.
        """
        checks.check_label_shape(self.label_loss, batch.labels, logits)
        value = self.label_loss(batch.labels, ops.cast(logits, "float32"), batch.sample_weight)
        # A Keras loss divides by the number of replicas by itself.
        return value * runtime.num_replicas()

    def loss_arguments(self, loss, batch, sample_masks=None):
        """Returns what a distillation loss takes of a batch, beside the taps.

        Args:
            loss: A `tfkd.losses.DistillationLoss`.
            batch: The `Batch`.
            sample_masks: List of masks `(batch,)` of zeros and ones, one per spot: the samples
                that a method lets the loss see. None for all.

        Returns:
            A dictionary of keyword arguments: labels, mask, and indices where it needs them.

        Raises:
            UsageError: If the batch lacks what the loss needs.
        """
        mask = batch.sample_weight
        if loss.relational and mask is not None:
            mask = ops.cast(mask > 0, "float32")
        if sample_masks is not None:
            mask = sample_masks if mask is None else [own * mask for own in sample_masks]
        labels = _class_numbers(batch.labels, loss) if loss.needs_labels else None
        arguments = {"labels": labels, "sample_mask": mask}
        if loss.needs_indices:
            if batch.indices is None:
                raise UsageError(
                    f"Loss {loss.name!r} needs to know which training example a sample is: labels "
                    'as {"label": labels, "index": positions}, or '
                    "tfkd.data.load(..., indices=True)."
                )
            arguments["indices"] = batch.indices
        return arguments

    def distillation_loss(self, loss, batch, student_taps, teacher_taps, sample_masks=None):
        """Returns the unweighted value of a distillation loss for this replica's samples.

        Samples of weight 0 do not take part; other sample weights scale the losses that are a
        mean over samples. Relational losses see the batch of all replicas.

        Args:
            loss: A `tfkd.losses.DistillationLoss`.
            batch: The `Batch`.
            student_taps: List of the student's tensors, one per spot.
            teacher_taps: List of the teacher's tensors, one per spot.
            sample_masks: As in `loss_arguments`.

        Returns:
            A float32 scalar, to be scaled by `objective()`.
        """
        arguments = self.loss_arguments(loss, batch, sample_masks)
        gather = loss.relational and self.relational_scope == "global"
        if gather:
            student_taps, teacher_taps, arguments = runtime.gather_batch(
                (student_taps, teacher_taps, arguments)
            )
        value = loss(student_taps, teacher_taps, training=True, **arguments)
        if gather and runtime.num_replicas() > 1:
            # Every replica has computed the same value: each counts for an equal part of it,
            # whatever its share of the batch, by which `objective()` is going to multiply.
            value *= runtime.even_share(batch.size)
            value = tf.math.divide_no_nan(value, runtime.share_of_batch(batch.size))
        return value

    def objective(self, batch, terms):
        """Adds up weighted losses and regularizers, scales them for the replicas and logs them.

        Args:
            batch: The `Batch`.
            terms: `{name: (weight, value)}`; the values are means over the replica's samples.
                Those that have a tracker are logged, unweighted; the tracker
                `distillation_loss` logs the weighted sum of all but `student_loss`.

        Returns:
            The scalar whose gradients, added up over the replicas, are those of the loss on the
            global batch.
        """
        for name, (_, value) in terms.items():
            self.track(name, value, batch)
        weighted = {name: weight * value for name, (weight, value) in terms.items()}
        student_loss = weighted.pop("student_loss", 0.0)
        distillation_loss = sum(weighted.values(), start=tf.zeros(()))
        self.track("distillation_loss", distillation_loss, batch)
        total = student_loss + distillation_loss
        regularization = self._regularization()
        parts = {"student_loss": student_loss, **weighted, "regularization": regularization}
        self._loss_watch.note({**parts, TOTAL: total + regularization})
        self._loss_tracker.update_state(total + regularization, sample_weight=batch.size)
        return self._scaled(batch, total) + regularization / runtime.num_replicas()

    def own_objective(self, batch, terms):
        """Adds up and scales the losses of a method's own network, such as a discriminator.

        Neither the student's regularizers nor its log `loss` have a part in it.

        Args:
            batch: The `Batch`.
            terms: `{name: (weight, value)}`; see `objective()`.

        Returns:
            As `objective()`.
        """
        for name, (_, value) in terms.items():
            self.track(name, value, batch)
        weighted = {name: weight * value for name, (weight, value) in terms.items()}
        self._loss_watch.note(weighted)
        return self._scaled(batch, sum(weighted.values()))

    def _scaled(self, batch, value):
        """Scales a mean over this replica's samples so that the replicas' add up to the batch's.

        This is the only place where losses are scaled.
        """
        return value * runtime.share_of_batch(batch.size)

    def mean_over_replicas(self, batch, value):
        """Returns the mean over the global batch of a mean over this replica's samples.

        It serves to compare; no gradient flows back.
        """
        return runtime.sum_over_replicas(self._scaled(batch, value))

    def sum_as_mean(self, batch, value):
        """Makes of a sum over this replica's samples what an objective takes, a mean.

        The objective then holds the sum over the global batch.
        """
        return tf.math.divide_no_nan(value, runtime.share_of_batch(batch.size))

    def _regularization(self):
        return sum((ops.sum(ops.cast(loss, "float32")) for loss in self.losses), start=0.0)

    def update(self, tape, objective, optimizer, variables, unconnected="none", clip_norm=None):
        """Takes one step of one optimizer on its own variables, and on no others.

        Args:
            tape: The `tf.GradientTape` that recorded the objective.
            objective: Scalar, from `objective()`.
            optimizer: A Keras optimizer.
            variables: List of the variables that it updates.
            unconnected: What a variable gets on which the objective does not depend: `"none"`,
                no update; `"zero"`, that of a gradient of zero, in which momentum and weight
                decay go on.
            clip_norm: Number, what the norm of the whole gradient, that of all replicas, is
                clipped to; None for no clipping.

        Where gradients are accumulated, the step is one on their mean, and only every
        `accumulation_steps`-th call takes it.
        """
        # Under mixed_float16 the scale enters where the gradient starts, so that nothing
        # underflows on the way back; the optimizer divides it out again.
        scale = optimizer.scale_loss(tf.ones_like(objective))
        gradients = tape.gradient(objective, variables, output_gradients=scale)
        if unconnected == "zero":
            pairs = zip(gradients, variables)
            gradients = [ops.zeros_like(v) if g is None else g for g, v in pairs]
        pairs = [(g, v) for g, v in zip(gradients, variables) if g is not None]
        accumulates = self.accumulation_steps > 1
        if clip_norm is None and not accumulates and not runtime.needs_whole_gradient(optimizer):
            optimizer.apply_gradients(pairs)
            return
        gradients, variables = zip(*pairs)

        def step(gradients):
            if clip_norm is not None:
                norm = tf.linalg.global_norm(gradients) / scale
                factor = clip_norm / ops.maximum(norm, clip_norm)
                gradients = [factor * gradient for gradient in gradients]
            runtime.apply_whole_gradient(optimizer, gradients, variables, scale)

        gradients = runtime.sum_over_replicas(list(gradients))
        if accumulates:
            self._accumulations.by_optimizer[id(optimizer)].apply(gradients, variables, step)
        else:
            step(gradients)

    def track(self, name, value, batch):
        """Adds the mean over this replica's samples to the logs, if `name` has a tracker."""
        if name in self._trackers:
            self._trackers[name].update_state(value, sample_weight=batch.size)

    def track_accuracy(self, name, logits, batch):
        """Adds the accuracy of some logits to the logs, if `name` has a tracker.

        Args:
            name: String.
            logits: Tensor `(batch, classes)`.
            batch: The `Batch`, whose labels are class numbers or one-hot.
        """
        if name in self._trackers:
            hits = ops.argmax(logits, axis=-1) == self.class_numbers(batch, logits.shape[-1])
            self.track(name, ops.mean(ops.cast(hits, "float32")), batch)

    def class_numbers(self, batch, classes):
        """Returns the number of each sample's class, of labels that may be one-hot.

        Args:
            batch: The `Batch`.
            classes: Integer, the number of classes.

        Returns:
            An int32 tensor `(batch,)`.
        """
        labels = batch.labels
        checks.check_present(labels)
        if tuple(labels.shape[1:]) == (classes,) != (1,):
            labels = ops.argmax(labels, axis=-1)
        return ops.cast(ops.reshape(labels, [-1]), "int32")

    def logs(self, batch, logits):
        """Updates the metrics of the student and returns all logs as `{name: scalar}`."""
        values = (batch.inputs, batch.labels, ops.cast(logits, "float32"), batch.sample_weight)
        return self.compute_metrics(*runtime.samples_of(values))


def _class_numbers(labels, loss):
    """Returns labels as integers `(batch,)`, of which Keras also allows `(batch, 1)`."""
    if len(labels.shape) == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels.shape) != 1:
        raise UsageError(
            f"Loss {loss.name!r} needs the number of each sample's class, (batch,); received "
            f"labels of shape {tuple(labels.shape)}: train without one-hot, mixup and cutmix."
        )
    return labels
