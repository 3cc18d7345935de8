"""ShuffleNet: groups, shuffles and halving units."""

import keras
import numpy as np
import zoo


def _value(model, name, image):
    return np.array(keras.Model(model.input, model.get_layer(name).output)(image))


def test_only_the_first_unit_is_not_grouped():
    model = zoo.model("shufflenet_v1")
    kinds = {
        layer.name: type(layer)
        for layer in model.layers
        if layer.name.endswith(("reduce_conv", "expand_conv"))
    }
    ungrouped = [name for name, kind in kinds.items() if kind is keras.layers.Conv2D]
    assert ungrouped == ["stage1_unit1_reduce_conv"]
    assert len(kinds) == 32
    names = [layer.name for layer in model.layers]
    assert sum(name.endswith("_shuffle") for name in names) == 15


def test_halving_unit_ends_with_the_pooled_input():
    model = zoo.model("shufflenet_v1")
    image = zoo.images((16, 16, 3))
    stem = np.pad(_value(model, "stem", image), ((0, 0), (1, 1), (1, 1), (0, 0)))
    unit = _value(model, "stage1_unit1_output", image)
    assert unit.shape == (2, 8, 8, 240)
    # The padding counts in the mean: always nine pixels.
    corner = stem[:, 0:3, 0:3].sum(axis=(1, 2)) / 9
    inner = stem[:, 2:5, 4:7].sum(axis=(1, 2)) / 9
    np.testing.assert_allclose(unit[:, 0, 0, 216:], corner, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unit[:, 1, 2, 216:], inner, rtol=1e-5, atol=1e-6)


def test_taps_follow_a_relu():
    model = zoo.model("shufflenet_v1")
    for name in ("stem", "stage1", "stage2", "stage3"):
        assert _value(model, name, zoo.images((16, 16, 3))).min() == 0
