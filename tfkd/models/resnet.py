"""ResNets for small images, built of basic units."""

from keras import layers

from tfkd.models.blocks import Builder, normalization, relu, stages

#: The ids of this family and what `build()` makes them of.
MODELS = {
    **{
        f"resnet{depth}": {"depth": depth, "filters": (16, 16, 32, 64)}
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"resnet{depth}x4": {"depth": depth, "filters": (32, 64, 128, 256)} for depth in (8, 32)},
}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage{stage}_unit{unit}_conv1": "layer{stage}.{unit_index}.conv1",
    "stage{stage}_unit{unit}_norm1": "layer{stage}.{unit_index}.bn1",
    "stage{stage}_unit{unit}_conv2": "layer{stage}.{unit_index}.conv2",
    "stage{stage}_unit{unit}_norm2": "layer{stage}.{unit_index}.bn2",
    "stage{stage}_unit{unit}_shortcut_conv": "layer{stage}.{unit_index}.downsample.0",
    "stage{stage}_unit{unit}_shortcut_norm": "layer{stage}.{unit_index}.downsample.1",
    "logits": "fc",
}


def build(image, num_classes, seed, depth, filters):
    """Adds a ResNet to a symbolic image; its taps follow a ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        depth: Integer `6 n + 2`, the layers with weights on the longest path.
        filters: Four integers, the channels of the stem and of the three stages.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385),
          section 4.2, with projection shortcuts, as in the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    builder = Builder(seed)
    x = builder.convolution(image, filters[0], 3, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    x = stages(builder, x, basic_unit, filters[1:], [(depth - 2) // 6] * 3)
    return builder.classifier(x, num_classes)


def fitted(builder, x, filters, stride, name):
    """Returns what passes by the convolutions of a unit: `x`, or a projection of it that fits.

    Args:
        builder: A `Builder`.
        x: Tensor `(batch, height, width, channels)`.
        filters: Integer, the channels of the unit's result.
        stride: Integer, that of the unit.
        name: String that the names of the projection's layers begin with.
    """
    if stride == 1 and x.shape[-1] == filters:
        return x
    projection = builder.convolution(x, filters, 1, stride=stride, name=f"{name}_conv")
    return normalization(projection, name=f"{name}_norm")


def basic_unit(builder, x, filters, stride, prefix, output, shortcut="shortcut"):
    """Adds two 3x3 convolutions, and what passes by them.

    Args:
        builder: A `Builder`.
        x: Tensor `(batch, height, width, channels)`.
        filters: Integer, the channels of the result.
        stride: Integer, of the first convolution.
        prefix: String that the names of the layers begin with.
        output: String, the name of the last layer, a ReLU.
        shortcut: String, what is in the names of the layers that make `x` fit the result.

    Returns:
        A tensor `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    passing = fitted(builder, x, filters, stride, f"{prefix}_{shortcut}")
    x = builder.convolution(x, filters, 3, stride=stride, name=f"{prefix}_conv1")
    x = normalization(x, name=f"{prefix}_norm1")
    x = relu(x, name=f"{prefix}_relu1")
    x = builder.convolution(x, filters, 3, name=f"{prefix}_conv2")
    x = normalization(x, name=f"{prefix}_norm2")
    x = layers.Add(name=f"{prefix}_add")([x, passing])
    return relu(x, name=output)
