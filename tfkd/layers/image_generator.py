"""ImageGenerator: makes images of images and noise."""

import keras
from keras import layers, ops

from tfkd.errors import UsageError

#: Images below this are refused, and maps are not made smaller than half of it.
SMALLEST_IMAGE = 8


@keras.saving.register_keras_serializable(package="tfkd")
class ImageGenerator(layers.Layer):
    """An encoder, residual blocks and a decoder, with noise in the middle.

    A 3×3 convolution (`width` filters); up to two 4×4 ones with stride 2 (`2 · width`,
    `4 · width`), as long as at least 4×4 of the map is left; there the noise joins as further
    channels, equal at all positions, and a 1×1 convolution and ReLU mix it in; residual blocks of
    two 3×3 convolutions; as many transposed 4×4 convolutions as the encoder has; a 3×3 one and
    tanh. Instance normalization and ReLU follow all other convolutions; after the mixing one it
    would take away what is equal at all positions, the noise.

    Args:
        width: Integer, the filters of the first convolution.
        blocks: Integer, the number of residual blocks.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: a list of images `(batch, height, width, channels)` of at least 8×8, in [-1, 1],
        and noise `(batch, numbers)`.
    Output shape: that of the images, in (-1, 1).

    Raises:
        UsageError: If the images are smaller.

    Example:
    ```python
    images, noise = keras.random.uniform((4, 28, 28, 1), -1, 1), keras.random.normal((4, 16))
    generated = tfkd.layers.ImageGenerator(width=16)([images, noise])  # (4, 28, 28, 1)
    ```

    References:
        - The layout: [Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
          Networks](https://arxiv.org/abs/1703.10593), appendix 7.2, made smaller.
    """

    def __init__(self, width=64, blocks=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.blocks = blocks

    def build(self, input_shape):
        """Creates the convolutions for images and noise of these shapes."""
        images, noise = (tuple(shape) for shape in input_shape)
        if None in images[1:] or min(images[1:3]) < SMALLEST_IMAGE:
            raise UsageError(
                f"Images are generated from {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels up, of a "
                f"size that is fixed; received {images[1:]}."
            )
        shape = self._add("first", layers.Conv2D, images, self.width, 3)
        smallest, self.halvings = min(images[1:3]), 0
        while self.halvings < 2 and smallest >= SMALLEST_IMAGE:
            self.halvings += 1
            smallest = -(-smallest // 2)
            filters = self.width * 2**self.halvings
            shape = self._add(f"down{self.halvings}", layers.Conv2D, shape, filters, 4, 2)
        filters = shape[-1]
        with_noise = (*shape[:-1], filters + noise[-1])
        self.mix = layers.Conv2D(filters, 1, activation="relu", dtype=self.dtype_policy)
        self.mix.build(with_noise)
        for block in range(self.blocks):
            for part in ("a", "b"):
                self._add(f"block{block}{part}", layers.Conv2D, shape, filters, 3)
        for step in range(self.halvings, 0, -1):
            filters = self.width * 2 ** (step - 1)
            shape = self._add(f"up{step}", layers.Conv2DTranspose, shape, filters, 4, 2)
        self.last = layers.Conv2D(images[-1], 3, padding="same", dtype=self.dtype_policy)
        self.last.build(shape)

    def _add(self, name, kind, shape, filters, size, strides=1):
        """Adds a convolution and its normalization; returns the shape of their outputs."""
        settings = {"padding": "same", "use_bias": False, "dtype": self.dtype_policy}
        layer = kind(filters, size, strides, **settings)
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
        # A group for each channel: instance normalization.
        normalization = layers.GroupNormalization(groups=-1, dtype=self.dtype_policy)
        normalization.build(shape)
        setattr(self, name, layer)
        setattr(self, f"{name}_normalization", normalization)
        return shape

    def _run(self, name, inputs, activate=True):
        outputs = getattr(self, f"{name}_normalization")(getattr(self, name)(inputs))
        return ops.relu(outputs) if activate else outputs

    def call(self, inputs):
        """Makes images of images and noise; see the class for the shapes."""
        images, noise = inputs
        x = self._run("first", images)
        for step in range(1, self.halvings + 1):
            x = self._run(f"down{step}", x)
        height, width = x.shape[1:3]
        tiled = ops.tile(noise[:, None, None, :], (1, height, width, 1))
        x = self.mix(ops.concatenate([x, tiled], axis=-1))
        for block in range(self.blocks):
            x = x + self._run(f"block{block}b", self._run(f"block{block}a", x), activate=False)
        for step in range(self.halvings, 0, -1):
            x = self._run(f"up{step}", x)
        # Of odd sizes the decoder makes one row or column more.
        height, width = images.shape[1:3]
        return ops.tanh(self.last(x)[:, :height, :width])

    def compute_output_shape(self, input_shape):
        """Returns the shape of the images."""
        return tuple(input_shape[0])

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "width": self.width, "blocks": self.blocks}
