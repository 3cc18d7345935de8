"""SAKD: spot-adaptive knowledge distillation (Song et al., 2022)."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfkd import losses as losses_module
from tfkd import pictures, runtime, taps
from tfkd.distillers.losses_distiller import LossesDistiller
from tfkd.distillers.routing import Routing
from tfkd.errors import UsageError, check_number, check_one_of, check_positive
from tfkd.layers import SpotPolicy

DECISIONS = ("policy", "reversed", "random", "always")
#: The spot that is always there.
LOGITS = (taps.LOGITS, taps.LOGITS)


def routing_factor(routing_loss, student_loss, scale):
    """Returns the factor of the loss of the routed features.

    Args:
        routing_loss: Scalar, the cross-entropy of the routed features.
        student_loss: Scalar, that of the student.
        scale: Number of at least 1.

    Returns:
        A scalar: `scale` where the routed features do worse than the student, `1 / scale` where
        they do better.
    """
    worse, better = routing_loss > student_loss, routing_loss < student_loss
    return ops.where(worse, scale, ops.where(better, 1.0 / scale, 1.0))


def same_architecture(student, teacher):
    """Whether two networks are one architecture in two depths.

    That is: as many stages, and at the end of each, and in the pooled vector, as many channels
    from the same kind of layer. Widths that are only proportional do not count, as in the study
    (resnet32x4 and resnet32).

    Args:
        student: A functional `keras.Model`.
        teacher: A functional `keras.Model`.
    """

    def features(model):
        layers = dict(taps.of_kind(model, keras.layers.Layer))
        places = [*_places(model, "stages", "pooled"), _summary(model)]
        tensors = taps.extractor(model, places).output
        return [(type(layers.get(tap)), tensors[tap].shape[-1]) for tap in places]

    return features(student) == features(teacher)


def _places(model, word, otherwise):
    """Returns the taps of one kind of spots, or of another where there are none."""
    try:
        return taps.at_spots(model, word)
    except UsageError:
        return taps.at_spots(model, otherwise)


def _summary(model):
    """Returns the tap that the policy reads: the pooled vector, or else the last map."""
    return _places(model, "pooled", "last_map")[0]


class SAKD(LossesDistiller):
    """Spot-adaptive distillation: a policy decides for each sample where to distil.

    The policy network reads both models' pooled features and decides, per sample, at which spots
    the losses count. To judge a decision, the features are routed through both networks: at each
    spot they go on in the teacher where it distils, in the student where not. The cross-entropy
    of what comes out trains the policy and the adapters between the networks, and nothing else.

    One step, with decisions `a` of 0 and 1, `M_j` the `n_j` samples with `a_j = 1` and `B` the
    batch size:

    1. `L_S = CE(student) + α · n_out / B · KD(M_out) + Σ_j β_j · n_j / B · loss_j(M_j)`
    2. `L_R = γ^±1 · CE(routed) + max(0, B / 2 − Σ a_out)`, with `γ` where the routed features do
       worse than the student, `1 / γ` where they do better
    3. policy and adapters take a step on `L_R`, then the student, with the connectors of the
       losses, one on `L_S`

    Any loss can be made adaptive: it gets the samples of each of its spots as a mask.

    Args:
        student: A functional `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained functional `keras.Model` that outputs logits `(batch, classes)`.
        losses: List of `tfkd.losses.DistillationLoss` objects or ids. Their spots together are
            where is decided; two losses at one spot share its decision. `"kd"` on the logits is
            part of the method: where it is not among them it is added, with weight 1 and
            temperature 4.
        decisions: What decides. `"policy"` is the method; the others are its controls:
            `"reversed"` distils where the policy says not to; `"random"` distils with
            probability 0.5 and has neither policy nor routing, and `routing_scale` then weighs
            the loss on the labels; `"always"` is plain distillation.
        routing_scale: Number of at least 1, the `γ` above. The study uses 2 for `at`, `rkd` and
            `vid` and 1 for its other losses on CIFAR-100, and 2 for all on Tiny-ImageNet.
        homogeneous: Whether the networks are one architecture in two depths. The policy then
            starts with distilling nearly everywhere (+10 on the biases), otherwise undecided.
            `"auto"` compares the channels and kinds of layers at the ends of the stages.
        gumbel_temperature: Positive number that scales the gradient of the decisions.
        relational_scope: `"global"` or `"replica"`; see `Distiller`.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If a model is subclassed, so that it has no segments; if the spots are not in
            one order in both networks, or one of them cannot be cut; if an argument is none of
            the above.

    Optimizers: `policy_optimizer`, by default SGD with half the student's learning rate,
    momentum 0.9 and weight decay 1e-3, as in the study.

    Logs: `loss`, `student_loss`, `distillation_loss`, each loss by its name, unweighted;
    `spot_<tap>_share`, the share of samples distilled at each spot; `routing_loss` (`L_R`) and
    `routing_accuracy`, that of the routed features.

    Deviations from the study's code: `ft` is 0 where no sample is chosen (there it falls back to
    the whole batch), and relational losses are 0 where fewer than two are (there some are not a
    number); batch normalizations in the connectors of `fitnet` and `ft` see the whole batch (there
    the chosen samples); moving variances are Keras', of the population (there of the sample).
    Not from the study, which has none of it: several losses at once, sample weights (samples of
    weight 0 count in no sum), and the mean over the positions as the policy's view of a network
    without a pooled vector.

    Example:
    ```python
    distiller = tfkd.SAKD(student, teacher, losses=["at"], routing_scale=2.0)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4))
    distiller.fit(train, validation_data=validation, epochs=240)
    ```

    References:
        - [Spot-adaptive Knowledge Distillation](https://arxiv.org/abs/2205.02399), and its
          [code](https://github.com/zju-vipa/spot-adaptive-pytorch).
    """

    id = "sakd"
    needs_classes = True
    extra_optimizers = {
        "policy_optimizer": {
            "name": "sgd",
            "relative_learning_rate": 0.5,
            "momentum": 0.9,
            "weight_decay": 1e-3,
        }
    }

    def __init__(
        self,
        student,
        teacher,
        losses=("at",),
        decisions="policy",
        routing_scale=1.0,
        homogeneous="auto",
        gumbel_temperature=5.0,
        relational_scope="global",
        teacher_preprocessing=None,
        name=None,
    ):
        check_one_of("value of decisions", decisions, DECISIONS)
        check_number("routing_scale", routing_scale, "at least 1", lambda x: x >= 1)
        check_positive("gumbel_temperature", gumbel_temperature)
        if homogeneous not in ("auto", True, False):
            raise UsageError(
                f"homogeneous must be 'auto', True or False; received {homogeneous!r}."
            )
        _check_functional(student, teacher)
        losses = _with_logits(losses)
        super().__init__(student, teacher, losses, relational_scope, teacher_preprocessing, name)
        self.decisions = decisions
        self.routing_scale = routing_scale
        self.student_loss_weight = routing_scale if decisions == "random" else 1.0
        self.spots = [*self._spots_in_order(), LOGITS]
        self.policy = self.routing = None
        if decisions in ("policy", "reversed"):
            self._summaries = (_summary(teacher), _summary(student))
            self.watch(student=self._summaries[1:], teacher=self._summaries[:1])
            if homogeneous == "auto":
                homogeneous = same_architecture(student, teacher)
            bias = 10.0 if homogeneous else 0.0
            self.policy = SpotPolicy(len(self.spots), bias, gumbel_temperature)
            self.routing = Routing(student, teacher, self.spots[:-1], dtype=self.dtype_policy)
        else:
            self.extra_optimizers = {}
            self.seed_generator = keras.random.SeedGenerator()
        # Per class the distilled samples at each spot in this epoch; the last column counts all.
        self.counts = self.add_weight(
            shape=(student.output_shape[-1], len(self.spots) + 1),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
            name="counts",
        )

    def _spots_in_order(self):
        """Returns the different pairs of taps but the logits, from the first to the last."""
        used = [pairs for loss, pairs in self.distillation_parts() if loss.weight != 0]
        pairs = list(dict.fromkeys(pair for pairs in used for pair in pairs if pair != LOGITS))
        partners = dict(pairs)
        ordered = [(tap, partners[tap]) for tap in taps.in_order(self.student, partners)]
        of_teacher = [tap for _, tap in ordered]
        if len(ordered) < len(pairs) or of_teacher != taps.in_order(self.teacher, of_teacher):
            raise UsageError(
                "SAKD routes through its spots one after the other: each tap of the student needs "
                "one tap of the teacher, in the same order in both; received "
                f"{', '.join(' - '.join(pair) for pair in pairs)}."
            )
        return ordered

    def build(self, input_shape):
        """Creates the weights of policy, adapters and losses for inputs of this shape."""
        if self.policy is not None:
            student, teacher = self.tap_shapes(input_shape)
            of_teacher, of_student = self._summaries
            self.policy.build((None, teacher[of_teacher][-1] + student[of_student][-1]))
            routed = self.spots[:-1]
            self.routing.build(
                [student[tap] for tap, _ in routed], [teacher[tap] for _, tap in routed]
            )
        super().build(input_shape)

    @property
    def policy_variables(self):
        """The variables of the policy and the adapters, which learn from the routed features."""
        if self.policy is None:
            return []
        return self.policy.trainable_variables + self.routing.trainable_variables

    @property
    def student_variables(self):
        """The variables of the student and of connectors, which learn from the student's loss."""
        others = {id(variable) for variable in self.policy_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in others]

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        optimizers = {"optimizer": (self.optimizer, self.student_variables)}
        if self.policy is not None:
            optimizers["policy_optimizer"] = (self.policy_optimizer, self.policy_variables)
        return optimizers

    def start_epoch(self, epoch):
        """Resets the counts of distilled samples."""
        super().start_epoch(epoch)
        self.counts.assign(ops.zeros_like(self.counts))

    def decide(self, batch, student, teacher):
        """Returns the decisions of each sample: the spots at which it is distilled.

        Args:
            batch: The `Batch`.
            student: `{tap: tensor}`, from `observe_student`.
            teacher: `{tap: tensor}`, from `observe_teacher`.

        Returns:
            A float32 tensor `(batch, spots)` of zeros and ones, the logits' decision last. Its
            gradient reaches the policy and nothing else.
        """
        shape = (len(self.spots),)
        if self.decisions == "always":
            return ops.ones((batch.size, *shape))
        if self.policy is None:
            drawn = runtime.draw_per_sample(
                lambda size: keras.random.uniform((size, *shape), seed=self.seed_generator),
                batch.size,
            )
            return ops.cast(drawn < 0.5, "float32")
        of_teacher, of_student = self._summaries
        views = [_vector(teacher[of_teacher]), _vector(student[of_student])]
        noise = runtime.draw_per_sample(self.policy.noise, batch.size)
        return self.policy(tf.stop_gradient(ops.concatenate(views, axis=-1)), noise=noise)

    def route(self, batch, teacher, decisions):
        """Returns the logits of the features that the decisions route through both networks."""
        _, first = self.spots[0]
        routed = self.routing(batch.inputs, teacher[first], decisions, training=True)
        # This pass does not train the student: its regularizers are discarded.
        runtime.take_activity_losses(self.student)
        return routed

    def routing_objective(self, batch, routed, decisions, student_loss):
        """Returns the objective of policy and adapters, `L_R` of the class.

        Args:
            batch: The `Batch`.
            routed: Logits `(batch, classes)` of the routed features.
            decisions: From `decide()`.
            student_loss: Scalar, the student's loss on the labels.
        """
        routing_loss = self.student_loss(batch, routed)
        factor = routing_factor(
            batch.mean_over_replicas(routing_loss),
            batch.mean_over_replicas(student_loss),
            self.routing_scale,
        )
        taking_part = _taking_part(batch)
        too_few = ops.sum(taking_part * (0.5 - decisions[:, -1]))
        # The constraint is on the global batch, not on each replica's part.
        hinge = ops.where(runtime.sum_over_replicas(too_few) > 0, too_few, 0.0)
        self.track_accuracy("routing_accuracy", routed, batch)
        terms = {"routing_loss": (1.0, factor * routing_loss + batch.sum_as_mean(hinge))}
        return self.auxiliary_objective(batch, terms)

    def selected(self, decisions):
        """Returns the mask of distilled samples, `(batch, spots)`, without gradient."""
        selected = tf.stop_gradient(decisions) > 0.5
        if self.decisions == "reversed":
            selected = ~selected
        return ops.cast(selected, "float32")

    def train_step(self, data):
        """Decides, routes and distils; policy and adapters take their step before the student."""
        batch = self.unpack(data)
        teacher = self.observe_teacher(batch)
        with tf.GradientTape(persistent=self.policy is not None) as tape:
            student = self.observe_student(batch)
            student_loss = self.student_loss(batch, student["logits"])
            decisions = self.decide(batch, student, teacher)
            if self.policy is not None:
                routed = self.route(batch, teacher, decisions)
                routing_objective = self.routing_objective(batch, routed, decisions, student_loss)
            selected = self.selected(decisions)
            terms = self.distil(batch, student, teacher, student_loss, selected)
            objective = self.objective(batch, terms)
        if self.policy is not None:
            self.update(tape, routing_objective, self.policy_optimizer, self.policy_variables)
        self.update(tape, objective, self.optimizer, self.student_variables)
        self.count(batch, selected)
        return self.logs(batch, student["logits"])

    def compute_losses(self, batch):
        """Decides and distils; the losses are the student's."""
        teacher = self.observe_teacher(batch)
        student = self.observe_student(batch)
        logits = student["logits"]
        selected = self.selected(self.decide(batch, student, teacher))
        student_loss = self.student_loss(batch, logits)
        return logits, self.distil(batch, student, teacher, student_loss, selected)

    def distil(self, batch, student, teacher, student_loss, selected):
        """Returns the terms of the student's objective.

        Args:
            batch: The `Batch`.
            student: `{tap: tensor}`, from `observe_student`.
            teacher: `{tap: tensor}`, from `observe_teacher`.
            student_loss: Scalar, the student's loss on the labels.
            selected: From `selected()`.
        """
        masks = dict(zip(self.spots, ops.unstack(selected, axis=1)))
        return {
            "student_loss": (self.student_loss_weight, student_loss),
            **self.distillation_terms(batch, student, teacher, masks),
        }

    def count(self, batch, selected):
        """Counts the distilled samples, for the logs and for the picture per class."""
        taking_part = _taking_part(batch)[:, None]
        distilled = selected * taking_part
        for number, (spot, _) in enumerate(self.spots):
            self.track(_share(spot), ops.mean(distilled[:, number]), batch)
        number_of_classes = self.counts.shape[0]
        classes = ops.one_hot(batch.class_numbers(number_of_classes), number_of_classes)
        counted = ops.concatenate([distilled, taking_part], axis=1)
        counted = ops.matmul(ops.transpose(classes), counted)
        self.counts.assign_add(runtime.sum_over_replicas(counted))

    def shares_per_class(self):
        """Returns the shares of samples that were distilled in the current or last epoch.

        Returns:
            A NumPy array `(spots, classes)`, the logits last; NaN for classes without samples, so
            for all before training.
        """
        counts = ops.convert_to_numpy(self.counts)
        seen = np.where(counts[:, -1:] > 0, counts[:, -1:], np.nan)
        return (counts[:, :-1] / seen).T

    def pictures(self, history):
        """Returns the shares of samples distilled: over training, and per class at its end."""
        names = [spot for spot, _ in self.spots]
        contents = {"share of samples distilled": {name: _share(name) for name in names}}
        return {
            "spots.png": pictures.Panels(history, contents),
            "spots_per_class.png": pictures.HeatMap(
                self.shares_per_class(),
                rows=names,
                row_title="spot",
                column_title="class",
                title="share of samples distilled in the last epoch",
            ),
        }


def _check_functional(student, teacher):
    """Raises a `UsageError` for a model that has no segments."""
    for role, model in (("Student", student), ("Teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise UsageError(f"SAKD needs a {role.lower()}, a keras.Model; received {model!r}.")
        if taps.output(model) is None:
            raise UsageError(
                f"{role} {model.name!r} is subclassed: SAKD routes features through the segments "
                "of both models, and those of Python code cannot be cut. Make it functional, for "
                "example of the layers that this one has."
            )


def _with_logits(losses):
    """Returns the losses as objects, with kd of weight 1 first where it is not among them."""
    if isinstance(losses, (str, losses_module.DistillationLoss)):
        losses = [losses]
    kd = losses_module.KnowledgeDistillation
    losses = [kd(weight=1.0) if loss == kd.id else losses_module.get(loss) for loss in losses]
    return losses if any(isinstance(loss, kd) for loss in losses) else [kd(weight=1.0), *losses]


def _share(spot):
    """The name of a spot's share in the logs."""
    return f"spot_{spot.replace('/', '_')}_share"


def _vector(features):
    """Returns features `(batch, ..., channels)` as float32 vectors, averaged over positions."""
    features = ops.cast(features, "float32")
    return ops.mean(features, axis=list(range(1, len(features.shape) - 1)))


def _taking_part(batch):
    """Returns 1 for the samples of a batch that count and 0 for those of weight 0."""
    if batch.sample_weight is None:
        return ops.ones((batch.size,))
    return ops.cast(batch.sample_weight > 0, "float32")
