"""MobileNetV2 for small images: inverted residuals with linear bottlenecks."""

import numbers

from keras import layers

from tfkd.errors import UsageError
from tfkd.models.blocks import Builder, normalization, relu

#: The ids of this family and what `build()` makes them of.
MODELS = {"mobilenet_v2": {}}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem_conv": "conv1.0",
    "stem_norm": "conv1.1",
    "group{group}_unit{unit}_expand_conv": "blocks.{group_index}.{unit_index}.conv.0",
    "group{group}_unit{unit}_expand_norm": "blocks.{group_index}.{unit_index}.conv.1",
    "group{group}_unit{unit}_depthwise_conv": "blocks.{group_index}.{unit_index}.conv.3",
    "group{group}_unit{unit}_depthwise_norm": "blocks.{group_index}.{unit_index}.conv.4",
    "group{group}_unit{unit}_project_conv": "blocks.{group_index}.{unit_index}.conv.6",
    "group{group}_unit{unit}_project_norm": "blocks.{group_index}.{unit_index}.conv.7",
    "final_conv": "conv2.0",
    "final_norm": "conv2.1",
    "logits": "classifier.0",
}

#: The groups of units, as in the paper's table 2: expansion, channels at full width, units,
#: stride of the first one, and the stage that ends there.
_GROUPS = (
    (1, 16, 1, 1, None),
    (6, 24, 2, 1, "stage1"),
    (6, 32, 3, 2, "stage2"),
    (6, 64, 4, 2, None),
    (6, 96, 3, 1, "stage3"),
    (6, 160, 3, 2, None),
    (6, 320, 1, 1, "stage4"),
)


def build(image, num_classes, seed, width=0.5):
    """Adds MobileNetV2 to a symbolic image; the taps of its stages follow no ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        width: Number, at least 1/16, the factor of all channels; the last 1,280 grow with it
            but do not shrink. The published distillation results are for 0.5.

    Returns:
        The logits `(batch, num_classes)`.

    Raises:
        UsageError: If `width` is no number or too small.

    References:
        - [MobileNetV2: Inverted Residuals and Linear
          Bottlenecks](https://arxiv.org/abs/1801.04381), table 2, with the strides of the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    if not isinstance(width, numbers.Real) or isinstance(width, bool) or not width >= 1 / 16:
        raise UsageError(f"width must be a number of at least 1/16; received {width!r}.")
    builder = Builder(seed)
    x = builder.convolution(image, int(32 * width), 3, stride=2, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    for group, (expansion, channels, units, stride, stage) in enumerate(_GROUPS, start=1):
        for unit in range(1, units + 1):
            prefix = f"group{group}_unit{unit}"
            x = _unit(builder, x, int(channels * width), expansion, stride, prefix)
            stride = 1
        if stage:
            # The tensor that ends a stage is a sum in some and a normalisation in others; a
            # layer that passes it on can be named after the stage in both.
            x = layers.Identity(name=stage)(x)
    x = builder.convolution(x, int(1280 * max(1, width)), 1, name="final_conv")
    x = normalization(x, name="final_norm")
    x = relu(x, name="final_relu")
    return builder.classifier(x, num_classes, kernel="normal", bias="zeros")


def _unit(builder, x, filters, expansion, stride, prefix):
    shortcut = x
    channels = x.shape[-1]
    x = builder.convolution(x, expansion * channels, 1, name=f"{prefix}_expand_conv")
    x = normalization(x, name=f"{prefix}_expand_norm")
    x = relu(x, name=f"{prefix}_expand_relu")
    x = builder.depthwise_convolution(x, stride=stride, name=f"{prefix}_depthwise_conv")
    x = normalization(x, name=f"{prefix}_depthwise_norm")
    x = relu(x, name=f"{prefix}_depthwise_relu")
    x = builder.convolution(x, filters, 1, name=f"{prefix}_project_conv")
    x = normalization(x, name=f"{prefix}_project_norm")
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{prefix}_add")([x, shortcut])
    return x
