"""Discriminator: tells feature vectors of one kind from those of another."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="tfkd")
class Discriminator(layers.Layer):
    """Three dense layers that halve the width: `features → features/2 → features/4 → 1`.

    Leaky ReLU (slope 0.2) between them, nothing at the end. The last layer starts small, so that
    the discriminator starts undecided.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, features)`.
    Output shape: `(batch,)`, float32: positive for what it takes for real.

    Example:
    ```python
    verdict = tfkd.layers.Discriminator()(keras.random.normal((4, 128)))  # (4,)
    ```

    References:
        - The halving widths: MEAL, https://arxiv.org/abs/1812.02425, section 3.4.
    """

    def build(self, input_shape):
        """Creates the weights for vectors of this shape."""
        features = input_shape[-1]
        small = keras.initializers.RandomNormal(stddev=0.02)
        self.dense = [
            layers.Dense(max(1, features // 2), dtype=self.dtype_policy),
            layers.Dense(max(1, features // 4), dtype=self.dtype_policy),
            layers.Dense(1, kernel_initializer=small, dtype=self.dtype_policy),
        ]
        shape = tuple(input_shape)
        for layer in self.dense:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, inputs):
        """Judges a batch; see the class for the shapes."""
        outputs = inputs
        for layer in self.dense[:-1]:
            outputs = ops.leaky_relu(layer(outputs), negative_slope=0.2)
        return ops.cast(self.dense[-1](outputs)[:, 0], "float32")

    def compute_output_shape(self, input_shape):
        """Returns `(batch,)`."""
        return (input_shape[0],)
