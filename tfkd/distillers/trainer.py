"""Trainer: the Keras model behind a distiller; several optimizers, replicas, saving."""

import contextlib

import keras
import tensorflow as tf
from keras import ops

from tfkd import optimizers, runtime, taps
from tfkd.distillers import checks
from tfkd.errors import UsageError, check_positive_integer
from tfkd.losses import DistillationLoss
from tfkd.training.accumulation import Accumulation
from tfkd.training.arguments import split_validation
from tfkd.training.batch import Batch
from tfkd.training.divergence import TOTAL, LossWatch, StopAtDivergence
from tfkd.training.epoch_means import EpochMeans
from tfkd.training.update import update


class Untracked:
    """Keeps models out of the distiller's variables, so out of its checkpoints and optimizers."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Trainer(keras.Model):
    """Base class of `Distiller`: everything around a training step.

    It builds, compiles, fits, evaluates and saves; unpacks batches, updates variables and keeps
    the logs.

    Args:
        student: The `keras.Model` that is trained.
        name: String, optional.
    """

    #: `{argument of compile: default settings}` of the optimizers beside the student's; settings
    #: as `tfkd.optimizers.create` takes them.
    extra_optimizers = {}

    def __init__(self, student, name=None):
        # The distiller passes inputs on: each model casts them itself.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student = student
        self.accumulation_steps = 1
        self.distillation_sample_weight = True
        # Untracked: logs are no part of saved weights.
        self._means = Untracked(training=EpochMeans(), evaluation=EpochMeans())
        self._evaluating = False
        self._loss_watch = LossWatch()
        self._accumulations = Untracked(by_optimizer={})
        # A variable, so that a compiled step reads its current value.
        self._epoch = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
            name="epoch",
        )

    @property
    def students(self):
        """All models that are trained as students, `student` first."""
        return [self.student]

    # Before training.

    def build(self, input_shape):
        """Creates the method's own weights; by default it has none.

        Called once: by `compile`, or at the first batch where all students are subclassed.

        Args:
            input_shape: Shape of the students' inputs, the batch included.
        """

    def ensure_built(self):
        """Builds the distiller where the input shape of a student is known."""
        known = [student for student in self.students if taps.output(student) is not None]
        if known and not self.built:
            self.build(known[0].input_shape)

    def compile(
        self,
        optimizer="sgd",
        loss=None,
        metrics=None,
        weighted_metrics=None,
        jit_compile="auto",
        run_eagerly=False,
        accumulation_steps=1,
        distillation_sample_weight=True,
        **kwargs,
    ):
        """Configures training, and builds the distiller.

        Args:
            optimizer: Optimizer of the student, and of connectors trained with it.
            loss: The student's loss on the labels, a Keras loss of logits. Defaults to
                `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Losses that
                compare class probabilities follow it: beside
                `keras.losses.BinaryCrossentropy(from_logits=True)` each logit is a yes or no of
                its own.
            metrics: List of metrics of the student, as in `keras.Model.compile`. "accuracy" is
                that of logits whatever the loss.
            weighted_metrics: The same, weighted by `sample_weight`.
            jit_compile: Whether to compile with XLA; `"auto"` for what is faster on the device.
            run_eagerly: Whether to run steps without compiling them, for debugging.
            accumulation_steps: Integer, over how many batches every optimizer takes the mean of
                its gradients before it takes one step: so a batch that does not fit into memory
                is trained on in parts. Learning-rate schedules count the optimizer's steps.
                Batch normalization and relational losses, which use a batch as a whole, see the
                parts.
            distillation_sample_weight: Whether `sample_weight` and `class_weight` of `fit`
                multiply the distillation losses too. False: they multiply the loss on the labels
                alone, and every sample is distilled, including those of weight 0, such as images
                without a label.
            **kwargs: Other arguments of `keras.Model.compile`, and the method's own optimizers:
                each a Keras optimizer, its name, or a dictionary of settings as
                `tfkd.optimizers.create` takes them.

        Raises:
            UsageError: If the loss expects probabilities, the method or one of its losses does
                not support it, settings describe no optimizer, or a distillation loss cannot
                compare the models' features.
        """
        checks.arguments.check_compile_arguments(type(self), kwargs)
        check_positive_integer("accumulation_steps", accumulation_steps)
        self.accumulation_steps = accumulation_steps
        self.distillation_sample_weight = distillation_sample_weight
        runtime.check_steps_per_execution(
            kwargs.get("steps_per_execution", 1), self.distribute_strategy
        )
        extra = {
            name: kwargs.pop(name, None) or default
            for name, default in self.extra_optimizers.items()
        }
        self.label_loss = checks.labels.label_loss(loss)
        checks.labels.match_labels(self)
        if jit_compile == "auto":
            jit_compile = runtime.jit_compile() and not run_eagerly
        with self._scope():
            self.ensure_built()
            metrics, weighted_metrics = (
                checks.labels.metrics_of_logits(some, self.label_loss)
                for some in (metrics, weighted_metrics)
            )
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            **kwargs,
        )
        if optimizers.takes_two_gradients(self.optimizer) and self.extra_optimizers:
            raise UsageError(
                f"{type(self).__name__} trains more than a student, and DOT is for one objective "
                "of labels and distillation: take tfkd.optimizers.SGD."
            )
        for name, argument in extra.items():
            setattr(self, name, self._extra_optimizer(name, argument))
        if checks.arguments.has_duplicates([optimizer, *extra.values()]):
            raise UsageError(
                f"optimizer and {', '.join(extra)} must be different objects: each keeps the "
                "state of its own variables."
            )

    def _extra_optimizer(self, name, argument):
        """Returns an optimizer given to `compile`, for the distiller's precision."""
        scales = self.dtype_policy.name == "mixed_float16"
        return optimizers.resolve(name, argument, self.optimizer, scales)

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`; what a resumed run restores."""
        return {"optimizer": (self.optimizer, self.trainable_variables)}

    def student_optimizers(self):
        """Returns those of `optimizers()` that minimise the objective of `compute_losses`."""
        return {
            name: pair
            for name, pair in self.optimizers().items()
            if name not in self.extra_optimizers
        }

    def build_optimizers(self):
        """Builds the optimizers, each for the variables that it updates.

        Keras would build one optimizer, for all trainable variables.
        """
        if not (self.built and self.compiled):
            return
        accumulations = self._accumulations.by_optimizer
        for name, (optimizer, variables) in self.optimizers().items():
            runtime.check_accumulation(
                name, optimizer, self.accumulation_steps, self.distribute_strategy
            )
            if optimizers.takes_two_gradients(optimizer) and self.accumulation_steps > 1:
                raise UsageError(
                    "DOT keeps two gradients apart, and does not accumulate them: take "
                    "accumulation_steps=1, or tfkd.optimizers.SGD."
                )
            # A LossScaleOptimizer would add its variables a second time.
            if not optimizer.built:
                optimizer.build(variables)
            if self.accumulation_steps > 1:
                if id(optimizer) not in accumulations:
                    accumulations[id(optimizer)] = Accumulation(optimizer, variables)
                accumulations[id(optimizer)].steps = self.accumulation_steps

    def preparations(self):
        """Returns the stages before training, as distillers; by default none."""
        return []

    def prepare(self, x=None, y=None, epochs=None, verbose="auto", **kwargs):
        """Runs the preparation that some losses need before training; `fit` calls it.

        Args:
            x: As in `fit`.
            y: As in `fit`.
            epochs: Integer; None for the number of each loss.
            verbose: As in `fit`.
            **kwargs: Other arguments of `keras.Model.fit` that describe the data, such as
                `batch_size` or `steps_per_epoch`.

        Raises:
            UsageError: If the shapes of the student's features are not known yet.
        """
        for preparation in self.preparations():
            if verbose:
                print(f"Preparing loss {preparation.prepared_loss.name!r}")
            preparation.fit(x, y, epochs=epochs or preparation.epochs, verbose=verbose, **kwargs)
            preparation.finish()

    def own_callbacks(self, x, batch_size=None, epochs=1):
        """Returns the method's own callbacks for `fit`; by default none.

        Args:
            x: The training data, without the samples of `validation_split`.
            batch_size: Integer, or None for Keras' default.
            epochs: Integer, the last epoch.
        """
        return []

    # Training and evaluation, as Keras calls them.

    def start_training(self, epochs, steps):
        """Receives the length of training; `fit` calls it before the first step.

        Args:
            epochs: Integer, including those of earlier calls that this one resumes.
            steps: Integer, the steps of an epoch; None where unknown.
        """

    def start_epoch(self, epoch):
        """Sets the epoch of schedules and losses; `fit` calls it as an epoch begins.

        Args:
            epoch: Number, counted from 0.
        """
        self._epoch.assign(epoch)
        for layer in runtime.all_layers(self):
            if isinstance(layer, DistillationLoss):
                layer.start_epoch(epoch)

    def fit(self, x=None, y=None, *, callbacks=None, **kwargs):
        """Trains the student; the arguments are those of `keras.Model.fit`.

        They are keyword only from `batch_size` on. `val_loss` is the loss on the labels alone,
        since validation runs the student alone. `sample_weight` and `class_weight` multiply the
        distillation losses too, unless `compile(distillation_sample_weight=False)`. Under several
        replicas a batch that would leave a replica without a sample is cut to a multiple of the
        number of replicas.

        Raises:
            DivergenceError: If a part of the loss becomes NaN or infinite.
            UsageError: If a label is outside the classes, or a model turns out to output
                probabilities.
        """
        self._check_ready(y)
        checks.models.check_first_batch(self.student, self.teacher, self.teacher_preprocessing, x)
        x, y, kwargs = split_validation(x, y, kwargs)
        of_data = ("batch_size", "sample_weight", "class_weight", "steps_per_epoch", "shuffle")
        described = {name: kwargs[name] for name in of_data if name in kwargs}
        self.prepare(x, y, verbose=kwargs.get("verbose", "auto"), **described)
        if isinstance(x, tf.data.Dataset):
            # Keras warns that it ignores its own default for a data set.
            kwargs.setdefault("shuffle", False)
        announce = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self.start_training(
                announce.params["epochs"], announce.params["steps"]
            ),
            on_epoch_begin=lambda epoch, logs: self.start_epoch(epoch),
        )
        callbacks = [
            announce,
            StopAtDivergence(self._loss_watch),
            *self.own_callbacks(x, kwargs.get("batch_size"), kwargs.get("epochs", 1)),
            *keras.tree.flatten(callbacks or []),
        ]
        with self.running():
            self.build_optimizers()
            x, y, kwargs = runtime.share_out(x, y, kwargs)
            return super().fit(x, y, callbacks=callbacks, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """Takes one training step, as `keras.Model.train_on_batch`."""
        self._check_ready()
        with self.running():
            self.build_optimizers()
            return super().train_on_batch(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Evaluates the student; the arguments are those of `keras.Model.evaluate`."""
        return self._while_evaluating(super().evaluate, *args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Evaluates the student on one batch, as `keras.Model.test_on_batch`."""
        return self._while_evaluating(super().test_on_batch, *args, **kwargs)

    def _while_evaluating(self, function, *args, **kwargs):
        # `metrics` then leaves out the values tracked in training.
        self._evaluating = True
        try:
            with self.running():
                return function(*args, **kwargs)
        finally:
            self._evaluating = False

    def predict(self, *args, **kwargs):
        """Returns the student's logits, as `keras.Model.predict`."""
        with self.running():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def running(self):
        """Sets up what running the models needs, as long as the context is open.

        That is the scope of the strategy, batch normalization as tfkd runs it, and clear errors
        for labels outside of the classes.
        """
        with (
            self._scope(),
            runtime.batch_normalization_of(
                self, self.teacher, jit_compile=self.compiled and self.jit_compile
            ),
            checks.labels.clear_label_errors(self.student),
        ):
            yield

    def _scope(self):
        """Returns the scope that the distiller was built in; `fit` may be called outside of it."""
        strategy = self._distribute_strategy
        return contextlib.nullcontext() if strategy is None else strategy.scope()

    def _check_ready(self, labels=None):
        """Raises a `UsageError` early where training would fail later."""
        if not self.compiled or self.optimizer is None:
            raise UsageError("Compile the distiller with an optimizer before training it.")
        runtime.check_scope(self._distribute_strategy)
        if self.student.built and not self.student.trainable_variables:
            raise UsageError(
                f"Student {self.student.name!r} has nothing to train: set student.trainable = True."
            )
        checks.labels.check_labels(labels, self.label_loss)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        metrics = self._compile_metrics
        if (metrics is None or metrics.built) and all(one.built for one in self._flatten_layers()):
            # Keras would begin a pass over the data, in every validation, and build nothing.
            return
        if iterator is not None and runtime.num_replicas() > 1:
            _, _, batches = next(iter(iterator))
            iterator, data_batch = None, runtime.of_one_replica(next(batches))
        super()._maybe_symbolic_build(iterator, data_batch)

    def _make_function(self, step_function):
        make = super()._make_function
        return runtime.function_of_step(make, step_function, self.distribute_strategy)

    def save(self, filepath, **kwargs):
        """Saves the plain student: see `keras.Model.save`.

        The state of training (connectors, optimizers) is in `save_weights`; the teacher in
        neither.
        """
        self.student.save(filepath, **kwargs)

    def load_weights(self, filepath, **kwargs):
        """Restores the weights that `save_weights` saved of a distiller made in the same way.

        `keras.callbacks.ModelCheckpoint(..., save_weights_only=True)` saves by it, too. The
        student that was saved is then `distiller.student`.

        Raises:
            UsageError: If the file holds the weights of something else, or cannot be read.
        """
        self.ensure_built()
        if self.compiled:
            # Keras skips the state of optimizers that have no variables yet.
            self.build_optimizers()
        try:
            super().load_weights(filepath, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:
            if "could not be loaded" not in str(error):
                # Keras passes on the exceptions of the archive, HDF5 and JSON readers.
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise UsageError(f"{filepath} cannot be read as weights ({reason}).") from error
            raise UsageError(
                f"{filepath} holds no weights of a {type(self).__name__} of these models and "
                "losses: make the distiller as the one that saved it; weights that a student saved "
                "by itself are loaded by distiller.student.load_weights()."
            ) from error

    def export(self, filepath, **kwargs):
        """Exports the plain student: see `keras.Model.export`."""
        self.student.export(filepath, **kwargs)

    # Parts of a step: batch, update, logs.

    def unpack(self, data):
        """Returns the `Batch` of the data of `train_step`.

        Labels may come as `{"label": ..., "index": ..., "teacher": {tap: ...}, "teacher_images":
        ..., "peer_images": (..., ...)}`, with the positions of the samples in the training set,
        which some losses need, outputs of the teacher, and images for it, or for students after the
        first, in place of the student's.
        """
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built and hasattr(inputs, "shape"):
            # The shapes of a subclassed student. Variables are created outside of the step.
            with tf.init_scope():
                self.build((None, *inputs.shape[1:]))
                self.build_optimizers()
        indices = given = teacher_images = peer_images = None
        if isinstance(labels, dict):
            indices, given = labels.get("index"), labels.get("teacher")
            teacher_images, peer_images = labels.get("teacher_images"), labels.get("peer_images")
            labels = labels["label"]
        size = ops.shape(tf.nest.flatten(inputs)[0])[0]
        if not self._evaluating:
            runtime.check_samples(size)
        share = runtime.share_of_batch(size)
        self.check_peer_images(peer_images)
        return Batch(
            inputs,
            labels,
            sample_weight,
            indices,
            size,
            share,
            given,
            teacher_images,
            peer_images,
        )

    def check_peer_images(self, images):
        """Refuses images of peers, for a method that trains one student."""
        if images is not None:
            raise UsageError(
                f"{type(self).__name__} trains one student, and the data has images for "
                f"{len(images) + 1} (peer_views)."
            )

    def update(self, tape, objective, optimizer, variables, unconnected="none", clip_norm=None):
        """Takes one step of one optimizer on its own variables.

        Args:
            tape: The `tf.GradientTape` that recorded the objective.
            objective: Scalar, from `objective()` or `auxiliary_objective()`.
            optimizer: A Keras optimizer.
            variables: List of the variables that it updates.
            unconnected: The gradient of variables on which the objective does not depend:
                `"none"`, no update; `"zero"`, zero, so that momentum and weight decay go on.
            clip_norm: Number to which the norm of the gradient, summed over the replicas, is
                clipped; None for no clipping.

        Where gradients are accumulated, every `accumulation_steps`-th call takes a step on their
        mean.
        """
        accumulation = None
        if self.accumulation_steps > 1:
            accumulation = self._accumulations.by_optimizer[id(optimizer)]
        update(tape, objective, optimizer, variables, unconnected, clip_norm, accumulation)

    def declare_logs(self, names):
        """Declares values that only some epochs log; in the others they are 0.

        Other values need no declaration.

        Args:
            names: Iterable of strings.
        """
        self._means.training.declare(names)

    def track(self, name, value, batch):
        """Logs a value; the logs of an epoch have its mean over the samples.

        Args:
            name: String.
            value: Scalar, a mean over this replica's samples.
            batch: The `Batch`.
        """
        batch.values[name] = value

    def logs(self, batch, logits=None):
        """Adds the values of a step to the means of the epoch; called once, at its end.

        Args:
            batch: The `Batch`.
            logits: The student's logits, for the metrics given to `compile`; None to leave these
                out.

        Returns:
            All logs, `{name: scalar}`.
        """
        values = dict(batch.values)
        # Means over no sample are no numbers.
        loss = tf.where(batch.size > 0, values.pop(TOTAL), 0.0)
        self._loss_tracker.update_state(loss, sample_weight=batch.size)
        self._epoch_means().update_state(values, batch.size)
        if not self._evaluating:
            self._loss_watch.note(batch.parts, batch, self.students)
        if logits is None:
            return self.get_metrics_result()
        logits = ops.cast(logits, "float32")
        return self.compute_metrics(batch.inputs, batch.labels, logits, batch.sample_weight)

    @property
    def metrics(self):
        """The metrics of the student, and the means of the method's logs."""
        return [*super().metrics, self._epoch_means()]

    def _epoch_means(self):
        """Returns the means of training's logs, or those of evaluation while that runs."""
        return self._means.evaluation if self._evaluating else self._means.training
