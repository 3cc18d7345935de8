"""ConvNeXt-like networks: depthwise convolutions in the blocks of a transformer."""

from keras import layers

from tfkd.errors import check_positive_integer
from tfkd.models.blocks import Builder, layer_normalization, unit_names

#: The ids of this family and what `build()` makes them of: ours, small, for tests and studies.
MODELS = {"convnext_mini": {"widths": (32, 64, 128), "units": (2, 2, 2)}}

#: No PyTorch checkpoint is read: none of this size is published.
TORCH_NAMES = {}


def build(image, num_classes, seed, widths, units, patch_size=2):
    """Adds a ConvNeXt-like network to a symbolic image; the taps of its stages follow no ReLU.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        widths: Integers, the channels of each stage.
        units: Integers, the units of each stage.
        patch_size: Integer, the side of a patch of the stem in pixels. Defaults to 2; published
            for 224x224 are 4. Sides that are no multiples are filled up with zeros.

    Returns:
        The logits `(batch, num_classes)`.

    Raises:
        UsageError: If `patch_size` is no positive integer.

    Unlike the published networks: three stages, no layer scale and no stochastic depth, and the
    last normalisation before the pooling, so that the logits are those of a mean of the last map.

    References:
        - [A ConvNet for the 2020s](https://arxiv.org/abs/2201.03545), section 2.
    """
    check_positive_integer("patch_size", patch_size)
    builder = Builder(seed, kernels="glorot")
    x = builder.patches(image, widths[0], patch_size, name="stem_conv")
    x = layer_normalization(x, name="stem")
    for stage, (width, number) in enumerate(zip(widths, units), start=1):
        if stage > 1:
            x = layer_normalization(x, name=f"stage{stage}_norm")
            x = builder.patches(x, width, 2, name=f"stage{stage}_conv")
        for prefix, output in unit_names(stage, number):
            x = _unit(builder, x, prefix, output)
    x = layer_normalization(x, name="final_norm")
    return builder.classifier(x, num_classes, bias="zeros")


def _unit(builder, x, prefix, output):
    shortcut, width = x, x.shape[-1]
    x = builder.depthwise_convolution(x, f"{prefix}_depthwise_conv", size=7, use_bias=True)
    x = layer_normalization(x, name=f"{prefix}_norm")
    x = builder.dense(x, 4 * width, name=f"{prefix}_expand", activation="gelu")
    x = builder.dense(x, width, name=f"{prefix}_project")
    return layers.Add(name=output)([x, shortcut])
