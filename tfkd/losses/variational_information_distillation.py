"""VID: how much of the teacher the student's features tell (Ahn et al., 2019)."""

import math

import keras
from keras import layers, ops

from tfkd.layers.torch_defaults import uniform_fan_in
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, match_sizes

LEAST_VARIANCE = 1e-5
FIRST_VARIANCE = 5.0


def negative_log_likelihood(mean, log_scale, teacher_map):
    """Negative log-likelihood of the teacher's map, without its constant, per sample.

    Args:
        mean: Float32 tensor `(batch, height, width, channels)`, the student's prediction.
        log_scale: Float32 tensor `(channels,)`, the variance before its softplus.
        teacher_map: Float32 tensor of the shape of `mean`.

    Returns:
        A tensor `(batch,)`, the mean over positions and channels.
    """
    variance = ops.softplus(log_scale) + LEAST_VARIANCE
    likelihood = ops.square(mean - teacher_map) / variance + ops.log(variance)
    return 0.5 * ops.mean(flatten(likelihood), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class VariationalInformationDistillation(DistillationLoss):
    """Gaussian negative log-likelihood of the teacher's features given the student's.

    `Σ_spots mean ½ ((μ(s) − t)² / v + ln v)` over samples, positions and channels, on maps
    `(batch, height, width, channels)`. `μ` is three 1×1 convolutions without bias, of the
    teacher's width, with ReLU between them; `v = ln(1 + e^ρ) + 1e-5` is one variance per
    channel, 5 at the start. Both are trained with the student. Where the sizes differ, the
    larger map is average-pooled to the smaller. The value can be negative.

    Args:
        weight: Number. Defaults to 1, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"stages"`: every stage but the stem and the pooled vector.

    Deviations: the paper also distils the logits; as in both benchmarks only features here.

    Example:
    ```python
    loss = tfkd.losses.VariationalInformationDistillation()
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Variational Information Distillation](https://arxiv.org/abs/1904.05835), section 2.
        - Form and weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "vid"
    spots = "stages"
    tap_rank = 4

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.regressors = []
        self.log_scales = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the regressor of the mean and the variance of one spot."""
        width = teacher_shape[-1]
        regressor = keras.Sequential()
        for channels, activation in ((student_shape[-1], "relu"), (width, "relu"), (width, None)):
            kernel = uniform_fan_in(channels)["kernel_initializer"]
            regressor.add(
                layers.Conv2D(
                    width,
                    1,
                    use_bias=False,
                    activation=activation,
                    kernel_initializer=kernel,
                    data_format="channels_last",
                    dtype=self.dtype_policy,
                )
            )
        regressor.build((None, None, None, student_shape[-1]))
        self.regressors.append(regressor)
        start = math.log(math.exp(FIRST_VARIANCE - LEAST_VARIANCE) - 1)
        self.log_scales.append(
            self.add_weight(
                shape=(width,),
                initializer=keras.initializers.Constant(start),
                name=f"log_scale_{spot}",
            )
        )

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        student_tap, teacher_tap = match_sizes(student_tap, teacher_tap)
        mean = self.regressors[spot](student_tap)
        value = negative_log_likelihood(mean, self.log_scales[spot], teacher_tap)
        return masked_mean(value, sample_mask)
