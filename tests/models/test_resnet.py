"""ResNets: units, shortcuts and taps."""

import keras
import numpy as np
import pytest
import zoo

from tfkd import models


@pytest.mark.parametrize("identifier, units", [("resnet8", 1), ("resnet20", 3), ("resnet56", 9)])
def test_units_per_stage(identifier, units):
    names = [layer.name for layer in models.create(identifier, num_classes=10).layers]
    for stage in (1, 2, 3):
        convolutions = [name for name in names if name.startswith(f"stage{stage}_unit")]
        assert sum(name.endswith("_conv1") for name in convolutions) == units


def test_only_units_that_change_the_shape_project():
    def projections(identifier):
        layers = models.create(identifier, num_classes=10).layers
        return [layer.name for layer in layers if layer.name.endswith("shortcut_conv")]

    narrow = ["stage2_unit1_shortcut_conv", "stage3_unit1_shortcut_conv"]
    assert projections("resnet14") == narrow
    assert projections("resnet8x4") == ["stage1_unit1_shortcut_conv", *narrow]


def test_taps_follow_a_relu():
    model = zoo.model("resnet8")
    taps = [model.get_layer(name).output for name in ("stem", "stage1", "stage2", "stage3")]
    for value in keras.Model(model.input, taps)(zoo.images((16, 16, 3))):
        assert np.min(value) == 0
