"""ReviewFusion: a student's map joined with what deeper stages saw, in a teacher's shape."""

import keras
from keras import layers, ops

from tfkd.layers.normalized_convolution import NormalizedConvolution
from tfkd.layers.torch_defaults import convolution


@keras.saving.register_keras_serializable(package="tfkd")
class ReviewFusion(layers.Layer):
    """Fuses a map with the fused map of the stage behind it, by attention, as in ReviewKD.

    The map passes a 1×1 convolution without bias and batch normalisation to `width` channels. A
    deeper fused map, if there is one, is enlarged to its size, and both are added up, each
    multiplied by one number per position: two outputs of a 1×1 convolution with bias on both maps
    together, and a sigmoid. The sum is resized to the teacher's map, and a 3×3 convolution
    without bias and batch normalisation bring it to its channels. Maps are resized to their
    nearest neighbours.

    Args:
        width: Integer, the channels of fused maps.
        target_shape: `(height, width, channels)` of the teacher's map.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input: list of a map `(batch, height, width, channels)`, and maybe the deeper fused map
        `(batch, deeper height, deeper width, width)`.
    Output: the tuple `(map, fused)` of shapes `(batch, *target_shape)` and
        `(batch, target height, target width, width)`.

    Convolutions start as published: `U(±sqrt(3 / fan in))`, that of the attention
    `U(±1 / sqrt(fan in))`.

    Example:
    ```python
    early, late = keras.random.normal((4, 16, 16, 32)), keras.random.normal((4, 8, 8, 64))
    _, fused = tfkd.layers.ReviewFusion(64, (8, 8, 256))([late])
    output, _ = tfkd.layers.ReviewFusion(64, (16, 16, 128))([early, fused])  # (4, 16, 16, 128)
    ```

    References:
        - [Distilling Knowledge via Knowledge Review](https://arxiv.org/abs/2104.09044),
          section 3.2.
    """

    def __init__(self, width, target_shape, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.target_shape = tuple(target_shape)

    def build(self, input_shape):
        """Creates the weights for maps of these shapes."""
        self.entry = self._step(self.width, 1, input_shape[0])
        self.attention = None
        if len(input_shape) > 1:
            self.attention = convolution(2 * self.width, 2, 1, self.dtype_policy)
        between = (None, *self.target_shape[:2], self.width)
        self.exit = self._step(self.target_shape[-1], 3, between)

    def _step(self, filters, size, shape):
        start = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
        step = NormalizedConvolution(
            filters, size, kernel_initializer=start, dtype=self.dtype_policy
        )
        step.build(shape)
        return step

    def call(self, inputs, training=None, selected=None):
        """Returns the map in the teacher's shape and the fused map; see the class.

        Args:
            inputs: List of one or two maps.
            training: As in `NormalizedConvolution.call()`.
            selected: As in `NormalizedConvolution.call()`.
        """
        fused = self.entry(inputs[0], training=training, selected=selected)
        if self.attention is not None:
            deeper = resize_nearest(inputs[1], fused.shape[1:3])
            scores = ops.sigmoid(self.attention(ops.concatenate([fused, deeper], axis=-1)))
            fused = fused * scores[..., :1] + deeper * scores[..., 1:]
        fused = resize_nearest(fused, self.target_shape[:2])
        return self.exit(fused, training=training, selected=selected), fused

    def compute_output_shape(self, input_shape):
        """Returns the shapes of the map and the fused map."""
        *size, _ = self.target_shape
        batch = input_shape[0][0]
        return (batch, *self.target_shape), (batch, *size, self.width)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "width": self.width, "target_shape": self.target_shape}


def resize_nearest(features, size):
    """Resizes a map by copying, as `torch.nn.functional.interpolate` by its default.

    Output `i` of `n` is the input at `⌊i · input / n⌋`; Keras' own takes the one at the centre,
    another one where a map gets smaller or the sizes do not divide.

    Args:
        features: Tensor `(batch, height, width, channels)`.
        size: Pair of integers, the height and width wanted.

    Returns:
        A tensor `(batch, *size, channels)`.
    """
    for axis, wanted in enumerate(size, start=1):
        here = features.shape[axis]
        if wanted % here == 0:
            # No choice of rows, whose gradient would be a scatter.
            features = features if wanted == here else ops.repeat(features, wanted // here, axis)
        else:
            rows = [row * here // wanted for row in range(wanted)]
            features = ops.take(features, rows, axis=axis)
    return features
