"""Adapter: trainable layers that bring one tap's shape to another's."""

import keras
from keras import layers

from tfkd.errors import UsageError
from tfkd.layers.torch_defaults import linear, uniform_fan_in


@keras.saving.register_keras_serializable(package="tfkd")
class Adapter(layers.Layer):
    """Brings features to another network's shape, as published for FitNet and SAKD.

    A map passes one convolution, batch normalisation and an activation. The convolution
    follows from the two sizes, of which the first line that holds for both axes counts:

    | source and target | convolution |
    | --- | --- |
    | source = 2 · target | 3×3, stride 2, padding 1 |
    | target = 2 · source | transposed 4×4, stride 2, padding 1 |
    | source ≥ target | valid, kernel `1 + source − target` (1×1 where they are equal) |
    | source < target | transposed valid, stride `s = ⌊target / source⌋`, kernel `target − s · (source − 1)` |

    A vector passes one dense layer with bias, without normalisation or activation.

    Args:
        target_shape: Shape without the batch: `(height, width, channels)` or `(features,)`.
        activation: What follows the normalisation of a map, as in `keras.layers.Activation`, or
            None. Defaults to `"relu"`.
        use_bias: Whether the convolution has a bias, as published.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)` or `(batch, features)`.
    Output shape: `(batch, *target_shape)`.

    Raises:
        UsageError: When it is built, if a map is to become a vector or the reverse, or if a map
            is larger than the target along one axis and smaller along the other.

    Weights start as in PyTorch, `U(±1 / sqrt(fan in))`; batch normalisation has PyTorch's
    momentum and epsilon.

    Example:
    ```python
    adapter = tfkd.layers.Adapter(target_shape=(8, 8, 64))
    adapted = adapter(keras.random.normal((4, 16, 16, 32)))  # (4, 8, 8, 64)
    ```

    References:
        - [FitNets: Hints for Thin Deep Nets](https://arxiv.org/abs/1412.6550), section 2.2.
        - [Spot-adaptive Knowledge Distillation](https://arxiv.org/abs/2205.02399), whose code
          adds the transposed convolutions and uses adapters in both directions.
    """  # noqa: E501

    def __init__(self, target_shape, activation="relu", use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.target_shape = tuple(target_shape)
        self.use_bias = use_bias
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        """Chooses the layers for inputs of this shape and creates their weights."""
        source = tuple(input_shape[1:])
        if len(source) != len(self.target_shape) or len(source) not in (1, 3):
            raise UsageError(
                f"Adapter {self.name!r} cannot bring shape {source} to {self.target_shape}: both "
                "must be maps (height, width, channels), or both vectors (features,)."
            )
        self.padding = self.normalization = None
        if len(source) == 1:
            self.transformation = linear(*source, *self.target_shape, self.dtype_policy)
            return
        self.transformation = self._convolution(source)
        if self.transformation.strides == (2, 2) and source[0] > self.target_shape[0]:
            # Keras' "same" pads an even input on one side only, PyTorch both sides.
            self.padding = layers.ZeroPadding2D(1, dtype=self.dtype_policy)
            input_shape = self.padding.compute_output_shape(input_shape)
        self.transformation.build(input_shape)
        self.normalization = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy
        )
        self.normalization.build((None, *self.target_shape))

    def _convolution(self, source):
        """Returns the layer that brings maps of shape `source` to the target's size."""
        *target_size, filters = self.target_shape
        *source_size, channels = source
        sizes = list(zip(source_size, target_size))
        transposed, padding, strides = False, "valid", (1, 1)
        if all(here == 2 * there for here, there in sizes):
            kernel, strides = (3, 3), (2, 2)
        elif all(2 * here == there for here, there in sizes):
            transposed, kernel, strides, padding = True, (4, 4), (2, 2), "same"
        elif all(here >= there for here, there in sizes):
            kernel = tuple(1 + here - there for here, there in sizes)
        elif all(here <= there for here, there in sizes):
            strides = tuple(there // here for here, there in sizes)
            kernel = tuple(
                there - stride * (here - 1) for (here, there), stride in zip(sizes, strides)
            )
            transposed = True
        else:
            raise UsageError(
                f"Adapter {self.name!r} cannot bring shape {source} to {self.target_shape}: the "
                "map must not be larger along one axis and smaller along the other."
            )
        fan_in = kernel[0] * kernel[1] * (filters if transposed else channels)
        layer = layers.Conv2DTranspose if transposed else layers.Conv2D
        return layer(
            filters,
            kernel,
            strides=strides,
            padding=padding,
            use_bias=self.use_bias,
            data_format="channels_last",
            dtype=self.dtype_policy,
            **uniform_fan_in(fan_in),
        )

    def call(self, inputs, training=None):
        """Adapts a batch; see the class for the shapes."""
        outputs = inputs if self.padding is None else self.padding(inputs)
        outputs = self.transformation(outputs)
        if self.normalization is None:
            return outputs
        return self.activation(self.normalization(outputs, training=training))

    def compute_output_shape(self, input_shape):
        """Returns `(batch, *target_shape)`."""
        return (input_shape[0], *self.target_shape)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal adapter."""
        activation = keras.activations.serialize(self.activation)
        return {
            **super().get_config(),
            "target_shape": self.target_shape,
            "activation": activation,
            "use_bias": self.use_bias,
        }
