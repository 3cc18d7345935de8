"""ShuffleNet (the first) for small images: grouped convolutions and channel shuffles."""

from keras import layers

from tfkd.models.blocks import Builder, channel_shuffle, normalization, relu, unit_names

#: The ids of this family and what `build()` makes them of.
MODELS = {"shufflenet_v1": {"groups": 3, "filters": (240, 480, 960)}}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage{stage}_unit{unit}_reduce_conv": "layer{stage}.{unit_index}.conv1",
    "stage{stage}_unit{unit}_reduce_norm": "layer{stage}.{unit_index}.bn1",
    "stage{stage}_unit{unit}_depthwise_conv": "layer{stage}.{unit_index}.conv2",
    "stage{stage}_unit{unit}_depthwise_norm": "layer{stage}.{unit_index}.bn2",
    "stage{stage}_unit{unit}_expand_conv": "layer{stage}.{unit_index}.conv3",
    "stage{stage}_unit{unit}_expand_norm": "layer{stage}.{unit_index}.bn3",
    "logits": "linear",
}


def build(image, num_classes, seed, groups, filters):
    """Adds ShuffleNet to a symbolic image; its taps follow a ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        groups: Integer, the groups of the pointwise convolutions.
        filters: Three integers, the channels of the stages.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
          Devices](https://arxiv.org/abs/1707.01083), table 1, with the 1x1 stem of the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    builder = Builder(seed, kernels="uniform")
    x = builder.convolution(image, 24, 1, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    for stage, (width, units) in enumerate(zip(filters, (4, 8, 4)), start=1):
        stride = 2
        for prefix, output in unit_names(stage, units):
            # The stem has too few channels to be grouped.
            reduce_groups = 1 if prefix == "stage1_unit1" else groups
            x = _unit(builder, x, width, stride, reduce_groups, groups, prefix, output)
            stride = 1
    return builder.classifier(x, num_classes)


def _unit(builder, x, filters, stride, reduce_groups, groups, prefix, output):
    shortcut = x
    if stride == 2:
        # The input, halved, makes the first unit's last channels; the branch makes the others.
        filters -= x.shape[-1]
        # Zeros count in the mean at the border, as in PyTorch.
        shortcut = layers.ZeroPadding2D(1, name=f"{prefix}_shortcut_pad")(x)
        shortcut = layers.AveragePooling2D(3, strides=2, name=f"{prefix}_shortcut_pool")(shortcut)
    middle = filters // 4
    if reduce_groups == 1:
        x = builder.convolution(x, middle, 1, name=f"{prefix}_reduce_conv")
    else:
        x = builder.grouped_convolution(x, middle, groups, name=f"{prefix}_reduce_conv")
    x = normalization(x, name=f"{prefix}_reduce_norm")
    x = relu(x, name=f"{prefix}_reduce_relu")
    if reduce_groups > 1:
        x = channel_shuffle(x, groups, name=f"{prefix}_shuffle")
    x = builder.depthwise_convolution(x, stride=stride, name=f"{prefix}_depthwise_conv")
    x = normalization(x, name=f"{prefix}_depthwise_norm")
    x = relu(x, name=f"{prefix}_depthwise_relu")
    x = builder.grouped_convolution(x, filters, groups, name=f"{prefix}_expand_conv")
    x = normalization(x, name=f"{prefix}_expand_norm")
    if stride == 2:
        x = layers.Concatenate(name=f"{prefix}_concatenate")([x, shortcut])
    else:
        x = layers.Add(name=f"{prefix}_add")([x, shortcut])
    return relu(x, name=output)
