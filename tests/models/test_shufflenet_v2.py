"""ShuffleNetV2: halves and shuffles."""

import keras
import numpy as np
import zoo


def test_a_unit_passes_its_first_half_on():
    model = zoo.model("shufflenet_v2")
    names = ("stage1_unit1_output", "stage1_unit2_output", "stage1_unit2_right_relu3")
    taps = [model.get_layer(name).output for name in names]
    before, after, right = map(np.array, keras.Model(model.input, taps)(zoo.images((16, 16, 3))))
    # Shuffled by two groups: what passed by and what was computed take turns.
    np.testing.assert_array_equal(after[..., 0::2], before[..., :58])
    np.testing.assert_array_equal(after[..., 1::2], right)
    right_input = keras.Model(model.input, model.get_layer("stage1_unit2_right").output)
    np.testing.assert_array_equal(right_input(zoo.images((16, 16, 3))), before[..., 58:])


def test_units_per_stage():
    names = [layer.name for layer in zoo.model("shufflenet_v2").layers]
    units = [
        sum(name.startswith(f"stage{stage}_") and name.endswith("right_conv1") for name in names)
        for stage in (1, 2, 3)
    ]
    assert units == [4, 8, 4]


def test_last_convolution_precedes_the_pooling():
    model = zoo.model("shufflenet_v2")
    assert model.get_layer("stage3").output.shape == (None, 2, 2, 464)
    assert model.get_layer("pooled").input is model.get_layer("final_relu").output
    assert model.get_layer("pooled").output.shape == (None, 1024)
