"""Arithmetic that losses share: norms, pooling and selection, finite in value and gradient."""

import math

import numpy as np
from keras import ops

from tfkd.errors import UsageError


def norm_or_one(vectors, axis=-1):
    """L2 norms, with 1 in place of 0.

    The square root has no finite gradient at 0; with 1 in its place a vector of zeros can be
    divided by its norm and gets a finite gradient.

    Args:
        vectors: Float32 tensor.
        axis: Integer or tuple, the axes along which a vector lies.

    Returns:
        A tensor of the same rank, of size 1 along `axis`.
    """
    squared = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return ops.sqrt(ops.where(squared > 0, squared, ops.ones_like(squared)))


def normalize(vectors, axis=-1, epsilon=1e-12):
    """Divides vectors by their L2 norm, as `torch.nn.functional.normalize`.

    Args:
        vectors: Float32 tensor.
        axis: Integer or tuple, the axes along which a vector lies.
        epsilon: Number, the least norm to divide by.

    Returns:
        A tensor of the same shape. Vectors of zeros stay zero.
    """
    return vectors / ops.maximum(norm_or_one(vectors, axis), epsilon)


def smooth_l1(difference):
    """Half the square up to 1 and linear beyond, elementwise (the Huber function, delta 1)."""
    # One clip instead of a choice between two branches: fewer large temporaries.
    clipped = ops.clip(difference, -1.0, 1.0)
    return clipped * (difference - 0.5 * clipped)


def flatten(features):
    """Returns `(batch, ...)` features as `(batch, everything else)`."""
    return ops.reshape(features, (ops.shape(features)[0], math.prod(features.shape[1:])))


def as_map(features):
    """Returns vectors `(batch, features)` and tokens `(batch, tokens, features)` as maps.

    Args:
        features: Tensor of rank 2, 3 or 4; a map stays as it is.

    Returns:
        A tensor `(batch, height, width, channels)`, with 1 in place of a missing size.
    """
    while len(features.shape) < 4:
        features = ops.expand_dims(features, -2)
    return features


def tokens_as_map(tokens):
    """Returns tokens of a square grid, row by row, as a map.

    Args:
        tokens: Tensor `(batch, tokens, features)`. Where the number of tokens is a square plus
            one, the first is the class token, which belongs to no place and is left out.

    Returns:
        A tensor `(batch, side, side, features)`; the tokens themselves where they are no square.
    """
    number, features = tokens.shape[1:]
    side = math.isqrt(number or 0)
    if number is None or number - side**2 > 1:
        return tokens
    return ops.reshape(tokens[:, number - side**2 :], (-1, side, side, features))


def positions_first(features):
    """Returns a map `(batch, height, width, channels)` as `(batch, positions, channels)`."""
    batch, (height, width, channels) = ops.shape(features)[0], features.shape[1:]
    return ops.reshape(features, (batch, height * width, channels))


def channel_products(left, right):
    """Inner products over the positions of all pairs of channels of two maps.

    Args:
        left: Float tensor `(batch, height, width, left channels)`.
        right: Float tensor `(batch, height, width, right channels)`.

    Returns:
        A tensor `(batch, left channels, right channels)`.
    """
    left = ops.transpose(positions_first(left), (0, 2, 1))
    return ops.matmul(left, positions_first(right))


def selection(sample_mask, features):
    """Returns which samples take part, as zeros and ones.

    Args:
        sample_mask: Tensor `(batch,)`, of which the non-zero entries select, or None for all.
        features: Tensor `(batch, ...)`.

    Returns:
        A float32 tensor `(batch,)`.
    """
    if sample_mask is None:
        return ops.ones((ops.shape(features)[0],), dtype="float32")
    return ops.cast(ops.cast(sample_mask, "float32") > 0, "float32")


def keep_selected(features, selected):
    """Puts zeros in place of the samples that do not take part.

    Args:
        features: Tensor `(batch, ...)`.
        selected: Float32 tensor `(batch,)` of zeros and ones.

    Returns:
        A tensor of the same shape.
    """
    selected = ops.reshape(selected, (-1,) + (1,) * (len(features.shape) - 1))
    # A choice, not a product, which would let an infinite feature through as a NaN.
    return ops.where(selected > 0, features, ops.zeros_like(features))


def scale_to_batch(total, selected, power):
    """Turns a sum over selected pairs (or triples) into the masked loss.

    Args:
        total: Scalar, the sum over all combinations of `power` selected samples.
        selected: Float32 tensor `(batch,)` of zeros and ones.
        power: Integer, how many samples each term combines.

    Returns:
        `total / n ** power * n / batch` with `n` selected samples; 0 where fewer than two are.
    """
    count = ops.sum(selected)
    mean = total / ops.maximum(count, 1.0) ** power
    return ops.where(count >= 2, mean * ops.mean(selected), ops.zeros_like(mean))


def correlation(left, right, counted=None):
    """Pearson correlation of vectors along the last axis.

    Args:
        left: Float32 tensor `(vectors, length)`.
        right: Float32 tensor `(vectors, length)`.
        counted: None, or a float32 tensor `(length,)` of zeros and ones: the entries that count.

    Returns:
        A tensor `(vectors,)`. Where a vector is constant up to rounding it is 0, and so is its
        gradient, which would otherwise be the rounding error divided by next to nothing.
    """
    counted = ops.ones_like(left[0]) if counted is None else counted
    left, right = _centre(left, counted), _centre(right, counted)
    norms = norm_or_one(left) * norm_or_one(right)
    return ops.sum(left * right, axis=-1) / (norms[:, 0] + 1e-8)


def _centre(vectors, counted):
    """Subtracts the mean of the counted entries, and puts zeros in place of the others."""
    mean = ops.sum(vectors * counted, axis=-1, keepdims=True) / ops.maximum(ops.sum(counted), 1.0)
    centred = (vectors - mean) * counted
    spread, size = (
        ops.sum(ops.square(values), axis=-1, keepdims=True)
        for values in (centred, vectors * counted)
    )
    return ops.where(spread > 1e-10 * size, centred, ops.zeros_like(centred))


def standardize(logits):
    """Logits of mean 0 and deviation 1 within each sample.

    `(z − mean_c z) / (std_c z + 1e-7)`, with the unbiased deviation. The softmax of the result, at
    a temperature, depends on neither the offset nor the scale of the logits.

    Args:
        logits: Float32 tensor `(batch, classes)` of at least two classes.

    Returns:
        A tensor of the same shape. Logits that are constant up to rounding become 0, without
        gradient, which would otherwise be as large as 1e7.
    """
    centred = _centre(logits, ops.ones_like(logits[0]))
    deviation = norm_or_one(centred) / math.sqrt(max(logits.shape[-1] - 1, 1))
    return centred / (deviation + 1e-7)


def match_sizes(student_map, teacher_map):
    """Average-pools the larger of two maps to the size of the smaller, along each axis.

    Args:
        student_map: Tensor `(batch, height, width, channels)`.
        teacher_map: Tensor `(batch, height, width, channels)`.

    Returns:
        Both maps, of equal height and width.
    """
    size = [min(pair) for pair in zip(student_map.shape[1:3], teacher_map.shape[1:3])]
    return adaptive_average_pool(student_map, size), adaptive_average_pool(teacher_map, size)


def adaptive_average_pool(features, size):
    """Averages a map down to a given size, as `torch.nn.functional.adaptive_avg_pool2d`.

    Output `i` of `n` averages the inputs from `⌊i · input / n⌋` to `⌈(i + 1) · input / n⌉`;
    neighbouring windows overlap where the sizes do not divide.

    Args:
        features: Float tensor `(batch, height, width, channels)`.
        size: Pair of integers, the height and width wanted.

    Returns:
        A tensor `(batch, *size, channels)`.
    """
    height, width = features.shape[1:3]
    if (height, width) == tuple(size):
        return features
    if height % size[0] == 0 and width % size[1] == 0:
        window = (height // size[0], width // size[1])
        return ops.average_pool(features, window, window, data_format="channels_last")
    rows = ops.cast(_pooling_matrix(height, size[0]), features.dtype)
    columns = ops.cast(_pooling_matrix(width, size[1]), features.dtype)
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def average_channels(features, channels):
    """Averages neighbouring channels down to a given number, as adaptive pooling averages rows.

    Args:
        features: Float tensor `(..., channels)`.
        channels: Integer, the number wanted.

    Returns:
        A tensor `(..., channels)`.
    """
    if features.shape[-1] == channels:
        return features
    matrix = ops.cast(_pooling_matrix(features.shape[-1], channels), features.dtype)
    return ops.matmul(features, ops.transpose(matrix))


def both_masks(first_mask, second_mask):
    """Returns the product of two masks `(batch,)`, of which either may be None."""
    if first_mask is second_mask or second_mask is None:
        return first_mask
    if first_mask is None:
        return second_mask
    return ops.cast(first_mask, "float32") * ops.cast(second_mask, "float32")


def _pooling_matrix(inputs, outputs):
    """Returns the weights `(outputs, inputs)` of adaptive pooling along one axis."""
    if outputs > inputs:
        raise UsageError(f"Cannot pool from {inputs} to {outputs} positions: that is more.")
    matrix = np.zeros((outputs, inputs), dtype="float32")
    for output in range(outputs):
        window = slice(output * inputs // outputs, -(-(output + 1) * inputs // outputs))
        matrix[output, window] = 1 / len(range(*window.indices(inputs)))
    return matrix
