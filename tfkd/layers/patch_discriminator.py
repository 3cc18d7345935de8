"""PatchDiscriminator: tells real images from generated ones."""

import keras
from keras import layers, ops

from tfkd.layers.spectral_convolution import SpectralConvolution

#: Maps are not made smaller than this.
SMALLEST_MAP = 4


@keras.saving.register_keras_serializable(package="tfkd")
class PatchDiscriminator(layers.Layer):
    """Judges every patch of an image and averages the verdicts.

    Three convolutions (4×4, `width`, `2 · width` and `4 · width` filters, leaky ReLU of slope
    0.2), which halve the map as long as at least 4×4 of it is left, and one (3×3) to a single
    map. All have spectral normalization, and there is no other: nothing ties the images of a
    batch to each other.

    Args:
        width: Integer, the filters of the first convolution.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch,)`, float32: positive for what it takes for real.

    Example:
    ```python
    verdict = tfkd.layers.PatchDiscriminator()(keras.random.normal((4, 32, 32, 3)))  # (4,)
    ```

    References:
        - Patches: [Image-to-Image Translation with Conditional Adversarial
          Networks](https://arxiv.org/abs/1611.07004), section 3.2.2.
    """

    def __init__(self, width=64, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, input_shape):
        """Creates the convolutions for images of this shape."""
        shape = tuple(input_shape)
        self.convolutions = []
        for factor in (1, 2, 4):
            strides = 2 if min(shape[1:3]) >= 2 * SMALLEST_MAP else 1
            layer = SpectralConvolution(self.width * factor, 4, strides, dtype=self.dtype_policy)
            layer.build(shape)
            self.convolutions.append(layer)
            shape = layer.compute_output_shape(shape)
        self.verdict = SpectralConvolution(1, 3, dtype=self.dtype_policy)
        self.verdict.build(shape)

    def call(self, inputs, training=False):
        """Judges a batch; see the class for the shapes."""
        outputs = inputs
        for layer in self.convolutions:
            outputs = ops.leaky_relu(layer(outputs, training=training), negative_slope=0.2)
        verdicts = self.verdict(outputs, training=training)
        return ops.mean(ops.cast(verdicts, "float32"), axis=(1, 2, 3))

    def compute_output_shape(self, input_shape):
        """Returns `(batch,)`."""
        return (input_shape[0],)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "width": self.width}
