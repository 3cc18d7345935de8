"""FitNet: a hint from the middle of the teacher (Romero et al., 2015)."""

import keras
from keras import ops

from tfkd.layers.adapter import Adapter
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten


def hint_distance(adapted, teacher_tap):
    """Mean squared error over all features, per sample.

    Args:
        adapted: Float32 tensor `(batch, ...)`, the student's features in the teacher's shape.
        teacher_tap: Float32 tensor of the same shape.

    Returns:
        A tensor `(batch,)`.
    """
    return ops.mean(ops.square(flatten(adapted - teacher_tap)), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class FitNet(DistillationLoss):
    """Mean squared error between adapted student features and the teacher's.

    `mean (adapter(s) − t)²` over samples, positions and channels. The adapter is a
    `tfkd.layers.Adapter`, trained with the student: a convolution that follows from the two
    shapes, batch normalisation and ReLU, or one dense layer where the taps are vectors.

    Args:
        weight: Number. Defaults to 1, as in the spot-adaptive study, which adds the KD loss. The
            CRD benchmark takes 100.
        spots: Defaults to `"hint"`: the second stage.

    Deviations: the paper trains the hint in a stage of its own, on the lower half of the
    student; as in both benchmarks it is one term of the loss throughout. With a mask, batch
    normalisation still takes its statistics from the whole batch.

    Example:
    ```python
    loss = tfkd.losses.FitNet()
    value = loss([student_map], [teacher_map], training=True)
    ```

    References:
        - [FitNets: Hints for Thin Deep Nets](https://arxiv.org/abs/1412.6550), section 2.2.
        - Adapter and weight:
          [Spot-adaptive Knowledge Distillation](https://arxiv.org/abs/2205.02399).
    """

    id = "fitnet"
    spots = "hint"
    tap_rank = (2, 4)

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.adapters = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the adapter from the student's shape to the teacher's."""
        name = f"{self.name}_adapter_{spot}"
        adapter = Adapter(teacher_shape[1:], name=name, dtype=self.dtype_policy)
        adapter.build(student_shape)
        self.adapters.append(adapter)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps through the spot's adapter; see the class."""
        adapted = self.adapters[spot](student_tap, training=training)
        return masked_mean(hint_distance(adapted, teacher_tap), sample_mask)
