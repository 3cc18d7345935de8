"""AttentionFusion: one feature map out of those of several learners."""

import keras
from keras import layers, ops

from tfkd.errors import check_positive


@keras.saving.register_keras_serializable(package="tfkd")
class AttentionFusion(layers.Layer):
    """Adds up the maps of several learners, weighted channel by channel.

    The maps are summed and pooled to one vector, a hidden layer (dense → batch norm → ReLU)
    reads it, and for every learner a dense layer without bias gives one score per channel. A
    softmax over the learners makes the weights of it, so that they add up to 1 in each channel.

    Args:
        uniform: Whether every learner gets the same weight instead, without any layer.
        reduction: Positive number; the hidden layer has `max(channels / reduction, 32)` units.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input: list of maps `(batch, height, width, channels)`, one per learner, of equal shape.
    Output: the tuple `(map, attention)` of shapes `(batch, height, width, channels)` and
        `(batch, learners, channels)`; the attention is float32.

    Example:
    ```python
    maps = [keras.random.normal((4, 8, 8, 64)) for _ in range(3)]
    fused, attention = tfkd.layers.AttentionFusion()(maps)  # (4, 8, 8, 64), (4, 3, 64)
    ```

    References:
        - Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507: the squeeze and the
          reduction.
        - Selective Kernel Networks, https://arxiv.org/abs/1903.06586: the softmax over branches.
    """

    def __init__(self, uniform=False, reduction=16, **kwargs):
        super().__init__(**kwargs)
        check_positive("AttentionFusion: reduction", reduction)
        self.uniform = uniform
        self.reduction = reduction

    def build(self, input_shape):
        """Creates the weights for maps of these shapes."""
        if self.uniform:
            return
        learners, channels = len(input_shape), input_shape[0][-1]
        hidden = max(int(channels / self.reduction), 32)
        self.squeeze = layers.Dense(hidden, use_bias=False, dtype=self.dtype_policy)
        self.squeeze.build((None, channels))
        self.normalization = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy
        )
        self.normalization.build((None, hidden))
        self.scores = layers.Dense(learners * channels, use_bias=False, dtype=self.dtype_policy)
        self.scores.build((None, hidden))

    def call(self, inputs, training=None):
        """Returns the fused map and the attention; see the class for the shapes."""
        maps = ops.stack(inputs, axis=1)
        learners, channels = len(inputs), inputs[0].shape[-1]
        pooled = ops.mean(ops.sum(maps, axis=1), axis=(1, 2))
        if self.uniform:
            attention = ops.ones_like(pooled, dtype="float32") / learners
            attention = ops.stack([attention] * learners, axis=1)
        else:
            hidden = self.normalization(self.squeeze(pooled), training=training)
            scores = ops.reshape(self.scores(ops.relu(hidden)), (-1, learners, channels))
            attention = ops.softmax(ops.cast(scores, "float32"), axis=1)
        weights = ops.reshape(attention, (-1, learners, 1, 1, channels))
        return ops.sum(maps * ops.cast(weights, self.compute_dtype), axis=1), attention

    def compute_output_shape(self, input_shape):
        """Returns the shapes of map and attention."""
        batch, *_, channels = input_shape[0]
        return tuple(input_shape[0]), (batch, len(input_shape), channels)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "uniform": self.uniform, "reduction": self.reduction}
