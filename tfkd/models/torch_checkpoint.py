"""Weights of the published PyTorch networks, read into the zoo's models."""

import argparse
import collections.abc
import math
import os
import pickle
import re

import keras
import numpy as np

from tfkd.errors import UsageError
from tfkd.models import families

#: Where training scripts put the state dict in what they save.
_WRAPPERS = ("model", "state_dict")


def load_torch_weights(model, source):
    """Copies the weights of a published PyTorch network into a model of the zoo.

    The names are those of the CRD benchmark (RepDistiller), whose networks the zoo equals; of the
    networks for ImageNet those of torchvision, and of the usual PyTorch code of MobileNetV1.
    Kernels are transposed to Keras' layout. Either everything fits or nothing is changed.

    Args:
        model: A `keras.Model` from `tfkd.models.create()`, or such a model saved and loaded,
            with images `(batch, height, width, channels)`.
        source: A state dict, `{name: array}`, of NumPy arrays or PyTorch tensors; or the path of
            a `.pth`, `.pt` or `.safetensors` file with one. What training scripts put around
            it is understood: a dict with `"model"` or `"state_dict"`, names that start with
            `module.`, `num_batches_tracked`. Files need `pip install tfkd[torch]`; PyTorch files
            are read as plain data, and no code in them is run.

    Returns:
        The model, changed in place.

    Raises:
        UsageError: If the model is not of the zoo, if the file cannot be read, or if names or
            shapes differ, with the list of all differences.

    Example:
    ```python
    teacher = tfkd.models.create("wrn_40_2", num_classes=100)
    tfkd.models.load_torch_weights(teacher, "wrn_40_2_vanilla/ckpt_epoch_240.pth")
    ```

    References:
        - [Contrastive Representation Distillation](https://arxiv.org/abs/1910.10699), section 4,
          whose trained teachers are public.
    """
    wanted = _wanted(model)
    given = _state_dict(source)
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    wrong, values = [], {}
    for name in [name for name in wanted if name in given]:
        axes, variable = wanted[name]
        expected = _torch_shape(axes, variable.shape)
        array = _array(given[name])
        if array is None:
            wrong.append(f"{name} is not an array of numbers")
        elif array.shape != expected:
            wrong.append(f"{name} is {array.shape} instead of {expected}")
        else:
            values[name] = _keras_array(axes, array, variable.shape)
    differences = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("wrong", wrong))
        if names
    ]
    if differences:
        raise UsageError(
            f"The PyTorch weights do not fit model {model.name!r}: {'; '.join(differences)}."
        )
    for name, value in values.items():
        wanted[name][1].assign(value)
    return model


def torch_names(model):
    """Names the PyTorch modules that a zoo model's layers equal.

    A model is recognised by the names of its layers, which survive saving and renaming.

    Args:
        model: A `keras.Model`, whatever its input and output shapes.

    Returns:
        `{layer name: module name}` of the layers that have weights; None if the model is not of
        the zoo.
    """
    with_weights = [layer for layer in model.layers if layer.weights]
    if not with_weights or not all(type(layer) in _VARIABLES for layer in with_weights):
        return None
    for family in families.FAMILIES:
        modules = {
            layer.name: _module_name(family.TORCH_NAMES, layer.name) for layer in with_weights
        }
        if None not in modules.values():
            return modules
    return None


def _module_name(rules, layer_name):
    """Applies the first rule that fits; `{unit}` counts from 1, `{unit_index}` from 0."""
    for pattern, module in rules.items():
        match = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>\\d+)", pattern), layer_name)
        if match:
            numbers = {key: int(text) for key, text in match.groupdict().items()}
            indices = {f"{key}_index": number - 1 for key, number in numbers.items()}
            return module.format(**numbers, **indices)
    return None


#: For each type of layer: our variable, PyTorch's name of it, and the axes there and here.
_VARIABLES = {
    keras.layers.Conv2D: [("kernel", "weight", "o i h w -> hwio"), ("bias", "bias", "o -> o")],
    keras.layers.DepthwiseConv2D: [("kernel", "weight", "im 1 h w -> hwim")],
    # A convolution of 1x1 in groups.
    keras.layers.EinsumDense: [("kernel", "weight", "go i 1 1 -> gio")],
    keras.layers.Dense: [("kernel", "weight", "o i -> io"), ("bias", "bias", "o -> o")],
    keras.layers.BatchNormalization: [
        ("gamma", "weight", "o -> o"),
        ("beta", "bias", "o -> o"),
        ("moving_mean", "running_mean", "o -> o"),
        ("moving_variance", "running_var", "o -> o"),
    ],
}


def _torch_shape(axes, shape):
    """Returns PyTorch's shape of a variable of ours; `"go"` is one axis for two of ours."""
    there, here = axes.split(" -> ")
    sizes = {"1": 1, **dict(zip(here, shape))}
    return tuple(math.prod(sizes[name] for name in axis) for axis in there.split())


def _keras_array(axes, array, shape):
    """Returns PyTorch's array in our layout."""
    there, here = axes.split(" -> ")
    sizes = dict(zip(here, shape))
    names = "".join(name for name in there if name in sizes)
    return np.einsum(f"{names}->{here}", array.reshape([sizes[name] for name in names]))


def _wanted(model):
    """Returns `{PyTorch name: (axes, variable)}` of everything that the model needs."""
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"model must be a keras.Model from tfkd.models.create(); received {model!r}."
        )
    modules = torch_names(model)
    if modules is None:
        raise UsageError(
            f"Model {model.name!r} is none of tfkd.models that equals a published PyTorch network, "
            "as all but its transformers and ConvNeXts do: make it with tfkd.models.create()."
        )
    wanted = {}
    for layer_name, module in modules.items():
        layer = model.get_layer(layer_name)
        for attribute, suffix, axes in _VARIABLES[type(layer)]:
            variable = getattr(layer, attribute)
            if variable is not None:
                wanted[f"{module}.{suffix}"] = (axes, variable)
    return wanted


def _state_dict(source):
    """Returns `{name: array}` without what training scripts put around it."""
    content = source if isinstance(source, collections.abc.Mapping) else _read(source)
    for wrapper in _WRAPPERS:
        if isinstance(content, collections.abc.Mapping) and isinstance(
            content.get(wrapper), collections.abc.Mapping
        ):
            content = content[wrapper]
    if not isinstance(content, collections.abc.Mapping):
        raise UsageError(
            f"{source!r} holds a {type(content).__name__}, not a state dict: save "
            "model.state_dict() rather than the model."
        )
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if not str(name).endswith("num_batches_tracked")
    }


def _array(value):
    """Returns a float32 NumPy array; None if the value is not made of numbers."""
    if hasattr(value, "detach"):
        # NumPy has no bfloat16, so PyTorch must convert.
        value = value.detach().cpu().float().numpy()
    try:
        return np.asarray(value, dtype="float32")
    except (TypeError, ValueError):
        return None


def _read(path):
    try:
        path = os.fsdecode(path)
    except TypeError:
        raise UsageError(
            "source must be a state dict (a mapping of names to arrays) or the path of a file; "
            f"received {type(path).__name__}."
        ) from None
    extension = os.path.splitext(path)[1]
    if extension not in _READERS:
        raise UsageError(f"{path!r} must end in one of {', '.join(_READERS)}.")
    if not os.path.isfile(path):
        raise UsageError(f"There is no file {path!r}.")
    try:
        return _READERS[extension](path)
    except ImportError as error:
        raise UsageError(
            f"Reading {path!r} needs a package that is not installed ({error}): "
            "pip install tfkd[torch]."
        ) from error
    except Exception as error:  # Damaged files fail in many ways, each library in its own.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path!r} cannot be read as a state dict, it may be damaged: {reason}"
        ) from error


#: In earlier releases a file can run code in spite of `weights_only`: CVE-2025-32434 (to 2.5) and
#: CVE-2026-24747 (to 2.9).
SAFE_TORCH = (2, 10)


def _read_torch(path):
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise ImportError(
            f"PyTorch {'.'.join(map(str, SAFE_TORCH))} or later; a file can make "
            f"{torch.__version__} run code"
        )
    # `weights_only` admits plain data alone. The CRD benchmark's training script saves its
    # command line next to the weights, as an `argparse.Namespace`, which is plain data too.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            # PyTorch's own message advises to load the file without this protection.
            raise ValueError("it holds something other than tensors and plain values") from error


def _read_safetensors(path):
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


_READERS = {".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors}
