"""Counts the multiply-adds of a model for one image."""

import math

import keras
from keras import layers

from tfkd.errors import UsageError

#: Layers whose kernels are applied at every position of their output, or of their input.
_AT_OUTPUT = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Dense,
)
_AT_INPUT = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def multiply_adds(model):
    """Counts the multiply-adds of convolutions, dense layers and attention for one image.

    One multiplication with one addition counts as one. Normalisation, activations, pooling and
    biases are left out, as is usual. Every layer counts once, however often it is called; what
    a custom layer holds inside is not seen.

    Args:
        model: A functional or sequential `keras.Model` of channels-last maps of known sizes.
            Models nested in it are counted too.

    Returns:
        Integer, the multiply-adds of a batch of one image.

    Raises:
        UsageError: If a layer's maps have unknown sizes, as in a subclassed model.

    Example:
    ```python
    student = tfkd.models.create("resnet20", num_classes=100)
    tfkd.models.multiply_adds(student)  # 40818944
    ```
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += multiply_adds(layer)
        elif isinstance(layer, _AT_OUTPUT):
            total += _kernel_size(layer) * math.prod(_shape(model, layer, "output")[1:-1])
        elif isinstance(layer, _AT_INPUT):
            total += _kernel_size(layer) * math.prod(_shape(model, layer, "input")[1:-1])
        elif isinstance(layer, layers.EinsumDense):
            total += _kernel_size(layer) * _einsum_positions(model, layer)
        elif isinstance(layer, layers.MultiHeadAttention):
            total += _attention(layer)
    return total


def _attention(layer):
    """Counts the projections of an attention, and the products of queries, keys and values."""
    query, value, *others = (tensor.shape for tensor in keras.tree.flatten(layer.input))
    key = others[0] if others else value
    total = sum(
        _kernel_size(dense) * math.prod(shape[1:-1])
        for dense, shape in (
            (layer.query_dense, query),
            (layer.key_dense, key),
            (layer.value_dense, value),
            (layer.output_dense, query),
        )
    )
    attended = math.prod(key[axis] for axis in layer.attention_axes)
    sizes = layer.key_dim + layer.value_dim
    return total + layer.num_heads * sizes * math.prod(query[1:-1]) * attended


def _kernel_size(layer):
    """Counts the elements of all kernels; a separable convolution has two."""
    return sum(
        math.prod(weight.shape) for weight in layer.weights if weight.name.endswith("kernel")
    )


def _einsum_positions(model, layer):
    """Counts the outputs of one image that share each element of the kernel."""
    operands, output = layer.equation.split("->")
    axes = zip(operands.split(",")[1], layer.kernel.shape)
    in_kernel = math.prod(size for axis, size in axes if axis in output)
    return math.prod(_shape(model, layer, "output")[1:]) // in_kernel


def _shape(model, layer, side):
    try:
        shape = getattr(layer, side).shape
    except AttributeError:
        shape = (None, None)
    if None in shape[1:]:
        raise UsageError(
            f"Layer {layer.name!r} of model {model.name!r} has no known {side} shape: "
            "multiply_adds() needs a functional or sequential model of fixed image size."
        )
    return shape
