"""FT: factors that paraphrase the teacher (Kim et al., 2018)."""

import keras
from keras import layers, ops

from tfkd.errors import UsageError
from tfkd.layers.torch_defaults import uniform_fan_in
from tfkd.losses.attention_transfer import attention
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import match_sizes


def factor_distance(student_factor, teacher_factor):
    """Mean absolute difference of two normalised factors, per sample.

    Args:
        student_factor: Float32 tensor `(batch, height, width, channels)`.
        teacher_factor: Float32 tensor `(batch, height, width, channels)`; the larger of both maps
            is pooled to the size of the smaller.

    Returns:
        A tensor `(batch,)`.
    """
    student_factor, teacher_factor = match_sizes(student_factor, teacher_factor)
    difference = attention(student_factor) - attention(teacher_factor)
    return ops.mean(ops.abs(difference), axis=-1)


def factor_layers(channels, widths, dtype, transposed=False, normalized=False):
    """Makes three 3×3 convolutions with bias, each followed by a leaky ReLU of slope 0.1.

    Args:
        channels: Integer, the channels of the input.
        widths: Three integers, the channels of the outputs.
        dtype: The dtype policy of the layers.
        transposed: Whether the convolutions are transposed ones.
        normalized: Whether batch normalisation follows each convolution.

    Returns:
        A `keras.Sequential` that has its weights already and keeps the size of maps.
    """
    kind = layers.Conv2DTranspose if transposed else layers.Conv2D
    model = keras.Sequential()
    for inputs, width in zip((channels, *widths), widths):
        fan_in = 9 * (width if transposed else inputs)
        model.add(kind(width, 3, padding="same", dtype=dtype, **uniform_fan_in(fan_in)))
        if normalized:
            model.add(layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype))
        model.add(layers.LeakyReLU(negative_slope=0.1, dtype=dtype))
    model.build((None, None, None, channels))
    return model


@keras.saving.register_keras_serializable(package="tfkd")
class FactorTransfer(DistillationLoss):
    """Mean absolute difference between a paraphrase of the teacher and its translation.

    `mean |ψ(translator(s)) − ψ(paraphraser(t))|` over samples and positions, where `ψ(f)` is the
    mean of `f²` over the channels, divided by its L2 norm over the positions, on maps
    `(batch, height, width, channels)`. Where the sizes differ, the larger factor is
    average-pooled to the smaller.

    The *paraphraser* has three 3×3 convolutions with bias and leaky ReLU (slope 0.1), of widths
    `C`, `k`, `k` with `C` the teacher's channels and `k = rate · C`. Before training, it and a
    mirrored decoder of transposed convolutions learn to reconstruct the teacher's map; then both
    are frozen. The *translator* is of the same form with batch normalisation, of widths `C_s`,
    `k`, `k`, and is trained with the student.

    Args:
        rate: Number, the factor's channels as a part of the teacher's. Defaults to 0.5, as in
            the CRD benchmark.
        weight: Number. Defaults to 200, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"last_map"`.

    The stage before training: 30 epochs on the mean squared error of the reconstruction, SGD with
    learning rate 0.01, momentum 0.9 and weight decay 5e-4, as in the same benchmarks.

    Raises:
        UsageError: If `rate` leaves no channel, or is above 1.

    Deviations: none known of the benchmarks. Without its preparation the loss runs too, on an
    untrained paraphraser.

    Example:
    ```python
    loss = tfkd.losses.FactorTransfer()
    reconstruction = loss.preparation_loss([student_map], [teacher_map], training=True)
    value = loss([student_map], [teacher_map], training=True)
    ```

    References:
        - [Paraphrasing Complex Network: Network Compression via Factor
          Transfer](https://arxiv.org/abs/1802.04977), section 3.
        - Form, weight and preparation: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "ft"
    spots = "last_map"
    tap_rank = 4
    preparation = {"epochs": 30, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}

    def __init__(self, rate=0.5, weight=200.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if not 0 < rate <= 1:
            raise UsageError(f"rate must be greater than 0 and at most 1; received {rate!r}.")
        self.rate = rate
        self.paraphrasers = []
        self.decoders = []
        self.translators = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the paraphraser, its decoder and the translator of one spot."""
        student, teacher = student_shape[-1], teacher_shape[-1]
        factor = int(self.rate * teacher)
        if factor < 1:
            raise UsageError(
                f"Loss {self.name!r}: rate={self.rate} of the teacher's {teacher} channels leaves "
                "none; it must leave at least one."
            )
        dtype = self.dtype_policy
        paraphraser = factor_layers(teacher, (teacher, factor, factor), dtype)
        decoder = factor_layers(factor, (factor, teacher, teacher), dtype, transposed=True)
        # Frozen for the main stage; the preparation takes its variables from their property.
        paraphraser.trainable = decoder.trainable = False
        self.paraphrasers.append(paraphraser)
        self.decoders.append(decoder)
        self.translators.append(
            factor_layers(student, (student, factor, factor), dtype, normalized=True)
        )

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        student_factor = self.translators[spot](student_tap, training=training)
        teacher_factor = ops.stop_gradient(self.paraphrasers[spot](teacher_tap))
        return masked_mean(factor_distance(student_factor, teacher_factor), sample_mask)

    def preparation_loss(self, student_taps, teacher_taps, training=None):
        """Mean squared error of the teacher's reconstructed maps, the sum over the spots.

        Args:
            student_taps: As in `call()`; only their shapes are looked at.
            teacher_taps: As in `call()`.
            training: Ignored: these layers have no training mode.

        Returns:
            A float32 scalar.
        """
        if not self.built:
            self.build([tap.shape for tap in student_taps], [tap.shape for tap in teacher_taps])
        total = 0.0
        pairs = zip(self.paraphrasers, self.decoders)
        for tap, (paraphraser, decoder) in zip(self.taken(teacher_taps), pairs):
            tap = ops.stop_gradient(ops.cast(tap, "float32"))
            total += ops.mean(ops.square(decoder(paraphraser(tap)) - tap))
        return total

    @property
    def preparation_variables(self):
        """The variables of the paraphrasers and their decoders."""
        return [
            variable
            for layer in (*self.paraphrasers, *self.decoders)
            for variable in layer.variables
        ]

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "rate": self.rate}
