"""SpotPolicy: decides for each sample at which spots it is distilled."""

import keras
from keras import layers, ops

from tfkd.errors import UsageError, check_positive
from tfkd.layers.torch_defaults import uniform_fan_in


def gumbel_noise(shape, seed):
    """Draws from the standard Gumbel distribution, `−ln(−ln(U + 1e-20) + 1e-20)`.

    Args:
        shape: Shape of the tensor.
        seed: A `keras.random.SeedGenerator`.

    Returns:
        A float32 tensor.
    """
    uniform = keras.random.uniform(shape, dtype="float32", seed=seed)
    return -ops.log(-ops.log(uniform + 1e-20) + 1e-20)


def choose_straight_through(logits, noise, temperature):
    """Chooses one of the last axis, with the gradient of a softmax (Gumbel straight-through).

    Args:
        logits: Float32 tensor `(..., choices)`.
        noise: Tensor of the same shape, Gumbel noise. It makes the choice a draw from the
            softmax of the logits.
        temperature: Positive number. It scales the gradient and does not change the choice.

    Returns:
        A tensor of the same shape: 1 at what was chosen and 0 elsewhere, with the gradient of
        `softmax((logits + noise) / temperature)`.
    """
    soft = ops.softmax((logits + noise) / temperature)
    hard = ops.one_hot(ops.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    # In this order the value is exactly 0 or 1.
    return hard + (soft - ops.stop_gradient(soft))


@keras.saving.register_keras_serializable(package="tfkd")
class SpotPolicy(layers.Layer):
    """One dense layer that decides, per sample and spot, whether to distil there.

    From a vector per sample it computes two logits for each decision, "distil" and "do not", and
    draws one of the two. The draw passes the gradient of its probability (Gumbel
    straight-through), so the policy learns from whatever the decisions lead to.

    Args:
        decisions: Integer, how many decisions are made for each sample.
        initial_bias: Number that is added to the bias of every "distil" at the start: with 10,
            99.995 % of the first decisions are to distil.
        temperature: Positive number, of the softmax whose gradient is passed. It does not change
            the decisions.
        seed: Integer, or None.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, features)`.
    Output shape: `(batch, decisions)`, float32: 1 where to distil, 0 where not.

    Raises:
        UsageError: If `decisions` is no positive integer or `temperature` no positive number.

    Weights start as in PyTorch, `U(±1 / sqrt(features))`.

    Example:
    ```python
    policy = tfkd.layers.SpotPolicy(decisions=4, initial_bias=10.0)
    decisions = policy(keras.random.normal((32, 128)))  # (32, 4), nearly all of them 1
    ```

    References:
        - [Spot-adaptive Knowledge Distillation](https://arxiv.org/abs/2205.02399) and its code.
        - [Categorical Reparameterization with Gumbel-Softmax](https://arxiv.org/abs/1611.01144).
    """

    def __init__(self, decisions, initial_bias=0.0, temperature=5.0, seed=None, **kwargs):
        # float32 whatever the global policy: half precision would round the softmax.
        super().__init__(**{"dtype": "float32", **kwargs})
        if not isinstance(decisions, int) or decisions < 1:
            raise UsageError(f"decisions must be a positive integer; received {decisions!r}.")
        check_positive("temperature", temperature)
        self.decisions = decisions
        self.initial_bias = initial_bias
        self.temperature = temperature
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        """Creates the weights for vectors of this shape."""
        features = input_shape[-1]
        initializers = uniform_fan_in(features)
        draw_bias = initializers["bias_initializer"]

        def biased(shape, dtype=None):
            # "Distil" comes first of each pair.
            towards_distilling = ops.tile([self.initial_bias, 0.0], [self.decisions])
            return draw_bias(shape, dtype) + ops.cast(towards_distilling, dtype)

        self.dense = layers.Dense(
            2 * self.decisions,
            kernel_initializer=initializers["kernel_initializer"],
            bias_initializer=biased,
            dtype=self.dtype_policy,
        )
        self.dense.build((None, features))

    def noise(self, size):
        """Draws the noise for so many samples, `(size, decisions, 2)`."""
        return gumbel_noise((size, self.decisions, 2), self.seed_generator)

    def logits(self, inputs):
        """Returns the logits `(batch, decisions, 2)` of "distil" and "do not"."""
        return ops.reshape(self.dense(inputs), (-1, self.decisions, 2))

    def call(self, inputs, noise=None):
        """Decides for a batch.

        Args:
            inputs: Tensor `(batch, features)`.
            noise: As from `noise()`, which is called where it is None.
        """
        if noise is None:
            noise = self.noise(ops.shape(inputs)[0])
        return choose_straight_through(self.logits(inputs), noise, self.temperature)[..., 0]

    def compute_output_shape(self, input_shape):
        """Returns `(batch, decisions)`."""
        return (input_shape[0], self.decisions)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal policy."""
        return {
            **super().get_config(),
            "decisions": self.decisions,
            "initial_bias": self.initial_bias,
            "temperature": self.temperature,
            "seed": self.seed,
        }
