"""AB: which neurons of the teacher are active (Heo et al., 2019)."""

import keras
from keras import ops

from tfkd.errors import check_positive
from tfkd.layers.adapter import Adapter
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten


def boundary_distance(student_tap, teacher_tap, margin=1.0):
    """Squared distance by which activations miss the teacher's side of zero, per sample.

    Args:
        student_tap: Float32 tensor `(batch, ...)`.
        teacher_tap: Float32 tensor of the same shape.
        margin: Positive number, how far from zero an activation must be.

    Returns:
        A tensor `(batch,)`: the sum over all features of `max(0, margin − s)²` where the teacher
        is above zero, and of `max(0, s + margin)²` elsewhere.
    """
    miss = ops.where(teacher_tap > 0, margin - student_tap, student_tap + margin)
    return ops.sum(ops.square(flatten(ops.relu(miss))), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class ActivationBoundary(DistillationLoss):
    """Squared hinge that puts the student's activations on the teacher's side of zero.

    `3/1000 · Σ_j 2^(j−J) · (1/n) Σ max(0, margin − s)²` where the teacher is above zero and
    `max(0, s + margin)²` elsewhere, the sum over all features of the spots `j = 1 … J`. Where a
    student's tap differs from the teacher's in shape, a trainable connector precedes: a
    `tfkd.layers.Adapter` without activation.

    The loss initialises the student: in a stage before training, student and connectors minimise
    it; then the student is trained on its labels, without this loss.

    Args:
        margin: Positive number. Defaults to 1, as published.
        weight: Number, the weight in the main stage, not in the preparation. Defaults to 0, as
            published: then the stage before training is all there is.
        spots: Defaults to `"stages"`: every stage but the stem and the pooled vector.

    The stage before training: 30 epochs of SGD with learning rate 0.05, momentum 0.9 and weight
    decay 5e-4. Reconstructed: as far as known the CRD benchmark takes the optimizer of the main
    stage, so learning rate 0.01 for MobileNetV2 and ShuffleNet students, and has a connector
    only where shapes differ.

    Raises:
        UsageError: If `margin` is not positive.

    Deviations: the paper and the benchmark take features before their ReLU. Here they are the
    taps as they are: with a tap after a ReLU, a teacher's feature of exactly 0 counts as
    inactive, and the student's cannot become negative except through a connector.

    Example:
    ```python
    loss = tfkd.losses.ActivationBoundary()
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
          Neurons](https://arxiv.org/abs/1811.03233), section 3.
        - Weights of the spots and form: the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "ab"
    spots = "stages"
    tap_rank = (2, 4)
    preparation = {"epochs": 30, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    prepares_student = True

    def __init__(self, margin=1.0, weight=0.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_positive("margin", margin)
        self.margin = margin
        self.connectors = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the connector of one spot, where the shapes differ."""
        if student_shape[1:] == teacher_shape[1:]:
            self.connectors.append(keras.layers.Identity(dtype=self.dtype_policy))
            return
        name = f"{self.name}_connector_{spot}"
        connector = Adapter(teacher_shape[1:], activation=None, name=name, dtype=self.dtype_policy)
        connector.build(student_shape)
        self.connectors.append(connector)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps through the spot's connector; see the class."""
        adapted = self.connectors[spot](student_tap, training=training)
        distance = boundary_distance(adapted, teacher_tap, self.margin)
        # The last spot counts most: 1, and each one before it half of the next.
        spot_weight = 2.0 ** (spot + 1 - len(self.connectors))
        return 0.003 * spot_weight * masked_mean(distance, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "margin": self.margin}
