"""SpectralConvolution: a convolution whose largest singular value is held at one."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="tfkd")
class SpectralConvolution(layers.Layer):
    """A 2D convolution with spectral normalization, `y = (W / σ(W)) * x + b`.

    `σ(W)` is the largest singular value of the kernel as a matrix `(everything else, filters)`,
    tracked by one step of power iteration in every call in training mode. The gradient flows
    through the division.

    Keras' own `SpectralNormalization` writes the divided kernel back into the variable, so that
    no gradient flows through the division, and every call in training mode changes the weights.

    Args:
        filters: Integer.
        kernel_size: Integer.
        strides: Integer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, ceil(height / strides), ceil(width / strides), filters)`.

    Example:
    ```python
    maps = tfkd.layers.SpectralConvolution(8, 4, strides=2)(keras.random.normal((2, 16, 16, 3)))
    ```

    References:
        - [Spectral Normalization for Generative Adversarial
          Networks](https://arxiv.org/abs/1802.05957), algorithm 1.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides

    def build(self, input_shape):
        """Creates kernel, bias and the estimate of the singular vector."""
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape, "glorot_uniform", name="kernel")
        self.bias = self.add_weight((self.filters,), "zeros", name="bias")
        self.singular_vector = self.add_weight(
            (self.filters,),
            keras.initializers.RandomNormal(),
            trainable=False,
            aggregation="only_first_replica",
            name="singular_vector",
        )

    def call(self, inputs, training=False):
        """Convolves; in training mode the estimate of the singular value takes a step."""
        matrix = ops.reshape(self.kernel, (-1, self.filters))
        constant = ops.stop_gradient(matrix)
        right = ops.convert_to_tensor(self.singular_vector)
        left = ops.normalize(ops.matmul(constant, right), axis=-1)
        right = ops.normalize(ops.matmul(left, constant), axis=-1)
        if training:
            self.singular_vector.assign(right)
        value = ops.sum(left * ops.matmul(matrix, right))
        outputs = ops.conv(inputs, self.kernel / value, self.strides, "same")
        return outputs + self.bias

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        batch, *sizes, _ = input_shape
        return (batch, *(size and -(-size // self.strides) for size in sizes), self.filters)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        own = {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }
        return {**super().get_config(), **own}
