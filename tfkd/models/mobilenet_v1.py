"""MobileNetV1 for photographs: depthwise and pointwise convolutions in turn."""

from tfkd.models.blocks import Builder, normalization, relu, stages, unit_names

#: The ids of this family and what `build()` makes them of.
MODELS = {"mobilenet_v1": {}}

#: The units of each stage; the first one of a stage halves the map and doubles the channels.
_UNITS = (2, 2, 6, 2)

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`. There all units
#: stand in one list: 0 is the stem's convolution, 1 its unit, and the first stage begins at 2.
TORCH_NAMES = {
    "stem_conv": "model.0.0",
    "stem_norm": "model.0.1",
    **{
        f"{unit}_{layer}": f"model.{position}.{place}"
        for position, unit in enumerate(
            [
                "stem_unit1",
                *(
                    prefix
                    for stage, units in enumerate(_UNITS, start=1)
                    for prefix, _ in unit_names(stage, units)
                ),
            ],
            start=1,
        )
        for place, layer in (
            (0, "depthwise_conv"),
            (1, "depthwise_norm"),
            (3, "pointwise_conv"),
            (4, "pointwise_norm"),
        )
    },
    "logits": "fc",
}


def build(image, num_classes, seed):
    """Adds MobileNetV1 to a symbolic image; its taps follow a ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`, published for 224 pixels.
        num_classes: Integer.
        seed: Integer or None.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
          Applications](https://arxiv.org/abs/1704.04861), table 1, with the stages that the code
          of [Decoupled Knowledge Distillation](https://arxiv.org/abs/2203.08679) distils at.
    """
    # The published code leaves PyTorch's defaults.
    builder = Builder(seed, kernels="uniform")
    x = builder.convolution(image, 32, 3, stride=2, name="stem_conv")
    x = normalization(x, name="stem_norm")
    x = relu(x, name="stem_relu")
    x = _unit(builder, x, 64, 1, "stem_unit1", "stem")
    x = stages(builder, x, _unit, (128, 256, 512, 1024), _UNITS, first_stride=2)
    return builder.classifier(x, num_classes)


def _unit(builder, x, filters, stride, prefix, output):
    x = builder.depthwise_convolution(x, stride=stride, name=f"{prefix}_depthwise_conv")
    x = normalization(x, name=f"{prefix}_depthwise_norm")
    x = relu(x, name=f"{prefix}_depthwise_relu")
    x = builder.convolution(x, filters, 1, name=f"{prefix}_pointwise_conv")
    x = normalization(x, name=f"{prefix}_pointwise_norm")
    return relu(x, name=output)
