"""ResNets for photographs, as torchvision has them: a 7x7 stem, a pooling, four stages."""

import functools

from keras import layers

from tfkd.models.blocks import Builder, normalization, relu, stages
from tfkd.models.resnet import basic_unit
from tfkd.models.resnet50 import bottleneck_unit

#: The ids of this family and what `build()` makes them of.
MODELS = {
    "resnet18_imagenet": {"unit": basic_unit, "units": (2, 2, 2, 2)},
    "resnet34_imagenet": {"unit": basic_unit, "units": (3, 4, 6, 3)},
    "resnet50_imagenet": {"unit": bottleneck_unit, "units": (3, 4, 6, 3)},
}

#: Our layers and the modules of torchvision that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage{stage}_unit{unit}_conv{number}": "layer{stage}.{unit_index}.conv{number}",
    "stage{stage}_unit{unit}_norm{number}": "layer{stage}.{unit_index}.bn{number}",
    "stage{stage}_unit{unit}_downsample_conv": "layer{stage}.{unit_index}.downsample.0",
    "stage{stage}_unit{unit}_downsample_norm": "layer{stage}.{unit_index}.downsample.1",
    "logits": "fc",
}


def build(image, num_classes, seed, unit, units):
    """Adds a ResNet to a symbolic image; its taps follow a ReLU, and `stem` precedes the pooling.

    Args:
        image: Tensor `(batch, height, width, channels)`, published for 224 pixels.
        num_classes: Integer.
        seed: Integer or None.
        unit: `basic_unit` or `bottleneck_unit`.
        units: Four integers, the units of each stage.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385),
          table 1. In bottlenecks the 3x3 convolution has the stride, as in
          [torchvision](https://docs.pytorch.org/vision/stable/models/resnet.html), not the first
          one, as in the paper.
    """
    builder = Builder(seed)
    x = builder.convolution(image, 64, 7, stride=2, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    # Behind a ReLU a border of zeros never wins.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    unit = functools.partial(unit, shortcut="downsample")
    x = stages(builder, x, unit, (64, 128, 256, 512), units)
    return builder.classifier(x, num_classes)
