"""Wide ResNets: taps are raw, and the identity passes by the first ReLU."""

import keras
import numpy as np
import zoo

from tfkd import models


def test_taps_are_raw_sums():
    model = zoo.model("wrn_16_1")
    names = ("stem", "stage1", "stage2", "stage3")
    assert isinstance(model.get_layer("stem"), keras.layers.Conv2D)
    assert all(isinstance(model.get_layer(name), keras.layers.Add) for name in names[1:])
    taps = [model.get_layer(name).output for name in names]
    for value in keras.Model(model.input, taps)(zoo.images((16, 16, 3))):
        assert np.min(value) < 0


def test_identity_is_raw_and_projection_is_activated():
    model = models.create("wrn_16_2", num_classes=10, input_shape=(8, 8, 3), seed=0)
    for layer in model.layers:
        if layer.name.endswith("_conv2"):
            layer.kernel.assign(keras.ops.zeros_like(layer.kernel))
    image = zoo.images((8, 8, 3))

    def value(name):
        return np.array(keras.Model(model.input, model.get_layer(name).output)(image))

    # With its branch at zero a unit returns its shortcut.
    np.testing.assert_allclose(value("stage1"), value("stage1_unit1_output"), rtol=1e-6)
    kernel = np.array(model.get_layer("stage1_unit1_shortcut_conv").kernel)[0, 0]
    activated = np.maximum(value("stem"), 0) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        value("stage1_unit1_output"), activated @ kernel, rtol=1e-4, atol=1e-5
    )


def test_width_multiplies_the_stages_alone():
    model = models.create("wrn_40_2", num_classes=10)
    channels = [model.get_layer(name).output.shape[-1] for name in ("stem", "stage1", "stage3")]
    assert channels == [16, 32, 128]
