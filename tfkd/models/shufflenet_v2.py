"""ShuffleNetV2 for small images: units that work on one half of the channels."""

from keras import layers

from tfkd.models.blocks import Builder, channel_shuffle, normalization, relu, unit_names

#: The ids of this family and what `build()` makes them of.
MODELS = {"shufflenet_v2": {"filters": (116, 232, 464, 1024)}}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`. PyTorch's first
#: unit of a stage counts the convolutions of its left branch before those of the right one.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage{stage}_unit1_left_conv1": "layer{stage}.0.conv1",
    "stage{stage}_unit1_left_norm1": "layer{stage}.0.bn1",
    "stage{stage}_unit1_left_conv2": "layer{stage}.0.conv2",
    "stage{stage}_unit1_left_norm2": "layer{stage}.0.bn2",
    "stage{stage}_unit1_right_conv1": "layer{stage}.0.conv3",
    "stage{stage}_unit1_right_norm1": "layer{stage}.0.bn3",
    "stage{stage}_unit1_right_conv2": "layer{stage}.0.conv4",
    "stage{stage}_unit1_right_norm2": "layer{stage}.0.bn4",
    "stage{stage}_unit1_right_conv3": "layer{stage}.0.conv5",
    "stage{stage}_unit1_right_norm3": "layer{stage}.0.bn5",
    "stage{stage}_unit{unit}_right_conv1": "layer{stage}.{unit_index}.conv1",
    "stage{stage}_unit{unit}_right_norm1": "layer{stage}.{unit_index}.bn1",
    "stage{stage}_unit{unit}_right_conv2": "layer{stage}.{unit_index}.conv2",
    "stage{stage}_unit{unit}_right_norm2": "layer{stage}.{unit_index}.bn2",
    "stage{stage}_unit{unit}_right_conv3": "layer{stage}.{unit_index}.conv3",
    "stage{stage}_unit{unit}_right_norm3": "layer{stage}.{unit_index}.bn3",
    "final_conv": "conv2",
    "final_norm": "bn2",
    "logits": "linear",
}


def build(image, num_classes, seed, filters):
    """Adds ShuffleNetV2 to a symbolic image; its taps follow the channel shuffle.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        filters: Four integers, the channels of the three stages and of the last convolution.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
          Design](https://arxiv.org/abs/1807.11164), table 5, with the 1x1 stem of the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    builder = Builder(seed, kernels="uniform")
    x = builder.convolution(image, 24, 1, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    for stage, (width, units) in enumerate(zip(filters[:3], (4, 8, 4)), start=1):
        for prefix, output in unit_names(stage, units):
            unit = _halving_unit if prefix.endswith("unit1") else _unit
            x = unit(builder, x, width // 2, prefix, output)
    x = builder.convolution(x, filters[3], 1, name="final_conv")
    x = normalization(x, name="final_norm")
    x = relu(x, name="final_relu")
    return builder.classifier(x, num_classes)


def _halving_unit(builder, x, filters, prefix, output):
    left = builder.depthwise_convolution(x, stride=2, name=f"{prefix}_left_conv1")
    left = normalization(left, name=f"{prefix}_left_norm1")
    left = builder.convolution(left, filters, 1, name=f"{prefix}_left_conv2")
    left = normalization(left, name=f"{prefix}_left_norm2")
    left = relu(left, name=f"{prefix}_left_relu2")
    right = _right_branch(builder, x, filters, 2, prefix)
    return _joined(left, right, prefix, output)


def _unit(builder, x, filters, prefix, output):
    # Halves as the rows of one more axis, which layers can cut without a custom one.
    _, height, width, _ = x.shape
    halves = layers.Reshape((height, width, 2, filters), name=f"{prefix}_halves")(x)
    left, right = (
        layers.Reshape((height, width, filters), name=f"{prefix}_{side}")(
            layers.Cropping3D((0, 0, crop), name=f"{prefix}_{side}_half")(halves)
        )
        for side, crop in (("left", (0, 1)), ("right", (1, 0)))
    )
    right = _right_branch(builder, right, filters, 1, prefix)
    return _joined(left, right, prefix, output)


def _right_branch(builder, x, filters, stride, prefix):
    x = builder.convolution(x, filters, 1, name=f"{prefix}_right_conv1")
    x = normalization(x, name=f"{prefix}_right_norm1")
    x = relu(x, name=f"{prefix}_right_relu1")
    x = builder.depthwise_convolution(x, stride=stride, name=f"{prefix}_right_conv2")
    x = normalization(x, name=f"{prefix}_right_norm2")
    x = builder.convolution(x, filters, 1, name=f"{prefix}_right_conv3")
    x = normalization(x, name=f"{prefix}_right_norm3")
    return relu(x, name=f"{prefix}_right_relu3")


def _joined(left, right, prefix, output):
    x = layers.Concatenate(name=f"{prefix}_concatenate")([left, right])
    return channel_shuffle(x, groups=2, name=output)
