"""AT: where in the image the features are strong (Zagoruyko and Komodakis, 2017)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, match_sizes, normalize


def attention(features):
    """The spatial attention of a map.

    Args:
        features: Float32 tensor `(batch, height, width, channels)`.

    Returns:
        A tensor `(batch, height · width)`: the mean square over the channels, of L2 norm 1.
    """
    return normalize(flatten(ops.mean(ops.square(features), axis=-1)))


def attention_distance(student_map, teacher_map):
    """Mean squared difference of two attentions, per sample.

    Args:
        student_map: Float32 tensor `(batch, height, width, channels)`.
        teacher_map: Float32 tensor `(batch, height, width, channels)`; the larger of both maps
            is pooled to the size of the smaller, and the channels may differ.

    Returns:
        A tensor `(batch,)`.
    """
    student_map, teacher_map = match_sizes(student_map, teacher_map)
    return ops.mean(ops.square(attention(student_map) - attention(teacher_map)), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class AttentionTransfer(DistillationLoss):
    """Mean squared difference of spatial attention maps.

    `Σ_spots mean_{i, position} (Q(s_i) − Q(t_i))²` with `Q(f) = v / ‖v‖`, where `v` is the mean
    of `f²` over the channels, on maps `(batch, height, width, channels)`. The channels may
    differ; where the sizes do, the larger map is average-pooled to the smaller.

    Args:
        weight: Number. Defaults to 1000, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"stages"`: every stage but the stem and the pooled vector.

    Deviations: the paper sums squares over the channels and takes the norm of the difference; as
    in the benchmark it is a mean, and a mean square.

    Example:
    ```python
    loss = tfkd.losses.AttentionTransfer()
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Paying More Attention to Attention](https://arxiv.org/abs/1612.03928), section 3.1.
        - Form and weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "at"
    spots = "stages"
    tap_rank = 4

    def __init__(self, weight=1000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        return masked_mean(attention_distance(student_tap, teacher_tap), sample_mask)
