"""ResNet-50 for small images: bottleneck units behind a 3x3 stem without pooling."""

from keras import layers

from tfkd.models.blocks import Builder, normalization, relu, stages
from tfkd.models.resnet import fitted

#: The ids of this family and what `build()` makes them of.
MODELS = {"resnet50": {"units": (3, 4, 6, 3)}}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage{stage}_unit{unit}_conv1": "layer{stage}.{unit_index}.conv1",
    "stage{stage}_unit{unit}_norm1": "layer{stage}.{unit_index}.bn1",
    "stage{stage}_unit{unit}_conv2": "layer{stage}.{unit_index}.conv2",
    "stage{stage}_unit{unit}_norm2": "layer{stage}.{unit_index}.bn2",
    "stage{stage}_unit{unit}_conv3": "layer{stage}.{unit_index}.conv3",
    "stage{stage}_unit{unit}_norm3": "layer{stage}.{unit_index}.bn3",
    "stage{stage}_unit{unit}_projection_conv": "layer{stage}.{unit_index}.shortcut.0",
    "stage{stage}_unit{unit}_projection_norm": "layer{stage}.{unit_index}.shortcut.1",
    "logits": "linear",
}


def build(image, num_classes, seed, units):
    """Adds a bottleneck ResNet to a symbolic image; its taps follow a ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        units: Four integers, the bottleneck units of each stage.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385),
          table 1, with the stem and the strides of the
          [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    builder = Builder(seed)
    x = builder.convolution(image, 64, 3, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem")
    x = stages(builder, x, bottleneck_unit, (64, 128, 256, 512), units)
    return builder.classifier(x, num_classes)


def bottleneck_unit(builder, x, filters, stride, prefix, output, shortcut="projection"):
    """Adds convolutions of 1x1, 3x3 and 1x1, and what passes by them.

    Args:
        builder: A `Builder`.
        x: Tensor `(batch, height, width, channels)`.
        filters: Integer, the channels of the first two convolutions, a quarter of the result's.
        stride: Integer, of the 3x3 convolution.
        prefix: String that the names of the layers begin with.
        output: String, the name of the last layer, a ReLU.
        shortcut: String, what is in the names of the layers that make `x` fit the result.

    Returns:
        A tensor `(batch, ceil(height / stride), ceil(width / stride), 4 * filters)`.
    """
    passing = fitted(builder, x, 4 * filters, stride, f"{prefix}_{shortcut}")
    x = builder.convolution(x, filters, 1, name=f"{prefix}_conv1")
    x = normalization(x, name=f"{prefix}_norm1")
    x = relu(x, name=f"{prefix}_relu1")
    x = builder.convolution(x, filters, 3, stride=stride, name=f"{prefix}_conv2")
    x = normalization(x, name=f"{prefix}_norm2")
    x = relu(x, name=f"{prefix}_relu2")
    x = builder.convolution(x, 4 * filters, 1, name=f"{prefix}_conv3")
    x = normalization(x, name=f"{prefix}_norm3")
    x = layers.Add(name=f"{prefix}_add")([x, passing])
    return relu(x, name=output)
