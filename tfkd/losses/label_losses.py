"""Finds the kind of outputs that a loss on the labels expects."""

import keras

CATEGORICAL, BINARY, REGRESSION = "categorical", "binary", "regression"

_KINDS = {
    CATEGORICAL: (
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.categorical_crossentropy,
        keras.losses.categorical_focal_crossentropy,
        keras.losses.categorical_hinge,
    ),
    BINARY: (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    ),
    REGRESSION: (
        keras.losses.mean_squared_error,
        keras.losses.mean_absolute_error,
        keras.losses.mean_absolute_percentage_error,
        keras.losses.mean_squared_logarithmic_error,
        keras.losses.huber,
        keras.losses.log_cosh,
        keras.losses.cosine_similarity,
        keras.losses.poisson,
    ),
}


def kind_of(label_loss):
    """Returns what kind of outputs a loss on the labels is for.

    Args:
        label_loss: A `keras.losses.Loss`.

    Returns:
        `"categorical"`: logits of which one class is right. `"binary"`: logits each of which is a
        yes or no of its own. `"regression"`: no logits. None where it is the user's own loss, of
        which nothing is known.
    """
    function = getattr(label_loss, "fn", None)
    for kind, functions in _KINDS.items():
        if any(function is known for known in functions):
            return kind
    return None


def title_of(label_loss):
    """Returns the name of a loss on the labels in messages: its class or wrapped function."""
    title = type(label_loss).__name__
    return label_loss.name if title.startswith("_") else title
