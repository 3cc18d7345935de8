"""DKS: classifiers on all stages of a network teach each other (Sun et al., 2019)."""

import itertools

from tfkd import losses, schedules, taps
from tfkd.distillers import checks
from tfkd.distillers.learners_distiller import MAIN, LearnersDistiller


class DKS(LearnersDistiller):
    """Deeply-supervised knowledge synergy: the student and its learners teach each other.

    There is no teacher. All learners, the student among them, learn the labels, and each from
    each of the others:

        L = Σ_k CE(z_k, y)
            + synergy_weight · Σ_{j ≠ k} temperature² · KL(softmax(z_j / T) ‖ softmax(z_k / T))

    with logits `z (batch, classes)`, means over the samples. No gradient flows through what
    teaches, `z_j`.

    `distiller.student` stays the plain student; `early_exit("auxiliary1")` is the student up to
    its first stage with the learner there.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        synergy_weight: Number of at least 0 or schedule. Defaults to 1, as in the published code.
        temperature: Positive number or schedule. Defaults to 1, as in the published code.
        auxiliary_learners: Integer, how many intermediate stages get a learner, from the last one
            down; −1 for all.
        auxiliary_design: `"separable"` or `"bottleneck"`; see `tfkd.layers.AuxiliaryLearner`.
        stages: List of taps of the student that are maps, in the order in which it computes
            them, its last feature map at the end. None for its stages as `tfkd.taps` finds them.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, a number is out of its range, or the student has fewer
            than two stages.

    Example:
    ```python
    distiller = tfkd.DKS(student)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`; `student_loss`, the student's on the labels; `learners_loss`, the sum of the
    others'; `synergy_loss`, unweighted; `{learner}_accuracy`, also of `evaluate`.

    Deviations: the published learners are copies of the stages that are left, and wide; these are
    light. It adds 1e-8 to all probabilities.

    References:
        - [Deeply-supervised Knowledge Synergy](https://arxiv.org/abs/1906.00675), and its
          [code](https://github.com/sundw2014/DKS).
    """

    id = "dks"
    needs_teacher = False
    label_terms = ("student_loss", "learners_loss")

    def __init__(
        self,
        student,
        teacher=None,
        synergy_weight=1.0,
        temperature=1.0,
        auxiliary_learners=-1,
        auxiliary_design="separable",
        stages=None,
        name=None,
    ):
        checks.models.refuse_teacher(type(self), teacher)
        super().__init__(student, None, stages, auxiliary_learners, auxiliary_design, name=name)
        schedules.number_or_schedule("synergy_weight", synergy_weight, nonnegative=True)
        self.synergy = losses.KnowledgeDistillation(
            temperature, weight=synergy_weight, name="synergy"
        )

    def build(self, input_shape):
        """Creates the auxiliary learners for inputs of this shape."""
        super().build(input_shape)
        logits = self.tap_shapes(input_shape)[0][taps.LOGITS]
        pairs = len(self.auxiliary) * (len(self.auxiliary) + 1)
        self.synergy.build([logits] * pairs, [logits] * pairs)

    def compute_losses(self, batch):
        """Runs the student and its learners once; each learns from each of the others."""
        _, logits = self.run_learners(self.observe_student(batch), training=True)
        self.track_learners(batch, logits)
        own, others = self.learn_labels(batch, logits)
        pupils, teachers = zip(*itertools.permutations(logits.values(), 2))
        value = self.distillation_loss(self.synergy, batch, list(pupils), list(teachers))
        return logits[MAIN], {
            "student_loss": (1.0, own),
            "learners_loss": (1.0, others),
            "synergy_loss": (self.synergy.value_of(self.synergy.weight), value),
        }
