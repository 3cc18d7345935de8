"""Vision transformers: patches of the image are tokens that attend to each other."""

from keras import layers

from tfkd.errors import UsageError, check_positive_integer
from tfkd.models.blocks import Builder, layer_normalization, unit_names

#: The ids of this family and what `build()` makes them of. `vit_tiny` has the published size,
#: `vit_mini` is ours: a small one for tests and studies.
MODELS = {
    "vit_mini": {"width": 64, "heads": 2, "units": (2, 2, 2)},
    "vit_tiny": {"width": 192, "heads": 3, "units": (4, 4, 4)},
}

#: No PyTorch checkpoint is read: there the projections of an attention are one matrix.
TORCH_NAMES = {}


def build(image, num_classes, seed, width, heads, units, patch_size=4, class_token=True):
    """Adds a vision transformer to a symbolic image; its taps are tokens `(batch, tokens, width)`.

    A unit is an attention and two dense layers, both residual and behind a layer normalisation.
    The units of the published networks are in no stages; here they are in three equal parts, so
    that their ends pair with the three stages of most networks.

    Args:
        image: Tensor `(batch, height, width, channels)`.
        num_classes: Integer.
        seed: Integer or None.
        width: Integer, the features of a token.
        heads: Integer, which divides `width`.
        units: Integers, the units of each stage.
        patch_size: Integer, the side of a patch in pixels. Defaults to 4, which makes 64 tokens
            of 32x32 pixels; published for 224x224 are 16. Sides that are no multiples of it are
            filled up with zeros.
        class_token: Boolean, whether the logits are those of a token of its own, the first of
            all, as published, or of the mean over all tokens. Losses that need a map before
            pooling need that mean.

    Returns:
        The logits `(batch, num_classes)`.

    Raises:
        UsageError: If `patch_size` is no positive integer, or `class_token` no boolean.

    `vit_tiny` at a patch size of 16 is ViT-Ti (DeiT-Ti) but for 384 parameters that change
    nothing: the bias of the patches and that of the class token are in the positions. Dropout and
    stochastic depth, which belong to its training, are left out. Positions start as `N(0, 0.5)`,
    published are `N(0, 0.02)`: with these, one run of 225 steps on 500 digits knows 34 or 37 % of
    the test images, at two learning rates, with those 80 %, at one between.

    References:
        - [An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), section 3.1.
        - [Training data-efficient image transformers](https://arxiv.org/abs/2012.12877), table 1,
          for the size of `vit_tiny`.
    """
    check_positive_integer("patch_size", patch_size)
    if not isinstance(class_token, bool):
        raise UsageError(f"class_token must be True or False; received {class_token!r}.")
    builder = Builder(seed, kernels="glorot")
    x = builder.embedding(image, width, patch_size, class_token, name="stem")
    for stage, number in enumerate(units, start=1):
        for prefix, output in unit_names(stage, number):
            x = _unit(builder, x, heads, prefix, output)
    x = layer_normalization(x, name="final_norm")
    if class_token:
        x = layers.Cropping1D((0, x.shape[1] - 1), name="class_token")(x)
        x = layers.Flatten(name="pooled")(x)
    return builder.classifier(x, num_classes, bias="zeros")


def _unit(builder, x, heads, prefix, output):
    shortcut, width = x, x.shape[-1]
    x = layer_normalization(x, name=f"{prefix}_norm1")
    x = builder.attention(x, heads, name=f"{prefix}_attention")
    shortcut = layers.Add(name=f"{prefix}_add")([x, shortcut])
    x = layer_normalization(shortcut, name=f"{prefix}_norm2")
    x = builder.dense(x, 4 * width, name=f"{prefix}_expand", activation="gelu")
    x = builder.dense(x, width, name=f"{prefix}_project")
    return layers.Add(name=output)([x, shortcut])
