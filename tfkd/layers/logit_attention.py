"""LogitAttention: what each of several learners takes over from the others' predictions."""

import keras
from keras import layers, ops

from tfkd.errors import check_positive


@keras.saving.register_keras_serializable(package="tfkd")
class LogitAttention(layers.Layer):
    """Mixes the logits of several learners by the similarity of their features.

    `attention = softmax(query(h) · key(h)ᵀ)` over the last axis, without scaling, where query
    and key are dense layers without bias.

    Args:
        reduction: Positive number; query and key have `max(features / reduction, 1)` units.
            Defaults to 8, as published.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input: a list `(vectors, logits)` of shapes `(batch, learners, features)` and
        `(batch, learners, classes)`.
    Output: the tuple `(mixed, attention)` of shapes `(batch, learners, classes)` and
        `(batch, learners, learners)`; the attention is float32.

    Example:
    ```python
    vectors, logits = keras.random.normal((4, 3, 64)), keras.random.normal((4, 3, 10))
    mixed, attention = tfkd.layers.LogitAttention()([vectors, logits])  # (4, 3, 10), (4, 3, 3)
    ```

    References:
        - Online Knowledge Distillation with Diverse Peers, https://arxiv.org/abs/1912.00350
    """

    def __init__(self, reduction=8, **kwargs):
        super().__init__(**kwargs)
        check_positive("LogitAttention: reduction", reduction)
        self.reduction = reduction

    def build(self, input_shape):
        """Creates the weights for inputs of these shapes."""
        features = input_shape[0][-1]
        width = max(1, int(features / self.reduction))
        self.query = layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
        self.key = layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
        for layer in (self.query, self.key):
            layer.build((None, None, features))

    def call(self, inputs):
        """Returns mixed logits and attention; see the class for the shapes."""
        vectors, logits = inputs
        scores = ops.einsum("bnd,bmd->bnm", self.query(vectors), self.key(vectors))
        attention = ops.softmax(ops.cast(scores, "float32"), axis=-1)
        return ops.einsum("bnm,bmc->bnc", attention, ops.cast(logits, "float32")), attention

    def compute_output_shape(self, input_shape):
        """Returns the shapes of mixed logits and attention."""
        batch, learners, _ = input_shape[0]
        return tuple(input_shape[1]), (batch, learners, learners)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        return {**super().get_config(), "reduction": self.reduction}
