"""ONE: branches that learn from their own gated ensemble (Lan et al., 2018)."""

import keras
from keras import layers, ops

from tfkd.distillers.branched import Branched


class ONE(Branched):
    """On-the-fly native ensemble: a gate mixes the branches, and the mixture teaches them.

    `L = Σ_i CE(z_i, y) + CE(z_e, y) + distillation_weight · temperature² · Σ_i KL(z_e ‖ z_i)`

    with softened predictions of the branches' logits `z_i` and of the ensemble's,
    `z_e = Σ_i g_i · z_i`. The gate `g = softmax(relu(normalize(dense(pooled trunk))))` weighs the
    branches for each image. No gradient flows into the ensemble as a target; it learns from
    the labels.

    `distiller.student` is the plain student, trunk and first branch; `ensemble()` is all of them
    with their gate.

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
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, an argument is out of its range, or the student cannot
            be cut.

    Example:
    ```python
    distiller = tfkd.ONE(student, ramp=8)
    distiller.compile(tfkd.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    distiller.ensemble().save("ensemble.keras")
    ```

    Logs: `loss`; `student_loss`, `branches_loss` and `ensemble_loss` on the labels, the second a
    sum over the other branches; `kd_loss`, the sum of the divergences, unweighted; `accuracy` of
    the student, `branch2_accuracy`, ... and `ensemble_accuracy`, also those of `evaluate`;
    `student_gate`, `branch2_gate`, ..., mean weights in the ensemble.

    Deviations: the published code adds 1e-7 to the ensemble's probabilities, which moves the
    divergence in the fifth digit. It says of no branch that it is the student; here that is the
    first.

    References:
        - [Knowledge Distillation by On-the-Fly Native Ensemble](https://arxiv.org/abs/1806.04606),
          and its [code](https://github.com/Lan1991Xu/ONE_NeurIPS2018).
    """

    id = "one"

    def build_ensemble(self, shapes):
        """Creates the gate."""
        dtype = self.student.dtype_policy
        self.gate = keras.Sequential(
            [
                layers.Dense(len(self.copies) + 1, dtype=dtype),
                layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype),
                layers.ReLU(dtype=dtype),
            ],
            name="gate",
        )
        self.gate.build((None, shapes[self.branch_at][-1]))

    def gates(self, trunk, training):
        """Returns the float32 weights `(batch, branches)` of the branches, which add up to 1."""
        if len(trunk.shape) > 2:
            trunk = ops.mean(trunk, axis=tuple(range(1, len(trunk.shape) - 1)))
        return ops.softmax(ops.cast(self.gate(trunk, training=training), "float32"))

    def join(self, branches, training):
        """Returns the gates, and the logits of the branches weighted by them."""
        gates = self.gates(branches["trunk"], training)
        weighted = ops.expand_dims(gates, -1) * ops.stack(branches["logits"], axis=1)
        return {"gates": gates, "ensemble": ops.sum(weighted, axis=1)}

    def teach(self, batch, branches):
        """Returns the terms of labels and ensemble."""
        logits, ensemble = branches["logits"], branches["ensemble"]
        for position, name in enumerate(["student", *self.branch_names]):
            self.track(f"{name}_gate", ops.mean(branches["gates"][:, position]), batch)
        return {
            **self.label_losses(batch, branches),
            "ensemble_loss": (1.0, self.student_loss(batch, ensemble)),
            "kd_loss": self.divergence(batch, logits, [ensemble] * len(logits)),
        }
