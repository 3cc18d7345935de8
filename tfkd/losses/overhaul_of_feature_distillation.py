"""OFD: features before their ReLU, with margins below zero (Heo et al., 2019)."""

import math

import keras
from keras import ops

from tfkd import taps
from tfkd.errors import UsageError
from tfkd.layers.normalized_convolution import NormalizedConvolution
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, keep_selected, match_sizes, selection

#: A channel that is negative less often than this has three deviations as its margin.
LEAST_NEGATIVE = 1e-3


def expected_margin(gamma, beta):
    """The mean negative value of each channel behind a batch normalisation.

    Args:
        gamma: Float32 tensor `(channels,)`, of which the size is the channels' deviation.
        beta: Float32 tensor `(channels,)`, their mean.

    Returns:
        A tensor `(channels,)`: the mean of a normal distribution where that is below zero, or
        minus three deviations where it hardly ever is.
    """
    deviation = ops.abs(gamma)
    # A channel that is constant has no density; its margin is itself, or zero.
    safe = ops.where(deviation > 0, deviation, ops.ones_like(deviation))
    density = ops.exp(-0.5 * ops.square(beta / safe)) / math.sqrt(2.0 * math.pi)
    negative = 0.5 * (1.0 + ops.erf(-beta / safe / math.sqrt(2.0)))
    often = negative > LEAST_NEGATIVE
    mean = beta - safe * density / ops.where(often, negative, ops.ones_like(negative))
    margin = ops.where(often, mean, -3.0 * safe)
    return ops.where(deviation > 0, margin, ops.minimum(beta, 0.0))


def observed_margin(teacher_map, selected):
    """The mean negative value of each channel in a batch.

    Args:
        teacher_map: Float32 tensor `(batch, height, width, channels)`.
        selected: Float32 tensor `(batch,)` of zeros and ones, the samples that count.

    Returns:
        A tensor `(channels,)`; 0 where none is negative.
    """
    negative = ops.minimum(keep_selected(teacher_map, selected), 0.0)
    count = ops.sum(ops.cast(negative < 0, "float32"), axis=(0, 1, 2))
    return ops.sum(negative, axis=(0, 1, 2)) / ops.maximum(count, 1.0)


def partial_distance(student_map, teacher_map, margin, selected):
    """Squared distance to the teacher, where the ReLU would not discard it, per sample.

    Args:
        student_map: Float32 tensor `(batch, height, width, channels)`.
        teacher_map: Float32 tensor of the same shape.
        margin: Float32 tensor `(channels,)`, the least value to be reached.
        selected: Float32 tensor `(batch,)` of zeros and ones; 0 for the other samples.

    Returns:
        A tensor `(batch,)`: with `t' = max(t, margin)`, the sum of `(s − t')²` over all features
        where `s > t'` or `t' > 0`.
    """
    target = ops.maximum(teacher_map, margin)
    counts = ops.logical_or(student_map > target, target > 0)
    miss = ops.where(counts, student_map - target, ops.zeros_like(target))
    return ops.sum(ops.square(flatten(keep_selected(miss, selected))), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class OverhaulOfFeatureDistillation(DistillationLoss):
    """Partial squared distance between features before their ReLU, with a margin for negatives.

    `Σ_j 2^(j−J) · (1/n) Σ (c_j(s) − t')²`, the sum over all features of the spots `j = 1 … J`
    where `c_j(s) > t'` or `t' > 0`: below zero, where the ReLU discards it, the student need only
    be as low as the teacher. `t' = max(t, m)`, with a margin `m` per channel: the mean of the
    teacher's negative values. `c` is a 1×1 convolution without bias and batch normalisation,
    which starts as `N(0, sqrt(2 / channels))` and is trained with the student. Taps are maps
    `(batch, height, width, channels)`; where sizes differ, the larger is average-pooled.

    The margin follows from mean and deviation of the batch normalisation that makes the teacher's
    features (`tfkd.taps.normalization_at`), taken as normally distributed. Where there is none it
    is the mean of the negative values in the batch; then the loss is relational and sees the
    batch of all replicas.

    Args:
        weight: Number. Defaults to 1e-3, as published.
        spots: Defaults to `"before_relu"`: what the last ReLU of every stage takes. A stage
            without one, such as the bottlenecks of MobileNetV2, is read where it ends.

    Distillers find the normalisations; without one, `set_normalizations()` gives them, or the
    margins are those of the batch.

    Deviations: both published loops leave the teacher in training mode, so that its features
    are normalised by the batch, and its statistics drift; here it is frozen. They refuse
    ShuffleNets as teachers and read their students before the ReLU of a branch; here ShuffleNetV2
    is read where its stages end. Sizes must be equal there. The margin of the batch is that of
    the Knowledge-Distillation-Zoo.

    Example:
    ```python
    loss = tfkd.losses.OverhaulOfFeatureDistillation()
    value = loss([student_map], [teacher_map], training=True)
    ```

    References:
        - [A Comprehensive Overhaul of Feature Distillation](https://arxiv.org/abs/1904.01866),
          section 3, and its [code](https://github.com/clovaai/overhaul-distillation).
    """

    id = "ofd"
    spots = "before_relu"
    tap_rank = 4

    def __init__(self, weight=1e-3, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.connectors = []
        self.normalizations = None

    def read_models(self, student, teacher, pairs):
        """Takes the normalisations that make the teacher's features."""
        super().read_models(student, teacher, pairs)
        self.set_normalizations([taps.normalization_at(teacher, tap) for _, tap in pairs])

    def set_normalizations(self, normalizations):
        """Sets the normalisations of the teacher's features, where no distiller reads them.

        Args:
            normalizations: List of a `tfkd.taps.Normalization` for each spot, or None for a
                margin from the batch.
        """
        self.normalizations = list(normalizations)

    def build(self, student_taps_shape, teacher_taps_shape):
        """Makes the connectors."""
        spots = len(teacher_taps_shape)
        if self.normalizations is None:
            self.set_normalizations([None] * spots)
        if len(self.normalizations) != spots:
            raise UsageError(
                f"Loss {self.name!r} received {len(self.normalizations)} normalizations for "
                f"{spots} spots: every spot needs one, or None."
            )
        self.relational = None in self.normalizations
        super().build(student_taps_shape, teacher_taps_shape)

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the connector of one spot."""
        channels = teacher_shape[-1]
        connector = NormalizedConvolution(
            channels,
            kernel_initializer=keras.initializers.RandomNormal(stddev=math.sqrt(2 / channels)),
            name=f"{self.name}_connector_{spot}",
            dtype=self.dtype_policy,
        )
        connector.build(student_shape)
        self.connectors.append(connector)

    def margin(self, spot, teacher_map, selected):
        """Returns the margin of one spot.

        Args:
            spot: Integer, the position of the spot.
            teacher_map: Float32 tensor `(batch, height, width, channels)`.
            selected: Float32 tensor `(batch,)` of zeros and ones, the samples that count.

        Returns:
            A tensor `(channels,)`.
        """
        normalization = self.normalizations[spot]
        if normalization is None:
            return observed_margin(teacher_map, selected)
        channels = teacher_map.shape[-1:]
        gamma, beta = normalization.gamma, normalization.beta
        return ops.stop_gradient(
            expected_margin(
                ops.ones(channels) if gamma is None else ops.cast(gamma, "float32"),
                ops.zeros(channels) if beta is None else ops.cast(beta, "float32"),
            )
        )

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps through the spot's connector; see the class."""
        selected = selection(sample_mask, teacher_tap)
        margin = self.margin(spot, teacher_tap, selected)
        chosen = None if sample_mask is None else selected
        adapted = self.connectors[spot](student_tap, training=training, selected=chosen)
        adapted, teacher_tap = match_sizes(adapted, teacher_tap)
        distance = partial_distance(adapted, teacher_tap, margin, selected)
        # The last spot counts most: 1, and each one before it half of the next.
        spot_weight = 2.0 ** (spot + 1 - len(self.connectors))
        return spot_weight * masked_mean(distance, sample_mask)
