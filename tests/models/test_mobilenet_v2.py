"""MobileNetV2: widths and bottlenecks."""

import keras
import numpy as np
import pytest
import zoo

from tfkd import models
from tfkd.errors import UsageError


def test_half_width_is_the_default():
    default = models.create("mobilenet_v2", num_classes=10)
    half = models.create("mobilenet_v2", num_classes=10, width=0.5)
    assert default.count_params() == half.count_params()


@pytest.mark.parametrize(
    "width, channels",
    [
        # Full width: the paper's table 2. The last layer does not shrink below 1,280.
        (1.0, [32, 24, 32, 96, 320, 1280]),
        (0.25, [8, 6, 8, 24, 80, 1280]),
        (2, [64, 48, 64, 192, 640, 2560]),
        (1 / 16, [2, 1, 2, 6, 20, 1280]),
    ],
)
def test_width(width, channels):
    model = models.create("mobilenet_v2", num_classes=10, width=width)
    assert [model.get_layer(tap).output.shape[-1] for tap in zoo.tap_names(4)] == channels


@pytest.mark.parametrize("width", [0, 0.01, -1, "0.5", True, None, float("nan")])
def test_bad_width(width):
    with pytest.raises(UsageError, match="width must be a number of at least 1/16"):
        models.create("mobilenet_v2", num_classes=10, width=width)


def test_bottlenecks_are_linear():
    model = zoo.model("mobilenet_v2")
    taps = [model.get_layer(name).output for name in zoo.tap_names(4)]
    stem, *stages, pooled = keras.Model(model.input, taps)(zoo.images((16, 16, 3)))
    assert np.min(stem) == 0
    assert np.min(pooled) >= 0
    for value in stages:
        assert np.min(value) < 0


def test_units_of_equal_shape_add_their_input():
    names = [layer.name for layer in zoo.model("mobilenet_v2").layers]
    assert [name for name in names if name.endswith("_add")] == [
        "group2_unit2_add",
        *(f"group3_unit{unit}_add" for unit in (2, 3)),
        *(f"group4_unit{unit}_add" for unit in (2, 3, 4)),
        *(f"group5_unit{unit}_add" for unit in (2, 3)),
        *(f"group6_unit{unit}_add" for unit in (2, 3)),
    ]
