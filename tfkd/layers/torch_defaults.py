"""How trainable parts start: PyTorch's defaults, which the published results rest on."""

import math

import keras


def uniform_fan_in(fan_in):
    """Returns PyTorch's default initialisers of dense and convolution layers.

    Args:
        fan_in: Integer, the number of inputs of one output. For a transposed convolution PyTorch
            counts `kernel height · kernel width · output channels`.

    Returns:
        `{"kernel_initializer": ..., "bias_initializer": ...}`, both `U(±1 / sqrt(fan_in))`, to
        be passed on to a Keras layer.
    """
    limit = 1 / math.sqrt(fan_in)
    return {
        "kernel_initializer": keras.initializers.RandomUniform(-limit, limit),
        "bias_initializer": keras.initializers.RandomUniform(-limit, limit),
    }


def linear(features, units, dtype):
    """Makes a dense layer with bias, as `torch.nn.Linear`.

    Args:
        features: Integer, the size of the input vectors.
        units: Integer, the size of the output vectors.
        dtype: The layer's dtype or dtype policy.

    Returns:
        A `keras.layers.Dense` that has its weights already.
    """
    layer = keras.layers.Dense(units, dtype=dtype, **uniform_fan_in(features))
    layer.build((None, features))
    return layer


def convolution(channels, filters, size, dtype, use_bias=True):
    """Makes a convolution that keeps the size of maps, as `torch.nn.Conv2d`.

    Args:
        channels: Integer, the channels of the input.
        filters: Integer, the channels of the output.
        size: Integer, the odd side of the kernel.
        dtype: The layer's dtype or dtype policy.
        use_bias: Boolean.

    Returns:
        A `keras.layers.Conv2D` that has its weights already.
    """
    layer = keras.layers.Conv2D(
        filters,
        size,
        padding="same",
        use_bias=use_bias,
        data_format="channels_last",
        dtype=dtype,
        **uniform_fan_in(size**2 * channels),
    )
    layer.build((None, None, None, channels))
    return layer
