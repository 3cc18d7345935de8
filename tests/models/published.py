"""The layers of PyTorch in plain TensorFlow, by the names of a state dict."""

import numpy as np
import tensorflow as tf


def signed(state):
    """Returns a state dict of `zoo.torch_state` whose kernels keep the size of the values."""
    return {
        name: (value - 0.5) * np.float32(np.sqrt(24 / value[0].size))
        if value.ndim == 4
        else value + 0.5
        for name, value in state.items()
    }


class Published:
    """A network of PyTorch in inference mode.

    Args:
        state: `{name: array}`, its state dict.
    """

    def __init__(self, state):
        self.state = state

    def convolution(self, x, name, stride=1):
        """A convolution without bias that pads both sides alike; of one input, a depthwise one."""
        kernel = self.state[f"{name}.weight"]
        border = [kernel.shape[-1] // 2] * 2
        padding = [[0, 0], border, border, [0, 0]]
        if kernel.shape[1] == 1 != x.shape[-1]:
            kernel, strides = kernel.transpose(2, 3, 0, 1), [1, stride, stride, 1]
            return tf.nn.depthwise_conv2d(x, kernel, strides, padding)
        return tf.nn.conv2d(x, kernel.transpose(2, 3, 1, 0), stride, padding)

    def normalization(self, x, name):
        """A batch normalization with its own statistics."""
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self.state[f"{name}.{part}"] for part in parts)
        return (x - mean) / tf.sqrt(variance + 1e-5) * gamma + beta

    def classified(self, x, name="fc"):
        """The mean over all positions, and a dense layer."""
        x = tf.reduce_mean(x, [1, 2])
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]
