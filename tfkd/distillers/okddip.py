"""OKDDip: peers that teach each other by attention, and a leader (Chen et al., 2020)."""

from keras import ops

from tfkd.distillers.branched import Branched
from tfkd.errors import check_positive
from tfkd.layers import LogitAttention


class OKDDip(Branched):
    """Online distillation with diverse peers: each has a mixture of its own to learn from.

    The other branches are peers, and learn from each other; the student is the leader, and learns
    from their mean:

    `L = Σ_i CE(z_i, y) + CE(z, y) + distillation_weight · temperature² ·
    (Σ_i KL(Σ_j a_ij · z_j ‖ z_i) + KL(mean_j z_j ‖ z))`

    with softened predictions of the peers' logits `z_i` and the leader's `z`. The attention
    `a_i = softmax_j(query(h_i) · key(h_j))` compares pooled vectors `h`, a peer's own included,
    so that peers may learn from others than their neighbours do. Gradients flow into the targets:
    nothing else teaches query and key.

    `distiller.student` is the plain student, trunk and leader; `ensemble()` is the mean of the
    peers' logits, what the leader learns from.

    Args:
        student: A functional `keras.Model` that outputs logits `(batch, classes)`.
        teacher: None; the argument is there because every method has it.
        branches: Integer of at least 3, the peers and the leader. Defaults to 4, as published.
        branch_at: Tap of the student at which the trunk ends: every path must pass through it.
            Defaults to the end of the last stage but one, as published for CIFAR.
        temperature: Positive number or schedule. Defaults to 3, as published.
        distillation_weight: Number of at least 0, or schedule.
        ramp: Number of epochs over which a `distillation_weight` that is a number grows to its
            value, see `tfkd.schedules.GaussianWarmUp`; 0 for none. Defaults to 80, as published
            for 300 epochs.
        reduction: Positive number; query and key have a width of that of the pooled vector
            divided by it. Defaults to 8, as published.
        name: String, optional.

    Raises:
        UsageError: If there is a teacher, an argument is out of its range, or the student cannot
            be cut or has no pooled vector.

    Example:
    ```python
    distiller = tfkd.OKDDip(student, ramp=8)
    distiller.compile(tfkd.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`; `student_loss` of the leader and `branches_loss` of the peers, a sum, on the
    labels; `peers_kd_loss`, a sum, and `leader_kd_loss`, unweighted; `accuracy` of the student,
    `branch2_accuracy`, ... of the peers and `ensemble_accuracy`, also those of `evaluate`;
    `own_attention`, the mean weight that peers give to themselves.

    Deviations: the published code adds 1e-7 to the targets' probabilities, which moves the
    divergences in the fifth digit. Peers of which each is a network of its own, its other form,
    are not here: `tfkd.MutualDistiller` is next to it.

    References:
        - [Online Knowledge Distillation with Diverse Peers](https://arxiv.org/abs/1912.00350),
          and its [code](https://github.com/DefangChen/OKDDip-AAAI2020).
    """

    id = "okddip"
    least_branches = 3
    needs_pooled = True

    def __init__(
        self,
        student,
        teacher=None,
        branches=4,
        branch_at=None,
        temperature=3.0,
        distillation_weight=1.0,
        ramp=80.0,
        reduction=8.0,
        name=None,
    ):
        super().__init__(
            student, teacher, branches, branch_at, temperature, distillation_weight, ramp, name
        )
        check_positive("reduction", reduction)
        self.reduction = reduction
        self.kd.teacher_gradient = True

    def build_ensemble(self, shapes):
        """Creates query and key of the attention."""
        self.attention = LogitAttention(self.reduction, dtype=self.student.dtype_policy)
        peers, features = len(self.copies), shapes[self.pooled][-1]
        self.attention.build([(None, peers, features), (None, peers, None)])

    def join(self, branches, training):
        """Returns the mean of the peers' logits."""
        return {"ensemble": ops.mean(ops.stack(branches["logits"][1:]), axis=0)}

    def mixtures(self, branches):
        """Returns what each peer learns from.

        Args:
            branches: Dictionary, as from `observe`.

        Returns:
            The tuple `(mixtures, attention)` of shapes `(batch, peers, classes)` and
            `(batch, peers, peers)`.
        """
        stacked = [ops.stack(branches[name][1:], axis=1) for name in ("pooled", "logits")]
        return self.attention(stacked)

    def teach(self, batch, branches):
        """Returns the terms of labels, peers and leader."""
        leader, *peers = branches["logits"]
        mixtures, attention = self.mixtures(branches)
        own = ops.mean(ops.diagonal(attention, axis1=1, axis2=2))
        self.track("own_attention", own, batch)
        targets = ops.unstack(mixtures, axis=1)
        return {
            **self.label_losses(batch, branches),
            "peers_kd_loss": self.divergence(batch, peers, targets),
            "leader_kd_loss": self.divergence(batch, [leader], [branches["ensemble"]]),
        }
