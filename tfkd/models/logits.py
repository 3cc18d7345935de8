"""Cuts the final softmax or sigmoid off a model, so that it outputs logits."""

import re

import keras

from tfkd import taps
from tfkd.errors import UsageError

_KINDS = {"softmax": "a softmax", "sigmoid": "a sigmoid", "log_softmax": "a log-softmax"}


def activation_of(operation):
    """Names the activation by which an operation returns probabilities; None where it has none.

    Args:
        operation: A layer, or another operation of Keras.

    Returns:
        `"a softmax"`, `"a sigmoid"`, `"a log-softmax"` or None.
    """
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(operation).__name__).lower()
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    return _KINDS.get(kind) or _KINDS.get(activation)


def logits_of(model):
    """Makes a model that ends before the softmax or sigmoid with which another one ends.

    Args:
        model: A functional or sequential `keras.Model` whose last layer is an activation
            (`Softmax`, `Activation`) or has one (`Dense`), or is itself such a model: those of
            `keras.applications` with `include_top=True`, for example. It is not changed.

    Returns:
        A functional `keras.Model` from the same inputs to the logits. All layers are those of
        `model`, with their weights, but for a last layer that has its activation inside: in its
        place is a new one without activation and with a copy of its weights, so that further
        training of the one is not that of the other. It can be saved and loaded without tfkd.

    Raises:
        UsageError: If the model is subclassed, or does not end with a softmax or sigmoid.

    Example:
    ```python
    classifier = keras.applications.MobileNetV2(weights=None, classes=10, input_shape=(32, 32, 3))
    teacher = tfkd.models.logits_of(classifier)
    ```
    """
    if not isinstance(model, keras.Model):
        raise UsageError(f"logits_of needs a keras.Model; received {type(model).__name__}.")
    if taps.output(model) is None:
        raise UsageError(
            f"Model {model.name!r} is subclassed, so what it computes before its end is out of "
            "reach: let its call() return the logits."
        )
    inputs, last, tensors = taps.last_operation(model)
    if isinstance(last, keras.Model):
        logits = logits_of(last)(*tensors)
    elif activation_of(last) is None:
        raise UsageError(
            f"Model {model.name!r} ends with {last.name!r} ({type(last).__name__}), which is no "
            "softmax or sigmoid and has none: if its outputs are logits, take it as it is."
        )
    elif getattr(last, "weights", None):
        logits = _without_activation(last, tensors)
    else:
        (logits,) = tensors
    return keras.Model(inputs, logits, name=f"{model.name}_logits")


def _without_activation(layer, tensors):
    """Runs a copy of a layer that has no activation, with the same values in its weights."""
    copy = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    outputs = copy(*tensors)
    copy.set_weights(layer.get_weights())
    return outputs
