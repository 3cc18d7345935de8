"""Multiply-adds, counted by hand; the published networks' are in `test_families.py`."""

import keras
import pytest
from keras import layers

from tfkd.errors import UsageError
from tfkd.models import multiply_adds


@pytest.mark.parametrize(
    "layer, expected",
    [
        (layers.Conv2D(5, 3, padding="same"), 8 * 6 * 9 * 4 * 5),
        (layers.Conv2D(5, 3, strides=2, padding="valid"), 3 * 2 * 9 * 4 * 5),
        (layers.Conv2D(6, 1, groups=2), 8 * 6 * 2 * 6),
        (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 8 * 6 * 9 * 4 * 2),
        (layers.SeparableConv2D(5, 3, padding="same"), 8 * 6 * (9 * 4 + 4 * 5)),
        (layers.Conv2DTranspose(5, 4, strides=2, padding="same"), 8 * 6 * 16 * 4 * 5),
        (layers.Dense(7), 8 * 6 * 4 * 7),
        (layers.EinsumDense("bhwi,io->bhwo", output_shape=(8, 6, 7)), 8 * 6 * 4 * 7),
        (layers.EinsumDense("...i,io->...o", output_shape=7), 8 * 6 * 4 * 7),
        (layers.EinsumDense("bhwi,wio->bho", output_shape=(8, 7)), 8 * 6 * 4 * 7),
        (layers.BatchNormalization(), 0),
        (layers.GlobalAveragePooling2D(), 0),
    ],
)
def test_one_layer(layer, expected):
    assert multiply_adds(keras.Sequential([keras.Input((8, 6, 4)), layer])) == expected


def test_attention():
    query, value = keras.Input((6, 8)), keras.Input((5, 12))
    attended = layers.MultiHeadAttention(2, 3, value_dim=4)(query, value)
    model = keras.Model([query, value], attended)
    projections = 6 * 8 * (2 * 3) + 5 * 12 * (2 * 3) + 5 * 12 * (2 * 4) + 6 * (2 * 4) * 8
    assert multiply_adds(model) == projections + 2 * 6 * 5 * (3 + 4)


def test_nested_models_count():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 1)])
    image = keras.Input((8, 8, 3))
    outer = keras.Model(image, layers.Dense(2)(layers.Flatten()(inner(image))))
    assert multiply_adds(outer) == 8 * 8 * 3 * 4 + 8 * 8 * 4 * 2


def test_unknown_sizes():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 1, name="wide")])
    with pytest.raises(UsageError, match="'wide' .* has no known output shape"):
        multiply_adds(model)


def test_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2, name="inside")

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(keras.ops.ones((1, 3)))
    with pytest.raises(UsageError, match="'inside' .* functional or sequential"):
        multiply_adds(model)
