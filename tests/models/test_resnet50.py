"""ResNet-50: its stem, its units and where they halve the map."""

import zoo


def test_units_and_strides():
    model = zoo.model("resnet50")
    names = [layer.name for layer in model.layers]
    units = [
        sum(name.startswith(f"stage{stage}_") and name.endswith("_conv2") for name in names)
        for stage in (1, 2, 3, 4)
    ]
    assert units == [3, 4, 6, 3]
    # The 3x3 convolution halves the map, not the 1x1 before it.
    assert model.get_layer("stage2_unit1_conv1").strides == (1, 1)
    assert model.get_layer("stage2_unit1_conv2").strides == (2, 2)
    assert [name for name in names if name.endswith("projection_conv")] == [
        f"stage{stage}_unit1_projection_conv" for stage in (1, 2, 3, 4)
    ]


def test_stem_keeps_the_size():
    model = zoo.model("resnet50")
    assert model.get_layer("stem").output.shape == (None, 16, 16, 64)
