"""The zoo: functional Keras models with named taps, equal to the published PyTorch networks.

Every model outputs logits. The layers `stem`, `stage1` … `stageN`, `pooled` and `logits` give
the taps that distillation losses read; `model.get_layer("stage1").output` is the tensor itself.
"""

import inspect
import numbers

import keras

from tfkd.errors import UsageError, unknown
from tfkd.models.elsewhere import (
    FORMS,
    default_arguments,
    import_definitions,
    is_elsewhere,
    load,
    make,
)
from tfkd.models.ensemble import ensemble, mean_prediction
from tfkd.models.families import FAMILIES
from tfkd.models.logits import logits_of
from tfkd.models.multiply_adds import multiply_adds
from tfkd.models.recorded import recorded
from tfkd.models.torch_checkpoint import load_torch_weights

#: The smallest image that leaves every network at least one pixel to pool.
_SMALLEST = 8


def available():
    """Returns the ids that `create()` knows, family by family, as a list of strings."""
    return [identifier for family in FAMILIES for identifier in family.MODELS]


def create(
    identifier,
    num_classes,
    input_shape=(32, 32, 3),
    name=None,
    seed=None,
    **family_arguments,
):
    """Makes a model of the zoo, with fresh weights.

    Args:
        identifier: String, one of `available()`, such as `"wrn_40_2"`.
        num_classes: Integer, at least 2.
        input_shape: `(height, width, channels)` of an image, at least 8 pixels high and wide.
        name: String, the model's name. Defaults to the id.
        seed: Integer that fixes the initial weights, whatever was drawn before. Defaults to
            None: the global Keras random state (`keras.utils.set_random_seed`) decides.
        **family_arguments: What one family alone understands: `width` of `mobilenet_v2`, the
            factor of its channels, 0.5 by default.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, channels)` to logits
        `(batch, num_classes)`, without a softmax. Its layers `stem`, `stage1` … `stageN`,
        `pooled` and `logits` are its taps.

    Raises:
        UsageError: If the id is unknown or an argument makes no sense.

    Example:
    ```python
    teacher = tfkd.models.create("wrn_40_2", num_classes=100)
    features = keras.Model(teacher.input, teacher.get_layer("stage3").output)
    ```

    References:
        - [Contrastive Representation Distillation](https://arxiv.org/abs/1910.10699), section 4,
          whose networks these are; for photographs of 224 pixels torchvision's, `resnet18_imagenet`
          to `resnet50_imagenet`, and `mobilenet_v1`. Each family's module names their own papers.
    """
    if identifier not in available():
        raise unknown("model", identifier, available())
    family = next(family for family in FAMILIES if identifier in family.MODELS)
    arguments = family.MODELS[identifier]
    _check_classes(num_classes)
    _check_shape(input_shape)
    _check_seed(seed)
    _check_family_arguments(identifier, family.build, arguments, family_arguments)
    image = keras.Input(tuple(int(size) for size in input_shape), name="image")
    logits = family.build(image, int(num_classes), seed, **arguments, **family_arguments)
    return keras.Model(image, logits, name=name or identifier)


def named(
    name,
    num_classes,
    input_shape=(32, 32, 3),
    seed=None,
    mean=(0.0,),
    std=(1 / 255,),
    **arguments,
):
    """Makes a model by the name that configs have for it: of the zoo, or of one's own.

    Args:
        name: String:

            - the id of a zoo model, see `create`;
            - `"path.keras"`, a saved model; it begins with the weights of its file;
            - `"module:function"`, a function that is called as
              `function(num_classes=..., input_shape=..., **arguments)` and returns the model; the
              module is imported where Python finds it;
            - `"keras_applications:MobileNetV3Small"`, or any other function of
              `keras.applications`, with average pooling and a new dense layer in place of the
              classifier of ImageNet;
            - `"keras_hub:PRESET"`, an image classifier of KerasHub (`pip install tfkd[hub]`) with
              a new last layer; the preset is a name of its own or a directory.
        num_classes: Integer, at least 2.
        input_shape: `(height, width, channels)` of an image.
        seed: Integer that fixes the initial weights. Defaults to None: the global Keras random
            state decides. For models that are not of the zoo it sets that state.
        mean: Tuple of numbers in [0, 1], one per channel: what was subtracted from the images, as
            `tfkd.data.Data.mean`. With the default and that of `std` they are pixels of 0 to 255.
        std: Tuple of numbers in [0, 1]: what they were divided by then. Models of
            `keras.applications` and KerasHub undo both, and normalise the pixels as their weights
            need it, in layers of the model. All others take the images as they come.
        **arguments: Of a zoo model, see `create`; of a function, its own; `weights` of
            `keras.applications`, None by default (fresh weights), `"imagenet"` (a download) or the
            path of a file; `load_weights` of KerasHub, True by default.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)` to logits
        `(batch, num_classes)`.

    Raises:
        UsageError: If the name names nothing, a module or package is missing, a download fails, or
            the model is for other images or classes.

    Example:
    ```python
    student = tfkd.models.named(
        "keras_applications:MobileNetV3Small",
        data.num_classes,
        data.input_shape,
        mean=data.mean,
        std=data.std,
    )
    ```
    """
    if is_elsewhere(name):
        return make(name, num_classes, input_shape, seed, mean, std, arguments)
    if name not in available():
        raise unknown("model", name, [*available(), *FORMS])
    return create(name, num_classes, input_shape, seed=seed, **arguments)


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_classes(num_classes):
    if not _is_integer(num_classes) or num_classes < 2:
        raise UsageError(f"num_classes must be an integer of at least 2; received {num_classes!r}.")


def _check_shape(input_shape):
    if (
        not isinstance(input_shape, (tuple, list))
        or len(input_shape) != 3
        or not all(_is_integer(size) and size > 0 for size in input_shape)
    ):
        raise UsageError(
            "input_shape must be (height, width, channels), three positive integers such as "
            f"(32, 32, 3); received {input_shape!r}."
        )
    height, width, _ = input_shape
    if min(height, width) < _SMALLEST:
        raise UsageError(
            f"input_shape={tuple(input_shape)}: images of {height}x{width} pixels are too small "
            f"for these networks; they must be at least {_SMALLEST}x{_SMALLEST}."
        )


def _check_seed(seed):
    if seed is not None and not _is_integer(seed):
        raise UsageError(f"seed must be an integer or None; received {seed!r}.")


def _check_family_arguments(identifier, build, fixed, given):
    # The first three parameters of every builder are the image, num_classes and the seed.
    possible = [name for name in list(inspect.signature(build).parameters)[3:] if name not in fixed]
    for name in given:
        if name not in possible:
            raise UsageError(
                f"Model {identifier!r} has no argument {name!r}; its own arguments: "
                f"{', '.join(possible) or 'none'}."
            )


__all__ = [
    "available",
    "create",
    "default_arguments",
    "ensemble",
    "import_definitions",
    "load",
    "load_torch_weights",
    "logits_of",
    "mean_prediction",
    "multiply_adds",
    "named",
    "recorded",
]
