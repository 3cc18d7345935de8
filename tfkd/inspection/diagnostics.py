"""Measurements of a student during training: pure functions, and their picture.

Logits are float32 arrays `(images, classes)`; divergences and entropies are in nats.
"""

import numpy as np
from keras import ops
from scipy.special import log_softmax, softmax

from tfkd import plots


def agreement(teacher, student, top=1):
    """Returns the share of images whose class by the teacher is among the student's first ones.

    Args:
        teacher: Array of logits.
        student: Array of logits.
        top: Integer, how many of the student's classes count.

    Returns:
        A number in [0, 1]. With `top=1` it is the top-1 agreement of
        [Stanton et al., 2021](https://arxiv.org/abs/2106.05945).
    """
    # Stable, so that of equal ones the first counts, as by argmax.
    order = np.argsort(-student, axis=-1, kind="stable")[:, :top]
    return float(np.mean(np.any(order == teacher.argmax(-1)[:, None], axis=-1)))


def divergence(teacher, student):
    """Returns the mean of `KL(softmax(teacher) ‖ softmax(student))` over the images, in nats.

    Args:
        teacher: Array of logits.
        student: Array of logits.
    """
    logs = log_softmax(teacher, axis=-1)
    return float(np.mean(np.sum(np.exp(logs) * (logs - log_softmax(student, axis=-1)), axis=-1)))


def entropy(logits):
    """Returns the mean entropy of the predictions, in nats: 0 to the logarithm of the classes.

    Args:
        logits: Array of logits.
    """
    logs = log_softmax(logits, axis=-1)
    return float(-np.mean(np.sum(np.exp(logs) * logs, axis=-1)))


def calibration_error(logits, labels, bins=15):
    """Returns the expected calibration error.

    Images are binned by the probability of their predicted class; in each bin its mean is
    compared with the share of images that are right, and the distances are averaged by the number
    of images.

    Args:
        logits: Array of logits.
        labels: Integer array `(images,)`.
        bins: Integer, the number of bins of equal width; `(lower, upper]`, as in the reference.

    Returns:
        A number in [0, 1].

    References:
        - [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599),
          Guo et al., 2017.
    """
    confidence = softmax(np.asarray(logits, "float64"), axis=-1).max(-1)
    gap = (logits.argmax(-1) == labels) - confidence
    # Of each bin the number of images times the distance of its means.
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(number, gap, bins)).sum() / len(labels))


def similarities(features):
    """Returns the similarities of images by some features, for `centered_alignment`.

    Args:
        features: Tensor `(images, ...)`. Maps count with all their positions.

    Returns:
        A float32 tensor `(images, images)`: inner products of the features less their mean.
    """
    features = ops.cast(features, "float32")
    features = ops.reshape(features, (ops.shape(features)[0], -1))
    # The mean has no part in the result; products of large numbers would lose its digits.
    features = features - ops.mean(features, axis=0)
    return ops.matmul(features, ops.transpose(features))


def centered_alignment(batches, others):
    """Returns linear CKA of two layers, from the similarities of the same images in both.

    It is the estimate that does not depend on the size of batches and is, unlike the plain one,
    not near 1 for unrelated features of more dimensions than images: unbiased estimates of HSIC
    are averaged over the batches.

    Args:
        batches: List of arrays `(images, images)`, of one layer as `similarities` makes them, of
            at least 4 images each.
        others: List of arrays of the same shapes, of the other layer.

    Returns:
        A number up to 1, which is reached where one layer's features are the other's but for
        rotation, scale and an offset; about 0 (and by chance below) for unrelated ones. 0 where
        one of the layers does not tell images apart.

    References:
        - [Similarity of Neural Network Representations Revisited](
          https://arxiv.org/abs/1905.00414), Kornblith et al., 2019.
        - [Do Wide and Deep Networks Learn the Same Things?](https://arxiv.org/abs/2010.15327),
          Nguyen et al., 2021: the estimate over batches.
    """
    one, other = ([_u_centered(matrix) for matrix in part] for part in (batches, others))

    def independence(left, right):
        products = [np.sum(a * b) / (len(a) * (len(a) - 3)) for a, b in zip(left, right)]
        return np.mean(products)

    scale = np.sqrt(independence(one, one) * independence(other, other))
    return float(independence(one, other) / scale) if scale > 0 else 0.0


def _u_centered(matrix):
    """Centres similarities so that their products estimate HSIC without bias."""
    matrix = np.array(matrix, "float64")
    images = len(matrix)
    np.fill_diagonal(matrix, 0.0)
    rows = matrix.sum(axis=1) / (images - 2)
    matrix += rows.sum() / (images - 1) - rows[:, None] - rows[None, :]
    np.fill_diagonal(matrix, 0.0)
    return matrix


def shares_and_cosines(products, weights, reference=0):
    """Returns the contributions of the parts of a loss to its gradient.

    Args:
        products: Array `(parts, parts)` of the inner products of their gradients, unweighted.
        weights: Array `(parts,)`.
        reference: Integer, the part with whose gradient the others are compared; None for none.

    Returns:
        The tuple `(norm, shares, cosines)`: the norm of the gradient of the weighted sum; of each
        part the norm of its weighted gradient over the sum of these norms; and its cosine to the
        gradient of the reference. What would be 0 / 0 is 0.
    """
    products, weights = np.asarray(products, "float64"), np.asarray(weights, "float64")
    norms = np.sqrt(np.diag(products))
    weighted = np.abs(weights) * norms
    shares = weighted / (weighted.sum() or 1.0)
    total = float(np.sqrt(max(weights @ products @ weights, 0.0)))
    if reference is None:
        return total, shares, np.zeros_like(shares)
    scale = norms * norms[reference]
    cosines = np.sign(weights) * products[reference] / np.where(scale > 0, scale, 1.0)
    return total, shares, np.clip(cosines, -1.0, 1.0)


def picture(path, history):
    """Draws the logs of `tfkd.callbacks.Diagnostics`.

    Args:
        path: Where to write the PNG.
        history: List of the logs of each epoch, `{name: value}`.
    """
    names = list(dict.fromkeys(name for epoch in history for name in epoch))

    def family(prefix):
        return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}

    calibration = "expected calibration error"
    contents = {
        "agreement": {
            "student and teacher": "agreement_top1",
            "teacher's class in student's top 5": "agreement_top5",
            "student and peers": "peer_agreement",
        },
        "nats": {
            "KL from teacher to student": "teacher_kl",
            "entropy of the student": "entropy",
            "entropy of the teacher": "teacher_entropy",
        },
        calibration: {"student": "calibration_error", "teacher": "teacher_calibration_error"},
        "share of the gradient norm": family("gradient_share/"),
        "cosine to the gradient of student_loss": family("gradient_cosine/"),
        "CKA of student and teacher": family("cka/"),
    }
    plots.panels(path, history, contents, free=("nats", calibration), columns=3)
