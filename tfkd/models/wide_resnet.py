"""Wide residual networks: pre-activation units, few and wide."""

from keras import layers

from tfkd.models.blocks import Builder, normalization, relu, stages

#: The ids of this family and what `build()` makes them of.
MODELS = {
    f"wrn_{depth}_{width}": {"depth": depth, "width": width}
    for depth in (16, 40)
    for width in (1, 2)
}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`.
TORCH_NAMES = {
    "stem": "conv1",
    "stage{stage}_unit{unit}_norm1": "block{stage}.layer.{unit_index}.bn1",
    "stage{stage}_unit{unit}_conv1": "block{stage}.layer.{unit_index}.conv1",
    "stage{stage}_unit{unit}_norm2": "block{stage}.layer.{unit_index}.bn2",
    "stage{stage}_unit{unit}_conv2": "block{stage}.layer.{unit_index}.conv2",
    "stage{stage}_unit{unit}_shortcut_conv": "block{stage}.layer.{unit_index}.convShortcut",
    "final_norm": "bn1",
    "logits": "fc",
}


def build(image, num_classes, seed, depth, width):
    """Adds a wide ResNet to a symbolic image; its taps are raw sums, before the next ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        depth: Integer `6 n + 4`, the layers with weights on the longest path.
        width: Integer, by which the channels of the three stages are multiplied.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [Wide Residual Networks](https://arxiv.org/abs/1605.07146), section 2, without
          dropout.
    """
    builder = Builder(seed)
    x = builder.convolution(image, 16, 3, name="stem")
    widths = (16 * width, 32 * width, 64 * width)
    x = stages(builder, x, _unit, widths, [(depth - 4) // 6] * 3)
    x = normalization(x, name="final_norm")
    x = relu(x, name="final_relu")
    return builder.classifier(x, num_classes, bias="zeros")


def _unit(builder, x, filters, stride, prefix, output):
    shortcut = x
    x = normalization(x, name=f"{prefix}_norm1")
    x = relu(x, name=f"{prefix}_relu1")
    # As published: the identity passes by the first ReLU, a projection starts after it.
    if shortcut.shape[-1] != filters:
        shortcut = builder.convolution(x, filters, 1, stride=stride, name=f"{prefix}_shortcut_conv")
    x = builder.convolution(x, filters, 3, stride=stride, name=f"{prefix}_conv1")
    x = normalization(x, name=f"{prefix}_norm2")
    x = relu(x, name=f"{prefix}_relu2")
    x = builder.convolution(x, filters, 3, name=f"{prefix}_conv2")
    return layers.Add(name=output)([x, shortcut])
