"""PCL: branches that learn from ensemble and averages of them (Wu and Gong, 2021)."""

import dataclasses

import keras
from keras import layers, ops

from tfkd import runtime, taps
from tfkd.distillers.branched import ENSEMBLE, Branched
from tfkd.distillers.trainer import Untracked
from tfkd.errors import check_share

#: The learner whose weights are averages of the student's.
AVERAGED = "averaged"


class PCL(Branched):
    """Peer collaborative learning: an ensemble teaches, and averages of the peers over time do.

    `L = CE(z_e, y) + Σ_i [CE(z_i, y) + distillation_weight · temperature² ·
    (KL(z_e ‖ z_i) + mean_{j≠i} KL(m_j ‖ z_i))]`

    with softened predictions of the branches' logits `z_i`, of the ensemble's `z_e`, which a
    dense layer makes of the pooled vectors of all branches, and of the averaged branches' `m_j`.
    Trunk and branches have an average each, whose weights follow theirs after every step:
    `average ← decay · average + (1 − decay) · weights`, in the first steps the plain mean so far.
    It runs in training mode, and has batch-norm statistics of its own. No gradient flows into
    what teaches.

    `distiller.student` is the plain student, trunk and first branch; `averaged()` is its average,
    which the paper deploys; `ensemble()` is all branches with the dense layer.

    Args:
        student: A functional `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        branches: Integer of at least 2, the student's own included. Defaults to 3, as published.
        branch_at: Tap of the student at which the trunk ends: every path must pass through it.
            Defaults to the end of the last stage but one, as published for CIFAR.
        temperature: Positive number or schedule. Defaults to 3, as published.
        distillation_weight: Number of at least 0, or schedule.
        ramp: Number of epochs over which a `distillation_weight` that is a number grows to its
            value, see `tfkd.schedules.GaussianWarmUp`; 0 for none. Defaults to 80, as published
            for 300 epochs.
        decay: Number from 0 to 1, how much of an average is kept in a step. Defaults to 0.999, as
            published.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, an argument is out of its range, or the student cannot
            be cut or has no pooled vector.

    Example:
    ```python
    distiller = tfkd.PCL(student, ramp=8)
    distiller.compile(tfkd.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.averaged().save("averaged.keras")
    ```

    Logs: `loss`; `student_loss`, `branches_loss` and `ensemble_loss` on the labels, the second a
    sum over the other branches; `ensemble_kd_loss` and `averages_kd_loss`, what branches learn
    from ensemble and averages, sums, unweighted; `accuracy` of the student, `branch2_accuracy`,
    ... and `ensemble_accuracy`, also those of `evaluate`, which has `averaged_accuracy`, too.

    Deviations: in the paper each branch sees an augmentation of its own of every image, so that
    the trunk runs for each; here all see the same. No code of the authors was found: a port of
    others was read, and the paper's own text was not. The port's ramp divides by the weight in
    place of 80 epochs, so that branches learn next to nothing from each other up to then; here it
    takes `ramp` epochs, as in the other methods of branches.

    References:
        - [Peer Collaborative Learning for Online Knowledge
          Distillation](https://arxiv.org/abs/2006.04147), and a
          [port](https://github.com/shaoeric/Peer-Collaborative-Learning-for-Online-Knowledge-Distillation).
    """

    id = "pcl"
    needs_pooled = True

    def __init__(
        self,
        student,
        teacher=None,
        branches=3,
        branch_at=None,
        temperature=3.0,
        distillation_weight=1.0,
        ramp=80.0,
        decay=0.999,
        name=None,
    ):
        super().__init__(
            student, teacher, branches, branch_at, temperature, distillation_weight, ramp, name
        )
        check_share("decay", decay)
        self.decay = decay
        seen = [self.branch_at, self.pooled]
        #: The averages of the student, and of the other branches.
        self.averages = [
            *taps.copies(student, None, 1, seen),
            *taps.copies(student, self.branch_at, branches - 1),
        ]
        trained = [self._observers.student, *self.copies]
        self._followed = Untracked(pairs=[])
        for average, one in zip(self.averages, trained):
            average.set_weights(one.get_weights())
            self._followed.pairs += zip(average.trainable_variables, one.trainable_variables)
        for variable, _ in self._followed.pairs:
            # Not the layers', whose batch normalization would then run in inference mode.
            variable.trainable = False
        self._averaged = Untracked(model=None)

    def build_ensemble(self, shapes):
        """Creates the dense layer of the ensemble."""
        *_, features = shapes[self.pooled]
        *_, classes = shapes[taps.LOGITS]
        self.ensemble_classifier = layers.Dense(classes, dtype=self.student.dtype_policy)
        self.ensemble_classifier.build((None, features * (len(self.copies) + 1)))

    def join(self, branches, training):
        """Returns what the dense layer makes of the pooled vectors of all branches."""
        vectors = ops.concatenate(branches["pooled"], axis=-1)
        return {"ensemble": ops.cast(self.ensemble_classifier(vectors), "float32")}

    def train_step(self, data):
        """Takes a step of trunk and branches, and lets the averages follow."""
        batch = self.unpack(data)
        # Outside of the tape, which would keep their activations.
        averages = self.observe_averages(batch)
        steps = ops.cast(self.optimizer.iterations, "float32")
        logits = self.learn(batch, averages)
        self.follow(ops.cast(self.optimizer.iterations, "float32"), before=steps)
        return self.logs(batch, logits)

    def compute_losses(self, batch, averages=None):
        """Runs trunk, branches and averages once; the branches learn from all.

        Args:
            batch: The `Batch`.
            averages: From `observe_averages()`; None to run them.

        Returns:
            The student's logits and the terms; see `Distiller`.
        """
        averages = self.observe_averages(batch) if averages is None else averages
        branches = self.observe_branches(batch)
        return branches["logits"][0], self.teach(batch, branches, averages)

    def observe_averages(self, batch):
        """Returns a list of the averages' float32 logits `(batch, classes)`, without gradient."""
        student, *copies = self.averages
        found = student(batch.inputs, training=True)
        ends = [found, *(copy(found[self.branch_at], training=True) for copy in copies)]
        for average in self.averages:
            # Their activity is not regularized.
            runtime.take_activity_losses(average)
        return [ops.stop_gradient(ops.cast(end[taps.LOGITS], "float32")) for end in ends]

    def teach(self, batch, branches, averages):
        """Returns the terms of labels, ensemble and averages.

        Args:
            batch: The `Batch`.
            branches: Dictionary, as from `observe`.
            averages: List of the averages' logits.
        """
        logits, ensemble = branches["logits"], branches["ensemble"]
        others = [averages[:own] + averages[own + 1 :] for own in range(len(logits))]
        pupils = [one for one, theirs in zip(logits, others) for _ in theirs]
        weight, value = self.divergence(batch, pupils, sum(others, start=[]))
        return {
            **self.label_losses(batch, branches),
            "ensemble_loss": (1.0, self.student_loss(batch, ensemble)),
            "ensemble_kd_loss": self.divergence(batch, logits, [ensemble] * len(logits)),
            "averages_kd_loss": (weight, value / len(others[0])),
        }

    def follow(self, steps, before):
        """Moves the averages towards the weights.

        Args:
            steps: Float32 scalar, the optimizer's steps so far.
            before: Float32 scalar, those before this step: where gradients are accumulated, or
                overflow, it takes none.
        """
        rate = (steps - before) * ops.maximum(1 / ops.maximum(steps, 1.0), 1 - self.decay)
        variables, weights = zip(*self._followed.pairs)
        runtime.assign_on_replicas(
            [variable.value for variable in variables],
            # In this form the first step copies the weights exactly.
            [(1 - rate) * own.value + rate * other.value for own, other in zip(variables, weights)],
        )

    def test_step(self, data):
        """Evaluates student, branches, ensemble and the averaged student."""
        batch = self.unpack(data)
        # Its activity is not regularized.
        aside, average = dataclasses.replace(batch, activity=[]), self.averages[0]
        logits = self.run_student(aside, average, average, training=False)
        self.track_accuracy(f"{AVERAGED}_accuracy", logits[taps.LOGITS], batch)
        return self.evaluated(batch, self.observe_branches(batch, training=False)["logits"][0])

    def learners(self):
        """Returns `{"averaged": averaged student, "ensemble": ensemble of the branches}`."""
        return {AVERAGED: self.averaged(), ENSEMBLE: self.ensemble()}

    def averaged(self):
        """Returns the student with averaged weights, a plain `keras.Model` that follows it."""
        if self._averaged.model is None:
            average = self.averages[0]
            self._averaged.model = keras.Model(
                average.input, average.output[taps.LOGITS], name=AVERAGED
            )
        return self._averaged.model
