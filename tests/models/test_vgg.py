"""VGG: where it pools, and what its taps are."""

import keras
import numpy as np
import pytest
import zoo

from tfkd import models


@pytest.mark.parametrize(
    "size, maps",
    [
        ((32, 32), [(32, 32), (16, 16), (8, 8), (4, 4), (4, 4)]),
        # Tiny-ImageNet: the map has 8 pixels before the last block, so it is pooled.
        ((64, 64), [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]),
        ((64, 48), [(64, 48), (32, 24), (16, 12), (8, 6), (8, 6)]),
        ((63, 63), [(63, 63), (31, 31), (15, 15), (7, 7), (7, 7)]),
    ],
)
def test_maps(size, maps):
    model = models.create("vgg8", num_classes=10, input_shape=(*size, 3))
    taps = zoo.tap_names(4)[:-1]
    assert [model.get_layer(name).output.shape[1:3] for name in taps] == maps


def test_taps_follow_a_relu_and_precede_the_pooling():
    model = models.create("vgg11", num_classes=10, input_shape=(8, 8, 3))
    taps = [model.get_layer(name).output for name in zoo.tap_names(4)[:-1]]
    for value in keras.Model(model.input, taps)(zoo.images((8, 8, 3))):
        assert np.min(value) == 0
    assert model.get_layer("stage1_pool").input is model.get_layer("stem").output


@pytest.mark.parametrize("identifier, convolutions", [("vgg8", 5), ("vgg13", 10)])
def test_number_of_convolutions(identifier, convolutions):
    model = models.create(identifier, num_classes=10, input_shape=(8, 8, 3))
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == convolutions
