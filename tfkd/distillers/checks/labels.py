"""Checks labels and the loss on them, and adapts losses and metrics to that loss."""

import contextlib
import math
import re

import keras
import numpy as np
import tensorflow as tf

from tfkd import losses as losses_module
from tfkd import runtime
from tfkd.errors import UsageError
from tfkd.losses.label_losses import BINARY, REGRESSION, kind_of, title_of
from tfkd.training.batch import check_present


def label_loss(loss):
    """Returns the student's loss on the labels as a Keras loss object of logits.

    Args:
        loss: A `keras.losses.Loss`, a function `(labels, logits) -> (batch,)`, the name of a
            Keras loss, or None for sparse categorical cross-entropy.

    Returns:
        A `keras.losses.Loss`.

    Raises:
        UsageError: If it is known to expect probabilities, or the name is unknown.
    """
    if loss is None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError as error:
            raise UsageError(f"Unknown loss {loss!r}: pass a keras.losses.Loss.") from error
    if not callable(loss):
        raise UsageError(f"loss must be one Keras loss or function; received {loss!r}.")
    of_probabilities = (
        loss.get_config().get("from_logits") is False
        if isinstance(loss, keras.losses.Loss)
        else "crossentropy" in getattr(loss, "__name__", "")
    )
    if of_probabilities:
        name = type(loss).__name__
        if not isinstance(loss, keras.losses.Loss):
            name = "".join(word.title() for word in loss.__name__.split("_"))
        if not hasattr(keras.losses, name):
            name = "SparseCategoricalCrossentropy"
        raise UsageError(
            "The loss expects probabilities, and students output logits: use "
            f"keras.losses.{name}(from_logits=True)."
        )
    return loss if isinstance(loss, keras.losses.Loss) else _FunctionLoss(loss)


class _FunctionLoss(keras.losses.Loss):
    """A function as a loss object, which reduces and scales like Keras' own."""

    def __init__(self, function):
        name = getattr(function, "__name__", "loss")
        # TensorFlow does not accept the name of a lambda, "<lambda>".
        super().__init__(name=name if name.isidentifier() else "loss")
        # The attribute of Keras' own loss objects, so that `kind_of` recognises both.
        self.fn = function

    def call(self, y_true, y_pred):
        return self.fn(y_true, y_pred)


def match_labels(distiller):
    """Passes the loss on the labels to the losses of a distiller that depend on it.

    Args:
        distiller: A `Distiller` with its `label_loss`.

    Raises:
        UsageError: If the method, or one of its losses, does not support it.
    """
    label_loss = distiller.label_loss
    if distiller.needs_classes and kind_of(label_loss) in (BINARY, REGRESSION):
        raise UsageError(
            f"{type(distiller).__name__} needs images of one class each, and "
            f"{title_of(label_loss)} is for other labels: use a categorical cross-entropy, "
            "or tfkd.KnowledgeDistiller."
        )
    for layer in runtime.all_layers(distiller):
        # One of weight 0 is not computed.
        if isinstance(layer, losses_module.DistillationLoss) and layer.weight != 0:
            layer.match_labels(label_loss)


def metrics_of_logits(metrics, label_loss):
    """Returns metrics for `keras.Model.compile` in which "accuracy" is that of logits.

    For binary labels Keras' own compares probabilities with 0.5, or takes the largest of several
    outputs. For others it is Keras', but made now: Keras makes it in the first step, and TensorFlow
    traces a step that has made variables a second time.

    Args:
        metrics: As `keras.Model.compile` takes them.
        label_loss: The `keras.losses.Loss` on the labels.
    """
    function = getattr(label_loss, "fn", None)

    def of_logits(metric):
        if metric not in ("accuracy", "acc"):
            return metric
        if kind_of(label_loss) == BINARY:
            return keras.metrics.BinaryAccuracy(name=metric, threshold=0.0)
        if function is keras.losses.sparse_categorical_crossentropy:
            return keras.metrics.SparseCategoricalAccuracy(name=metric)
        if function is keras.losses.categorical_crossentropy:
            return keras.metrics.CategoricalAccuracy(name=metric)
        return metric

    return keras.tree.map_structure(of_logits, metrics, none_is_leaf=False)


def check_labels(labels, loss):
    """Checks labels given as an array.

    Args:
        labels: The labels given to `fit`.
        loss: The `keras.losses.Loss` on them.

    Raises:
        UsageError: If class labels are not whole numbers, or the labels no numbers.
    """
    if not isinstance(labels, (list, tuple, np.ndarray)):
        return
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise UsageError(f"Labels must be numbers; received {labels.dtype}.")
    if kind_of(loss) in (BINARY, REGRESSION):
        return
    column = labels.ndim == 1 or labels.shape[-1] == 1
    if column and labels.dtype.kind == "f" and np.any(labels != np.round(labels)):
        raise UsageError("Labels must be whole numbers, the classes; received fractions.")


def check_label_shape(loss, labels, logits):
    """Checks that labels have the shape that a loss expects.

    Args:
        loss: A `keras.losses.Loss`.
        labels: Tensor, or None where the data has none.
        logits: Tensor `(batch, classes)`.

    Raises:
        UsageError: If there are none, they are one-hot where the loss takes class numbers or the
            other way round, or a binary or regression loss has not one label per output.
    """
    check_present(labels)
    rank = labels.shape.rank if isinstance(labels, tf.Tensor) else np.ndim(labels)
    one_by_one = kind_of(loss) in (BINARY, REGRESSION)
    if one_by_one and rank is not None and math.prod(labels.shape[1:]) != logits.shape[-1]:
        # Keras would broadcast the labels to all outputs.
        raise UsageError(
            f"{title_of(loss)} does not fit labels of shape {tuple(labels.shape)} and "
            f"{logits.shape[-1]} outputs: it needs a label for each output, or, for the numbers "
            "of classes, use keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    one_hot = rank == 2 and labels.shape[1] == logits.shape[1] != 1
    wanted = {
        keras.losses.SparseCategoricalCrossentropy: False,
        keras.losses.CategoricalCrossentropy: True,
    }.get(type(loss))
    if rank is None or wanted in (None, one_hot):
        return
    right = "CategoricalCrossentropy" if one_hot else "SparseCategoricalCrossentropy"
    raise UsageError(
        f"{type(loss).__name__} does not fit labels of shape {tuple(labels.shape)}: use "
        f"keras.losses.{right}(from_logits=True)."
    )


@contextlib.contextmanager
def clear_label_errors(student):
    """Turns TensorFlow's errors about labels outside the classes into a `UsageError`.

    Args:
        student: The `keras.Model` that is trained, for its number of classes.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if runtime.NO_SAMPLE in str(error):
            raise UsageError(f"{runtime.NO_SAMPLE}.") from None
        # The second form is that of one class.
        found = re.search(
            r"(?:label value of|indices\[\d+\] =) (-?\d+) .*?\[0, (\d+)\)", str(error)
        )
        if found is None:
            raise
        label, classes = found.groups()
        raise label_error(student, label, int(classes)) from None


def label_error(student, label, classes):
    """Returns the `UsageError` for a label outside the classes of the student."""
    if classes == 1:
        return UsageError(
            f"The data has label {label}, and student {student.name!r} has a single logit: compile "
            "with keras.losses.BinaryCrossentropy(from_logits=True), or make a student with one "
            "logit per class."
        )
    return UsageError(
        f"The data has label {label}, and student {student.name!r} has {classes} classes: labels "
        f"must be whole numbers from 0 to {classes - 1}."
    )
