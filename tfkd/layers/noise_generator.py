"""NoiseGenerator: makes images of noise."""

import math

import keras
from keras import layers

from tfkd.errors import UsageError


@keras.saving.register_keras_serializable(package="tfkd")
class NoiseGenerator(layers.Layer):
    """A dense layer, and twice an upsampling and a convolution.

    A dense layer to a map of a quarter of the image's height and width with `2 · width` channels,
    batch normalization; twice upsampling by 2, a 3×3 convolution (`2 · width`, then `width`
    filters), batch normalization and leaky ReLU (slope 0.2); a 3×3 convolution to the image's
    channels, tanh, and batch normalization without gain and offset. So images have, channel by
    channel, a mean of 0 and a standard deviation of 1, as normalized data has.

    Args:
        image_shape: The tuple `(height, width, channels)`.
        width: Integer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: noise `(batch, numbers)`.
    Output shape: `(batch, *image_shape)`.

    Raises:
        UsageError: If the shape is not that of an image of a fixed size.

    Example:
    ```python
    generator = tfkd.layers.NoiseGenerator((28, 28, 1))
    images = generator(keras.random.normal((4, 100)), training=True)  # (4, 28, 28, 1)
    ```

    References:
        - The layout: [Data-Free Learning of Student Networks](https://arxiv.org/abs/1904.01186),
          its code, but for the epsilon of two of its batch normalizations, 0.8.
    """

    def __init__(self, image_shape, width=64, **kwargs):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        self.width = width
        if len(self.image_shape) != 3 or None in self.image_shape:
            raise UsageError(
                "Images are generated of a fixed shape (height, width, channels); received "
                f"{self.image_shape}."
            )

    def build(self, input_shape):
        """Creates the layers for noise of this shape."""
        height, width, channels = self.image_shape
        # Of other sizes the last row or column is cut off.
        shape = (None, math.ceil(height / 4), math.ceil(width / 4), 2 * self.width)
        self.body = [
            layers.Dense(math.prod(shape[1:]), dtype=self.dtype_policy),
            layers.Reshape(shape[1:], dtype=self.dtype_policy),
            self._normalization(),
        ]
        for filters in (2 * self.width, self.width):
            self.body += [
                layers.UpSampling2D(dtype=self.dtype_policy),
                layers.Conv2D(filters, 3, padding="same", dtype=self.dtype_policy),
                self._normalization(),
                layers.LeakyReLU(0.2, dtype=self.dtype_policy),
            ]
        last = layers.Conv2D(
            channels, 3, padding="same", activation="tanh", dtype=self.dtype_policy
        )
        self.body += [last, self._normalization(center=False, scale=False)]
        shape = tuple(input_shape)
        for layer in self.body:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def _normalization(self, **arguments):
        return layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy, **arguments
        )

    def call(self, inputs, training=None):
        """Makes images of noise; see the class for the shapes."""
        height, width, _ = self.image_shape
        images = inputs
        for layer in self.body:
            normalizes = isinstance(layer, layers.BatchNormalization)
            images = layer(images, training=training) if normalizes else layer(images)
        return images[:, :height, :width]

    def compute_output_shape(self, input_shape):
        """Returns the shape of the images."""
        return (input_shape[0], *self.image_shape)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "image_shape": self.image_shape, "width": self.width}
