"""Tiny models and data, so that tests spend their time on what they test."""

import functools

import keras
import numpy as np
from keras import layers, ops

from tfkd.losses import DistillationLoss

CLASSES = 5
SHAPE = (8, 8, 3)
#: Arguments of `compile` for tests that take few steps, which tracing takes longer than.
EAGER = {"run_eagerly": True}


def model(
    width=4, name="tiny", classes=CLASSES, dropout=0.0, regularizer=None, seed=0, normalized=True
):
    """A residual network of two stages with the zoo's tap names."""
    seeds = iter(range(100 * seed, 100 * seed + 100))

    def convolution(x, filters, strides, size=3):
        initializer = keras.initializers.HeNormal(next(seeds))
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer,
            kernel_regularizer=regularizer,
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x) if normalized else x

    inputs = keras.Input(SHAPE)
    x = layers.ReLU(name="stem")(convolution(inputs, width, 1))
    for stage in (1, 2):
        shortcut = convolution(x, width * stage, stage, size=1)
        x = layers.Add()([shortcut, convolution(x, width * stage, stage)])
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    initializer = keras.initializers.HeNormal(next(seeds))
    outputs = layers.Dense(classes, kernel_initializer=initializer, name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


@functools.cache
def shared(width=4, name="tiny", seed=0):
    """A model that is made once, for tests that neither train nor change it."""
    return model(width, name, seed=seed)


def data(examples=32, classes=CLASSES, seed=0):
    """Random images `(examples, 8, 8, 3)` and labels."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(examples, *SHAPE)).astype("float32")
    return images, random.integers(0, classes, examples)


def values(variables):
    """Their values now, as arrays."""
    return [np.array(variable) for variable in variables]


def assert_equal(one, other):
    """Asserts that two lists of arrays are equal."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Subclassed(keras.Model):
    """A model whose graph cannot be looked at."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Conv2D(4, 3, padding="same", activation="relu")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.head(self.pool(self.body(inputs)))


class Relational(DistillationLoss):
    """Compares similarity matrices: its value depends on which samples share a batch."""

    id = "relational_for_tests"
    spots = "pooled"
    relational = True

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        student = ops.matmul(student_tap, ops.transpose(student_tap))
        teacher = ops.matmul(teacher_tap, ops.transpose(teacher_tap))
        return ops.mean((student - teacher) ** 2)


class Hint(DistillationLoss):
    """Has a connector, built from the shapes it sees."""

    id = "hint_for_tests"
    spots = "hint"

    def build(self, student_taps_shape, teacher_taps_shape):
        self.connector = keras.layers.Dense(teacher_taps_shape[0][-1], dtype=self.dtype_policy)
        self.connector.build(student_taps_shape[0])

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        return ops.mean((self.connector(student_tap) - teacher_tap) ** 2)
