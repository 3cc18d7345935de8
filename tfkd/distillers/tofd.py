"""TOFD: learners on stages of both models compare features (Zhang et al., 2020)."""

import keras
from keras import layers, ops

from tfkd import losses, taps
from tfkd.distillers.learners_distiller import MAIN, LearnersDistiller, find_stages, pooled
from tfkd.distillers.preparation import Preparation
from tfkd.errors import UsageError, check_nonnegative, check_positive
from tfkd.losses.numerics import keep_selected, norm_or_one, selection


class FrobeniusDistance(losses.DistillationLoss):
    """The norm of the difference of two batches of vectors, `‖S − T‖_F` over the whole batch.

    With a mask it is that of the selected samples, times their fraction.
    """

    spots = "pooled"
    relational = True

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two vectors; see the class."""
        selected = selection(sample_mask, student_tap)
        return frobenius(keep_selected(student_tap - teacher_tap, selected)) * ops.mean(selected)


def frobenius(matrix):
    """Returns the norm of a matrix; of zeros it is 0, without gradient."""
    is_zero = ops.all(matrix == 0)
    return ops.where(is_zero, 0.0, norm_or_one(matrix, axis=(0, 1))[0, 0])


def orthogonality(kernel):
    """How far a matrix `W` is from an orthogonal one, `‖W Wᵀ − I‖_F + ‖Wᵀ W − I‖_F`."""
    kernel = ops.cast(kernel, "float32")
    transposed = ops.transpose(kernel)
    products = ops.matmul(kernel, transposed), ops.matmul(transposed, kernel)
    return sum(frobenius(product - ops.eye(product.shape[0])) for product in products)


class TeacherLearners(layers.Layer):
    """Auxiliary learners of a teacher, which learn the labels before the student is trained.

    They are prepared as a `tfkd.losses.DistillationLoss` is.

    Args:
        learners: `{learner: tfkd.layers.AuxiliaryLearner}`, built.
    """

    preparation = {"epochs": 30, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    prepares_student = False

    def __init__(self, learners):
        super().__init__(name="teacher_learners")
        self.learners = learners
        self.prepared = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="prepared",
        )

    @property
    def preparation_variables(self):
        """List of the variables that the stage before training updates."""
        return self.trainable_variables


class TeacherLearnersPreparation(Preparation):
    """Trains the auxiliary learners of the teacher on the labels, the teacher frozen."""

    def __init__(self, distiller):
        distiller.teacher_learners.trainable = True
        pairs = [(taps.LOGITS, stage) for stage in distiller.teacher_stages]
        super().__init__(distiller, distiller.teacher_learners, pairs)
        self._run = distiller.run_teacher_learners

    def compute_losses(self, batch):
        """Runs the teacher and its learners once."""
        _, logits = self._run(self.observe_teacher(batch), training=True)
        logits.pop(MAIN)
        values = [self.student_loss(batch, tensor) for tensor in logits.values()]
        return None, {"preparation_loss": (1.0, sum(values))}

    def finish(self):
        """Marks them as prepared, and freezes them."""
        super().finish()
        self.prepared_loss.trainable = False


class TOFD(LearnersDistiller):
    """Task-oriented feature distillation: learners on both sides make features comparable.

    Auxiliary learners read the intermediate stages of teacher and student. Those of the teacher
    learn the labels before the student is trained, and are then frozen. Every learner `k` of the
    student, the student itself among them, learns the labels, the prediction of the teacher's
    learner at the same stage, and through a linear map its pooled features:

        L = Σ_k CE(z_k, y) + Σ_k KL(softmax(u_k / T) ‖ softmax(z_k / T))
            + feature_weight · Σ_k ‖W_k h_k − g_k‖_F
            + orthogonal_weight · Σ_k (‖W_k W_kᵀ − I‖_F + ‖W_kᵀ W_k − I‖_F)

    with logits `z`, `u` `(batch, classes)` and pooled features `h`, `g` `(batch, channels)` of
    student and teacher. The norm of the features is that of the whole batch; the divergence is
    not multiplied by `T²`. `T` grows from 1 to `temperature` by equal steps from epoch to epoch.

    The stage before training: 30 epochs of the teacher's learners on the labels, SGD with learning
    rate 0.05, momentum 0.9 and weight decay 5e-4; ours.

    `distiller.student` stays the plain student; `early_exit("auxiliary1")` is the student up to
    its first stage with the learner there.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` of as many stages.
        feature_weight: Number of at least 0. Defaults to 0.05, as in the published code.
        orthogonal_weight: Number of at least 0. Defaults to 0.03, as in the published code.
        temperature: Positive number, that of the last epoch. Defaults to 4, as in the published
            code.
        auxiliary_learners: Integer, how many intermediate stages get a learner, from the last one
            down; −1 for all.
        auxiliary_design: `"separable"` or `"bottleneck"`; see `tfkd.layers.AuxiliaryLearner`.
        stages: List of taps of the student that are maps, in the order in which it computes
            them, its last feature map at the end. None for its stages as `tfkd.taps` finds them.
        teacher_stages: The same of the teacher, as many.
        relational_scope: `"global"` or `"replica"`, of the norm of the features; see `Distiller`.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If there is no teacher, a number is out of its range, or the models have other
            numbers of stages, or one.

    Example:
    ```python
    distiller = tfkd.TOFD(student, teacher)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`; `student_loss`, the student's on the labels; `learners_loss`, the sum of the
    others'; `kd_loss`, `feature_loss` and `orthogonal_loss`, unweighted; `{learner}_accuracy`,
    also of `evaluate`.

    Deviations: the published teacher is trained together with its learners; here it is as it was
    given, and they are trained for it. The published
    loop takes one step of the optimizer in each epoch and leaves the teacher in training mode;
    here it is as in every method. It has the cross-entropy with the soft targets where this has
    the divergence, which differs by a constant.

    References:
        - [Task-Oriented Feature
          Distillation](https://proceedings.neurips.cc/paper/2020/hash/a96b65a721e561e1e3de768ac819ffbb-Abstract.html),
          and its [code](https://github.com/ArchipLab-LinfengZhang/Task-Oriented-Feature-Distillation).
    """  # noqa: E501

    id = "tofd"
    label_terms = ("student_loss", "learners_loss")

    def __init__(
        self,
        student,
        teacher,
        feature_weight=0.05,
        orthogonal_weight=0.03,
        temperature=4.0,
        auxiliary_learners=-1,
        auxiliary_design="separable",
        stages=None,
        teacher_stages=None,
        teacher_preprocessing=None,
        relational_scope="global",
        name=None,
    ):
        super().__init__(
            student,
            teacher,
            stages,
            auxiliary_learners,
            auxiliary_design,
            relational_scope,
            teacher_preprocessing,
            name,
        )
        self.teacher_stages = find_stages(self.teacher, teacher_stages, "teacher_stages", "teacher")
        if len(self.teacher_stages) != len(self.stages):
            raise UsageError(
                f"TOFD pairs the stages of both models, and the student has {len(self.stages)} "
                f"({', '.join(self.stages)}), the teacher {len(self.teacher_stages)} "
                f"({', '.join(self.teacher_stages)}): name as many, stages=[...] and "
                "teacher_stages=[...]."
            )
        check_nonnegative("feature_weight", feature_weight)
        check_nonnegative("orthogonal_weight", orthogonal_weight)
        check_positive("temperature", temperature)
        self.feature_weight = feature_weight
        self.orthogonal_weight = orthogonal_weight
        self.temperature = temperature
        # The temperature of an epoch is applied to its logits here.
        self.divergence = losses.KnowledgeDistillation(1.0, weight=1.0, activation="softmax")
        self.feature_loss = FrobeniusDistance(name="feature")
        self._epochs = 1
        self.current_temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(temperature),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",
            name="temperature",
        )
        self.watch(teacher=self.teacher_stages)

    def build(self, input_shape):
        """Creates the learners of both models, and the maps between their features."""
        super().build(input_shape)
        student, teacher = self.tap_shapes(input_shape)
        learners = self.make_learners(teacher, self.teacher_stages, self.teacher)
        self.teacher_learners = TeacherLearners(learners)
        self.teacher_learners.trainable = False
        self.links = {}
        given, wanted = student[self.stages[-1]][-1], teacher[self.teacher_stages[-1]][-1]
        for learner in [*self.auxiliary, MAIN]:
            self.links[learner] = layers.Dense(
                wanted, use_bias=False, name=f"{learner}_link", dtype=self.student.dtype_policy
            )
            self.links[learner].build((None, given))
        count = len(self.links)
        self.feature_loss.build([(None, wanted)] * count, [(None, wanted)] * count)
        self.divergence.build([student[taps.LOGITS]] * count, [teacher[taps.LOGITS]] * count)

    def distillation_parts(self):
        """Returns the loss that teacher and plain student share, for `check`."""
        return [(self.divergence, [(taps.LOGITS, taps.LOGITS)])]

    def preparations(self):
        """Returns the training of the teacher's learners, where they are not trained yet."""
        if not self.built:
            raise UsageError(
                f"Student {self.student.name!r} has not run yet, so its shapes are unknown: call "
                "the distiller on a batch first."
            )
        if self.teacher_learners.preparation is None or self.teacher_learners.prepared.numpy():
            return []
        return [TeacherLearnersPreparation(self)]

    def start_training(self, epochs, steps):
        """Fits the temperature to the length of training."""
        self._epochs = epochs

    def start_epoch(self, epoch):
        """Sets the temperature of an epoch."""
        super().start_epoch(epoch)
        share = min((epoch + 1) / self._epochs, 1.0)
        self.current_temperature.assign(1 + (self.temperature - 1) * share)

    def run_teacher_learners(self, teacher, training=False):
        """Runs the teacher's learners; see `run_learners`.

        Args:
            teacher: `{tap: tensor}`, as from `observe_teacher`.
            training: Whether they run in training mode.
        """
        return self.run_on(teacher, self.teacher_learners.learners, self.teacher_stages, training)

    def compute_losses(self, batch):
        """Runs both models and their learners once; each learns from its counterpart."""
        their_maps, targets = self.run_teacher_learners(self.observe_teacher(batch))
        maps, logits = self.run_learners(self.observe_student(batch), training=True)
        self.track_learners(batch, logits)
        own, others = self.learn_labels(batch, logits)
        names, temperature = list(self.links), self.current_temperature
        vectors, their_vectors = pooled(maps), pooled(their_maps)
        feature = self.distillation_loss(
            self.feature_loss,
            batch,
            [self.links[name](vectors[name]) for name in names],
            [their_vectors[name] for name in names],
        )
        soft = self.distillation_loss(
            self.divergence,
            batch,
            *(
                [ops.cast(side[name], "float32") / temperature for name in names]
                for side in (logits, targets)
            ),
        )
        orthogonal = sum(orthogonality(link.kernel) for link in self.links.values())
        return logits[MAIN], {
            "student_loss": (1.0, own),
            "learners_loss": (1.0, others),
            "kd_loss": (1.0, soft),
            "feature_loss": (self.feature_weight, feature),
            "orthogonal_loss": (self.orthogonal_weight, orthogonal),
        }
