"""BYOT: the end of a network teaches classifiers on its stages (Zhang et al., 2019)."""

from keras import ops

from tfkd import losses, taps
from tfkd.distillers import checks
from tfkd.distillers.learners_distiller import MAIN, LearnersDistiller, pooled
from tfkd.errors import check_nonnegative, check_share
from tfkd.losses import masked_mean


class ActiveFeatures(losses.DistillationLoss):
    """Squared distance of vectors where one of both is active.

    `mean_i Σ_c (s_ic − t_ic)² · [s_ic > 0 or t_ic > 0]`, on vectors `(batch, features)`.
    """

    spots = "pooled"

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two vectors; see the class."""
        active = ops.logical_or(student_tap > 0, teacher_tap > 0)
        squares = ops.where(active, ops.square(student_tap - teacher_tap), 0.0)
        return masked_mean(ops.sum(squares, axis=-1), sample_mask)


class BYOT(LearnersDistiller):
    """Be your own teacher: the student teaches auxiliary learners on its own stages.

    There is no teacher. All learners learn the labels; the auxiliary ones also learn from the
    student's prediction and from its pooled features, through which no gradient flows:

        L = (1 − alpha) · Σ_k CE(z_k, y)
            + alpha · Σ_{k ≠ main} temperature² · KL(softmax(z_main / T) ‖ softmax(z_k / T))
            + feature_weight · Σ_{k ≠ main} Σ (h_k − h_main)² [h_k > 0 or h_main > 0]

    with logits `z (batch, classes)` and pooled features `h (batch, channels)`, means over the
    samples. The stages below learn from the learners; that is what makes the student better.

    `distiller.student` stays the plain student; `early_exit("auxiliary1")` is the student up to
    its first stage with the learner there.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        alpha: Number from 0 to 1. Defaults to 0.1, from a public implementation.
        temperature: Positive number or schedule. Defaults to 3, from the same.
        feature_weight: Number of at least 0. Defaults to 1.28e-4: the same has 1e-6 on a sum over
            the batch, where this has the mean, at a batch of 128.
        auxiliary_learners: Integer, how many intermediate stages get a learner, from the last one
            down; −1 for all.
        auxiliary_design: `"bottleneck"` or `"separable"`; see `tfkd.layers.AuxiliaryLearner`.
        stages: List of taps of the student that are maps, in the order in which it computes
            them, its last feature map at the end. None for its stages as `tfkd.taps` finds them.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, a number is out of its range, or the student has fewer
            than two stages.

    Example:
    ```python
    distiller = tfkd.BYOT(student)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    distiller.early_exit("auxiliary1").save("exit1.keras")
    ```

    Logs: `loss`; `student_loss`, the student's on the labels; `learners_loss`, the sum of the
    others'; `self_distillation_loss` and `feature_loss`, unweighted; `{learner}_accuracy`, also
    of `evaluate`.

    Deviations: there is no official code; weights and temperature are those of a public
    implementation, whose author did not know the paper's. It has the cross-entropy with the soft
    targets where this has the divergence, which differs by a constant.

    References:
        - [Be Your Own Teacher](https://arxiv.org/abs/1905.08094), and a [public
          implementation](https://github.com/luanyunteng/pytorch-be-your-own-teacher).
    """

    id = "byot"
    needs_teacher = False
    label_terms = ("student_loss", "learners_loss")

    def __init__(
        self,
        student,
        teacher=None,
        alpha=0.1,
        temperature=3.0,
        feature_weight=1.28e-4,
        auxiliary_learners=-1,
        auxiliary_design="bottleneck",
        stages=None,
        name=None,
    ):
        checks.models.refuse_teacher(type(self), teacher)
        super().__init__(student, None, stages, auxiliary_learners, auxiliary_design, name=name)
        check_share("alpha", alpha)
        check_nonnegative("feature_weight", feature_weight)
        self.alpha = alpha
        self.feature_weight = feature_weight
        self.prediction_loss = losses.KnowledgeDistillation(temperature)
        self.feature_loss = ActiveFeatures(name="feature")

    def build(self, input_shape):
        """Creates the auxiliary learners for inputs of this shape."""
        super().build(input_shape)
        shapes = self.tap_shapes(input_shape)[0]
        logits, features = shapes[taps.LOGITS], (None, shapes[self.stages[-1]][-1])
        pupils = len(self.auxiliary)
        self.prediction_loss.build([logits] * pupils, [logits] * pupils)
        self.feature_loss.build([features] * pupils, [features] * pupils)

    def compute_losses(self, batch):
        """Runs the student and its learners once; the end teaches the others."""
        maps, logits = self.run_learners(self.observe_student(batch), training=True)
        vectors = pooled(maps)
        self.track_learners(batch, logits)
        own, others = self.learn_labels(batch, logits)
        prediction, features = (
            self.distillation_loss(
                loss,
                batch,
                [tensors[learner] for learner in self.auxiliary],
                [tensors[MAIN]] * len(self.auxiliary),
            )
            for loss, tensors in ((self.prediction_loss, logits), (self.feature_loss, vectors))
        )
        return logits[MAIN], {
            "student_loss": (1 - self.alpha, own),
            "learners_loss": (1 - self.alpha, others),
            "self_distillation_loss": (self.alpha, prediction),
            "feature_loss": (self.feature_weight, features),
        }
