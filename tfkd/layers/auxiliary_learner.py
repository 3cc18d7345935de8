"""AuxiliaryLearner: a classifier on an intermediate stage of a student."""

import keras
from keras import layers

from tfkd.errors import UsageError, unknown

DESIGNS = ("separable", "bottleneck")


@keras.saving.register_keras_serializable(package="tfkd")
class AuxiliaryLearner(layers.Layer):
    """Brings the map of one stage to the shape of the last one, and classifies it.

    `"separable"` has one block per stage that is left, and each block is

        depthwise 3×3 with the stage's stride → pointwise → batch norm → ReLU
        → depthwise 3×3 → pointwise to the stage's width → batch norm → ReLU

    `"bottleneck"` is lighter: 1×1 to a quarter of the last stage's width → k×k with stride k
    → 1×1 to its width, each with batch norm and ReLU, where k is the ratio of the two sizes.

    A map whose size is not the last stage's after that (an odd size halved by a model that
    rounds down) is resized to it. The classifier is a dense layer on the pooled map.

    Args:
        stages: List of the shapes `(height, width, channels)` of the stages that follow the one
            this learner reads, the last stage at the end.
        classes: Integer, the number of classes.
        design: `"separable"` or `"bottleneck"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)`.
    Output: the tuple `(map, logits)` of shapes `(batch, *stages[-1])` and `(batch, classes)`.

    Raises:
        UsageError: If there is no such design, or no stage; when it is built, if its stage is no
            map, as those of a transformer are none.

    Example:
    ```python
    learner = tfkd.layers.AuxiliaryLearner([(16, 16, 32), (8, 8, 64)], classes=10)
    features, logits = learner(keras.random.normal((4, 32, 32, 16)))  # (4, 8, 8, 64), (4, 10)
    ```

    References:
        - The separable block: Task-Oriented Feature Distillation,
          https://proceedings.neurips.cc/paper/2020/hash/a96b65a721e561e1e3de768ac819ffbb-Abstract.html
        - The bottleneck: Be Your Own Teacher, https://arxiv.org/abs/1905.08094
    """

    def __init__(self, stages, classes, design="separable", **kwargs):
        super().__init__(**kwargs)
        if design not in DESIGNS:
            raise unknown("design of auxiliary learners", design, DESIGNS)
        if not stages:
            raise UsageError("An auxiliary learner needs the stages that follow its own.")
        self.stages = [tuple(shape) for shape in stages]
        self.classes = classes
        self.design = design

    def build(self, input_shape):
        """Chooses the layers for maps of this shape and creates their weights."""
        if len(input_shape) != 4:
            raise UsageError(
                f"Auxiliary learner {self.name!r} needs a stage that is a map (batch, height, "
                f"width, channels), and received one of shape {tuple(input_shape)}: networks of "
                "tokens have none."
            )
        self.body = []
        parts = self._separable if self.design == "separable" else self._bottleneck
        shape = tuple(input_shape)
        for layer in parts(shape[1:]):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            self.body.append(layer)
        if shape[1:3] != self.stages[-1][:2]:
            resizing = layers.Resizing(*self.stages[-1][:2], dtype=self.dtype_policy)
            self.body.append(resizing)
        self.pooling = layers.GlobalAveragePooling2D(dtype=self.dtype_policy)
        self.classifier = layers.Dense(self.classes, dtype=self.dtype_policy)
        self.classifier.build((None, self.stages[-1][-1]))

    def _separable(self, shape):
        for height, width, channels in self.stages:
            strides = max(1, round(shape[0] / height))
            for filters, stride in ((shape[-1], strides), (channels, 1)):
                yield layers.SeparableConv2D(
                    filters,
                    3,
                    stride,
                    padding="same",
                    use_bias=False,
                    depthwise_initializer="he_normal",
                    pointwise_initializer="he_normal",
                    dtype=self.dtype_policy,
                )
                yield from self._normalized()
            shape = (height, width, channels)

    def _bottleneck(self, shape):
        height, _, channels = self.stages[-1]
        ratio = max(1, round(shape[0] / height))
        narrow = max(1, channels // 4)
        for filters, size in ((narrow, 1), (narrow, ratio), (channels, 1)):
            yield layers.Conv2D(
                filters,
                size,
                size,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                dtype=self.dtype_policy,
            )
            yield from self._normalized()

    def _normalized(self):
        yield layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy)
        yield layers.ReLU(dtype=self.dtype_policy)

    def call(self, inputs, training=None):
        """Returns map and logits; see the class for the shapes."""
        features = inputs
        for layer in self.body:
            features = layer(features, training=training) if _is_norm(layer) else layer(features)
        return features, self.classifier(self.pooling(features))

    def compute_output_shape(self, input_shape):
        """Returns the shapes of map and logits."""
        return (input_shape[0], *self.stages[-1]), (input_shape[0], self.classes)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal learner."""
        return {
            **super().get_config(),
            "stages": [list(shape) for shape in self.stages],
            "classes": self.classes,
            "design": self.design,
        }


def _is_norm(layer):
    return isinstance(layer, layers.BatchNormalization)
