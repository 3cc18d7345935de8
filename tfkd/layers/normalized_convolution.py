"""NormalizedConvolution: one step of a connector between two networks."""

import keras
from keras import layers, ops

from tfkd.layers.torch_defaults import uniform_fan_in


@keras.saving.register_keras_serializable(package="tfkd")
class NormalizedConvolution(layers.Layer):
    """Convolution without bias, batch normalisation, and an activation; it keeps the size of maps.

    Args:
        filters: Integer, the channels of the output.
        kernel_size: Integer, the odd side of the kernel. Defaults to 1.
        activation: What follows, as in `keras.layers.Activation`; None, the default, for nothing.
        kernel_initializer: Keras initializer of the kernel. Defaults to PyTorch's,
            `U(±1 / sqrt(fan in))`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, height, width, filters)`.

    Batch normalisation has PyTorch's momentum and epsilon.

    Example:
    ```python
    connector = tfkd.layers.NormalizedConvolution(64)
    adapted = connector(keras.random.normal((4, 8, 8, 32)), training=True)  # (4, 8, 8, 64)
    ```
    """

    def __init__(self, filters, kernel_size=1, activation=None, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        """Creates the weights for maps of this shape."""
        fan_in = self.kernel_size**2 * input_shape[-1]
        initializer = self.kernel_initializer or uniform_fan_in(fan_in)["kernel_initializer"]
        self.convolution = layers.Conv2D(
            self.filters,
            self.kernel_size,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer,
            data_format="channels_last",
            dtype=self.dtype_policy,
        )
        self.convolution.build(input_shape)
        self.normalization = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy
        )
        self.normalization.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None, selected=None):
        """Returns the maps; see the class for the shapes.

        Args:
            inputs: Tensor `(batch, height, width, channels)`.
            training: Whether batch normalisation takes its statistics from the batch.
            selected: Tensor `(batch,)` of zeros and ones, the samples of which it takes them;
                None for all. The others may hold anything, and have no meaning in the result.
        """
        if selected is None:
            outputs = self.normalization(self.convolution(inputs), training=training)
        else:
            mask = ops.broadcast_to(selected[:, None, None] > 0, ops.shape(inputs)[:3])
            inputs = ops.where(mask[..., None], inputs, ops.zeros_like(inputs))
            outputs = self.normalization(self.convolution(inputs), training=training, mask=mask)
            # A new tensor, since Keras attaches the mask to what a normalization returns, and
            # warns in every layer that takes it.
            outputs = ops.where(mask[..., None], outputs, ops.zeros_like(outputs))
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        """Returns `(batch, height, width, filters)`."""
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
