"""IAKD: random blocks of the student are the teacher's (Fu et al., 2021)."""

import dataclasses

import keras
import tensorflow as tf
from keras import ops

from tfkd import losses, optimizers, pictures, runtime, schedules
from tfkd.distillers.blocks import cut, cut_points, inherit_ends
from tfkd.distillers.distiller import Distiller
from tfkd.errors import (
    UsageError,
    check_number,
    check_one_of,
    check_positive_integer,
    check_share,
)
from tfkd.training.reestimation import Reestimation
from tfkd.training.statistics import restore_on_exit

SCHEDULES = ("uniform", "linear", "review")
SAMPLINGS = ("batch", "sample")
STATISTICS = ("moving", "batch")
REESTIMATIONS = ("auto", "always", "never")


class IAKD(Distiller):
    """Interactive knowledge distillation: random blocks of the student are the teacher's.

    Both networks are cut into `L` blocks. In every step a draw decides for each block whether
    the student's runs or the teacher's in its place:

    `x_l = a_l · S_l(x_{l-1}) + (1 - a_l) · T_l(x_{l-1})`, `a_l ~ Bernoulli(p_l)`

    and the student learns from its labels alone, `loss = student_loss(classifier(x_L))`. Stem and
    classifier are always the student's. The teacher's blocks are frozen and in inference mode,
    but gradients pass through them to the student's blocks before: that is how it teaches. A
    block that is swapped out gets neither gradient nor batch-norm update in that step; to the
    optimizer its gradient is zero, so momentum and weight decay go on.

    Args:
        student: A functional `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained functional `keras.Model` that outputs logits `(batch, classes)`.
        granularity: `"stage"`, a block is everything at one resolution; or `"unit"`, a block is
            one residual unit of the student and its share of the teacher's.
        blocks: `[(student tap, teacher tap), ...]`: where to cut, in place of `granularity`. The
            first pair ends the stems, and the last begins the student's classifier.
        schedule: How the probability `p` to keep the student's block changes over the epochs:
            `"uniform"`, always `start`; `"linear"`, from `start` to 1; `"review"`, the same again
            after every drop of the learning rate; a `tfkd.schedules.Schedule`; or a list with one
            of these for each block.
        start: Number in [0, 1], the probability at the start.
        growth: Number in (0, 1], the part of the run after which `"linear"` reaches 1.
        milestones: Increasing fractions of the run at which `"review"` restarts; None for
            those at which the optimizer's learning rate drops. They are rounded to epochs.
        sampling: `"batch"`, one draw per block and step, which runs only what was drawn; or
            `"sample"`, one per block and example, which runs both and costs accordingly.
        teacher_statistics: By what the batch normalizations in the teacher's blocks normalize:
            `"moving"`, their moving statistics, which are those of the teacher's own features; or
            `"batch"`, the statistics of the batch, which follow the student's. Neither changes
            the teacher.
        inherit: Whether the student's stem and classifier start with the teacher's weights, so
            that the network of the teacher's blocks alone is the teacher. Their layers must have
            equal shapes, and both models see the same images.
        kd_weight: Number or schedule, the weight of the KL divergence between the predictions of
            the mixed network and of the teacher, which then runs in full too. 0 leaves it out.
        temperature: Positive number or schedule, for that divergence.
        reestimation: Whether to recompute the student's batch-norm statistics after every
            epoch, before validation: `"auto"`, where blocks are still swapped in the last epoch,
            as under all three schedules but `"linear"` with a small `growth`; `"always"`;
            `"never"`.
        reestimation_batches: Integer, the largest number of training batches for it.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
            Only its run in full, for `kd_weight`, sees inputs.
        name: String, optional.

    Raises:
        UsageError: If the models do not fit each other (see `Distiller`), cannot be cut, fall
            into different numbers of blocks, or an argument is none of the above.

    Example:
    ```python
    distiller = tfkd.IAKD(student, teacher)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, `keep_probability`, `swapped_share` (of all blocks) and `swapped_{tap}` for every
    block; `student_loss` and `kd_loss` where the latter takes part; `reestimation_seconds` where
    statistics are recomputed. `accuracy` is that of the mixed network, `val_accuracy` that
    of the student.

    Deviations: the abstract of the paper says that blocks are randomly replaced; no code was
    published and the full text was not at hand. Recalled rather than verified are the form above,
    the frozen teacher with gradients through it, the loss without a distillation term and the
    names of the three schedules; what they mean, all default values, the granularity, the
    transitions (1×1 convolution without bias and batch normalization around the teacher's block,
    where shapes differ), one draw per batch, `kd_weight` and the recomputed batch-norm statistics
    are our choices.

    References:
        - [Interactive Knowledge Distillation](https://arxiv.org/abs/2007.01476).
        - [BERT-of-Theseus](https://arxiv.org/abs/2002.02925), its sister in language models.
    """

    id = "iakd"
    # Momentum and weight decay of a swapped block go on.
    unconnected = "zero"

    def __init__(
        self,
        student,
        teacher,
        granularity="stage",
        blocks=None,
        schedule="review",
        start=0.5,
        growth=1.0,
        milestones=None,
        sampling="batch",
        teacher_statistics="moving",
        inherit=False,
        kd_weight=0.0,
        temperature=4.0,
        reestimation="auto",
        reestimation_batches=200,
        teacher_preprocessing=None,
        name=None,
    ):
        if isinstance(teacher, (list, tuple)):
            raise UsageError("IAKD needs one teacher, whose blocks stand in for the student's.")
        super().__init__(student, teacher, teacher_preprocessing=teacher_preprocessing, name=name)
        check_share("start", start)
        check_number("growth", growth, "above 0, and at most 1", lambda x: 0 < x <= 1)
        check_positive_integer("reestimation_batches", reestimation_batches)
        check_one_of("sampling", sampling, SAMPLINGS)
        check_one_of("teacher_statistics", teacher_statistics, STATISTICS)
        check_one_of("reestimation", reestimation, REESTIMATIONS)
        self.start, self.growth = start, growth
        self.milestones = None if milestones is None else _checked_milestones(milestones)
        self.sampling = sampling
        self.reestimation, self.reestimation_batches = reestimation, reestimation_batches
        schedules.number_or_schedule("kd_weight", kd_weight, nonnegative=True)
        self.kd = losses.get("kd", weight=kd_weight, temperature=temperature)
        cuts = cut_points(student, teacher, granularity, blocks)
        self.teacher_statistics = teacher_statistics
        self.parts = cut(student, teacher, cuts, self.dtype_policy, teacher_statistics == "batch")
        if inherit:
            inherit_ends(self.parts, teacher, cuts)
        self.transitions = [layer for block in self.parts.blocks for layer in block.transitions]
        self.schedules = self._per_block(schedule)
        self._by_epoch = [self._by_name(kind, None, None) for kind in self.schedules]
        self.seed_generator = keras.random.SeedGenerator()
        self.keep_probability = self.add_weight(
            shape=(len(self.parts.blocks),),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
            name="keep_probability",
        )
        self.start_epoch(0)

    def compute_losses(self, batch):
        """Sends a batch through the student, some of whose blocks are the teacher's."""
        kept = self.draw(batch.size)
        features = self.run_student(batch, self.parts.stem, self.parts.stem)
        for block, keep in zip(self.parts.blocks, kept):
            features = self.run_block(batch, block, keep, features)
        last, classifier = dataclasses.replace(batch, inputs=features), self.parts.classifier
        logits = self.run_student(last, classifier, classifier)
        terms = {"student_loss": (1.0, self.student_loss(batch, logits))}
        if self.kd.weight != 0:
            teacher = self.observe_teacher(batch)
            value = self.distillation_loss(self.kd, batch, [logits], [teacher["logits"]])
            terms["kd_loss"] = (self.kd.value_of(self.kd.weight), value)
        self._track_swaps(kept, batch)
        return logits, terms

    def draw(self, size):
        """Decides which blocks of this step are the student's; the same on all replicas.

        Args:
            size: Integer tensor, the number of this replica's samples.

        Returns:
            A list of boolean tensors, one for each block, True to keep it: scalars, or `(size,)`
            where every example has its own draw.
        """
        blocks = len(self.parts.blocks)
        if self.sampling == "batch":
            return tf.unstack(self._uniform((blocks,)) < self.keep_probability)
        numbers = runtime.draw_per_sample(lambda total: self._uniform((total, blocks)), size)
        return tf.unstack(numbers < self.keep_probability, num=blocks, axis=1)

    def _uniform(self, shape):
        """Draws uniform float32 numbers in [0, 1)."""
        seed = tf.cast(self.seed_generator.next(), "int32")
        # The bits are the same with XLA and without; TensorFlow's own uniform numbers are not.
        bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
        return tf.cast(tf.bitwise.right_shift(bits, 8), "float32") * 2.0**-24

    def run_block(self, batch, block, keep, features):
        """Returns the student's features after a block, or the teacher's in their place.

        Args:
            batch: The `Batch`, which records the activity regularization.
            block: A `Block`.
            keep: Boolean, Python's or a scalar tensor, whether the student's runs; or a tensor
                `(batch,)`.
            features: Tensor, what the block before returned.
        """
        if isinstance(keep, bool):
            outputs, activity = block.run(keep, features)
        elif self.sampling == "sample":
            (ours, of_ours), (theirs, of_theirs) = (
                block.run(True, features),
                block.run(False, features),
            )
            outputs = tf.where(tf.reshape(keep, [-1] + [1] * (len(ours.shape) - 1)), ours, theirs)
            activity = of_ours + of_theirs
        elif runtime.num_replicas() == 1:
            outputs, activity = tf.cond(
                keep, lambda: block.run(True, features), lambda: block.run(False, features)
            )
        else:
            # Replicas cannot communicate inside of a condition, as batch normalization does: both
            # run, and the statistics of the swapped one are restored.
            with restore_on_exit(block.student_statistics(), keep):
                ours, of_ours = block.run(True, features)
            with restore_on_exit(block.teacher_statistics(), tf.logical_not(keep)):
                theirs, of_theirs = block.run(False, features)
            outputs = tf.where(keep, ours, theirs)
            activity = tf.where(keep, of_ours, of_theirs)
        if block.regularizes:
            batch.activity.append(activity)
        return outputs

    def _track_swaps(self, kept, batch):
        """Logs the probability, and how many blocks were swapped."""
        self.track("keep_probability", ops.mean(self.keep_probability), batch)
        shares = [ops.mean(1.0 - tf.cast(keep, "float32")) for keep in kept]
        self.track("swapped_share", sum(shares) / len(shares), batch)
        for block, share in zip(self.parts.blocks, shares):
            self.track(f"swapped_{block.name}", share, batch)

    def distillation_parts(self):
        """Returns `[(loss, [(student tap, teacher tap), ...]), ...]`."""
        return [(self.kd, [("logits", "logits")])] if self.kd.weight != 0 else []

    def pictures(self, history):
        """Returns `{"swaps.png": ...}`: how often the blocks were swapped."""
        shares = {
            f"block that ends at {block.name}": f"swapped_{block.name}"
            for block in self.parts.blocks
        }
        contents = {
            "probability to keep the student's block": {"mean over blocks": "keep_probability"},
            "share of blocks swapped": {**shares, "all": "swapped_share"},
        }
        return {"swaps.png": pictures.Panels(history, contents)}

    # The probability of keeping a block.

    def _per_block(self, schedule):
        """Returns a name or a `Schedule` for each block."""
        kinds = (
            schedule if isinstance(schedule, (list, tuple)) else [schedule] * len(self.parts.blocks)
        )
        if len(kinds) != len(self.parts.blocks):
            raise UsageError(
                f"schedule needs one for each of the {len(self.parts.blocks)} blocks (up to "
                f"{', '.join(block.name for block in self.parts.blocks)}); received {len(kinds)}."
            )
        kinds = [schedules.from_keras(kind) for kind in kinds]
        for kind in kinds:
            if not isinstance(kind, schedules.Schedule) and kind not in SCHEDULES:
                raise UsageError(
                    f"schedule must be one of {', '.join(SCHEDULES)}, a tfkd.schedules.Schedule, "
                    f"or a list of them; received {kind!r}."
                )
            for value in getattr(kind, "bounds", ()):
                check_share(f"schedule={kind!r}", value)
        return list(kinds)

    def _by_name(self, kind, epochs, steps):
        """Returns the `Schedule` that a name means; None as long as that needs `epochs`."""
        if isinstance(kind, schedules.Schedule):
            return kind
        if kind == "uniform":
            return schedules.Constant(self.start)
        if epochs is None:
            return None
        if kind == "linear":
            return schedules.LinearWarmUp(self.start, 1.0, self.growth * epochs)
        fractions = self.milestones
        if fractions is None:
            # Schedules count the optimizer's own steps.
            total = steps and steps * epochs // self.accumulation_steps
            fractions = optimizers.drops(self.optimizer, total)
        milestones = {round(fraction * epochs) for fraction in fractions} - {0, epochs}
        return schedules.LinearRestarts(self.start, 1.0, sorted(milestones), epochs)

    def start_training(self, epochs, steps):
        """Fits the schedules to the length of training."""
        self._by_epoch = [self._by_name(kind, epochs, steps) for kind in self.schedules]

    def start_epoch(self, epoch):
        """Sets the probabilities of an epoch.

        Raises:
            UsageError: If one is not between 0 and 1, or depends on an unknown number of epochs.
        """
        super().start_epoch(epoch)
        if epoch > 0 and None in self._by_epoch:
            raise UsageError(
                "schedule='linear' and 'review' depend on the length of training, known in fit: "
                "call start_training(epochs, steps) before, or pass a tfkd.schedules.Schedule."
            )
        values = [
            self.start if schedule is None else float(schedule(epoch))
            for schedule in self._by_epoch
        ]
        for value in values:
            check_share(f"The probability to keep a block, at epoch {epoch},", value)
        self.keep_probability.assign(values)

    def own_callbacks(self, x, batch_size=None, epochs=1):
        """Returns the callback that recomputes batch-norm statistics, where it is enabled.

        Raises:
            UsageError: If it is enabled and the data is neither a `tf.data.Dataset` nor arrays.
        """
        if not self._reestimates(epochs):
            return []
        return [Reestimation(x, batch_size, self.reestimation_batches)]

    def _reestimates(self, epochs):
        """Whether statistics are recomputed; by default where blocks are swapped to the end."""
        if self.reestimation != "auto":
            return self.reestimation == "always"
        # "review" is below 1 in the last epoch wherever its milestones are, if it starts below.
        kinds = ["uniform" if kind == "review" else kind for kind in self.schedules]
        last = [self._by_name(kind, epochs, None)(epochs - 1) for kind in kinds]
        return min(map(float, last)) < 1


def _checked_milestones(milestones):
    """Returns increasing fractions of a run as a tuple."""
    numbers = tuple(milestones) if isinstance(milestones, (list, tuple)) else None
    if numbers is None or list(numbers) != sorted(numbers) or not all(0 < x < 1 for x in numbers):
        raise UsageError(
            "milestones are increasing fractions of the run, between 0 and 1; received "
            f"{milestones!r}."
        )
    return numbers
