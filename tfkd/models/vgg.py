"""VGG networks for small images, with batch normalisation and one dense layer."""

from keras import layers

from tfkd.models.blocks import Builder, normalization, relu

#: The ids of this family and what `build()` makes them of.
MODELS = {
    "vgg8": {"convolutions": (1, 1, 1, 1, 1)},
    "vgg11": {"convolutions": (1, 1, 2, 2, 2)},
    "vgg13": {"convolutions": (2, 2, 2, 2, 2)},
    "vgg16": {"convolutions": (2, 2, 3, 3, 3)},
    "vgg19": {"convolutions": (2, 2, 4, 4, 4)},
}

#: Our layers and the PyTorch modules that they equal; see `torch_checkpoint`. A PyTorch block
#: counts its convolutions, normalisations and ReLUs as one sequence.
TORCH_NAMES = {
    f"{ours}_{kind}{unit}": f"{theirs}.{3 * (unit - 1) + offset}"
    for ours, theirs in (("stem", "block0"), ("stage{stage}", "block{stage}"))
    for unit in (1, 2, 3, 4)
    for kind, offset in (("conv", 0), ("norm", 1))
} | {"logits": "classifier"}


def build(image, num_classes, seed, convolutions):
    """Adds a VGG network to a symbolic image; its taps follow a ReLU and precede the pooling.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        convolutions: Five integers, the convolutions of the stem and of the four stages.

    Returns:
        The logits `(batch, num_classes)`.

    References:
        - [Very Deep Convolutional Networks for Large-Scale Image
          Recognition](https://arxiv.org/abs/1409.1556), table 1, without its first two dense
          layers, as in the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """
    builder = Builder(seed)
    x = _block(builder, image, 64, convolutions[0], "stem")
    for stage, filters in enumerate((128, 256, 512, 512), start=1):
        # The published networks pool before the last block for 64x64 images only.
        if stage < 4 or min(x.shape[1:3]) >= 8:
            x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        x = _block(builder, x, filters, convolutions[stage], f"stage{stage}")
    return builder.classifier(x, num_classes, kernel="normal", bias="zeros")


def _block(builder, x, filters, convolutions, name):
    for unit in range(1, convolutions + 1):
        x = builder.convolution(x, filters, 3, use_bias=True, name=f"{name}_conv{unit}")
        x = normalization(x, name=f"{name}_norm{unit}")
        x = relu(x, name=name if unit == convolutions else f"{name}_relu{unit}")
    return x
