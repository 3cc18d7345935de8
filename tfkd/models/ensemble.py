"""Several models as one, which predicts their mean."""

import math

import keras
from keras import ops

from tfkd import taps
from tfkd.errors import UsageError, check_one_of
from tfkd.models.logits import activation_of

MEANS = ("logits", "predictions")


def mean_prediction(logits, temperature=1.0):
    """Returns the logits of the mean of several predictions.

    Args:
        logits: List of float32 tensors `(batch, classes)`.
        temperature: Positive number that divides them.

    Returns:
        A tensor `(batch, classes)` whose softmax at this temperature is the mean of theirs.
    """
    logs = ops.stack([ops.log_softmax(tensor / temperature) for tensor in logits])
    return temperature * (ops.logsumexp(logs, axis=0) - math.log(len(logits)))


def ensemble(
    models, preprocessing=None, mean="logits", input_shape=None, name="ensemble", member="teacher"
):
    """Joins several models in one that predicts their mean, such as the teachers of a student.

    It shares layers and weights with them. Its taps `teacher1`, `teacher2`, ... are their logits,
    and `teacher1/stage2` is a tap of the first one; so losses that weigh several teachers find
    them, also after it was saved and loaded. It is made of Keras' own parts, and can be loaded
    without tfkd where the models and their preprocessing can.

    Args:
        models: List of at least two different `keras.Model`s that output logits
            `(batch, classes)` of the same classes.
        preprocessing: What makes a model's inputs of the ensemble's: a layer, such as a
            `tfkd.layers.TeacherPreprocessing`, or a function of a batch; or a list of these, one
            for each model, with None where both are the same. Defaults to None for all.
        mean: `"logits"`, their mean, at any temperature the geometric mean of the predictions; or
            `"predictions"`, the logits of the mean prediction.
        input_shape: Shape of one input, without the batch. Defaults to that of the first model.
        name: String, the model's name.
        member: String, what the taps of the models' outputs begin with.

    Returns:
        A functional `keras.Model`, whose logits are float32.

    Raises:
        UsageError: If there are fewer than two models, one is no model or does not output logits
            of the same classes, its shapes are unknown, or it does not take the inputs.

    Example:
    ```python
    teacher = tfkd.models.ensemble([first, second])
    distiller = tfkd.KnowledgeDistiller(student, teacher)  # or with [first, second] itself
    ```
    """
    check_one_of("mean", mean, MEANS)
    if not isinstance(models, (list, tuple)) or len({id(model) for model in models}) < 2:
        raise UsageError(
            "An ensemble needs a list of at least two different models; a single teacher is given "
            "as it is."
        )
    if not isinstance(preprocessing, (list, tuple)):
        preprocessing = [preprocessing] * len(models)
    if len(preprocessing) != len(models):
        raise UsageError(
            f"There are {len(models)} models and {len(preprocessing)} items of preprocessing: "
            "give one for each, None for none, or a single one for all."
        )
    images = keras.Input(input_shape or _shape_of(models[0]), name="images")
    # One that serves several models runs once.
    prepared = {id(one): _prepared(one, images) for one in preprocessing}
    outputs = [
        _member(model, prepared[id(one)], f"{member}{number}")
        for number, (model, one) in enumerate(zip(models, preprocessing), start=1)
    ]
    for model, output in zip(models, outputs):
        if output.shape[1:] != outputs[0].shape[1:] or len(output.shape) != 2:
            raise UsageError(
                f"Model {models[0].name!r} outputs shape {tuple(outputs[0].shape)} and "
                f"{model.name!r} {tuple(output.shape)}: all must output logits (batch, classes) of "
                "the same classes."
            )
    logits = [ops.cast(output, "float32") for output in outputs]
    joined = ops.mean(ops.stack(logits), axis=0) if mean == "logits" else mean_prediction(logits)
    return keras.Model(images, joined, name=name)


def _shape_of(model):
    """Returns the shape of one input of a model."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple):
        raise UsageError(
            f"The shape of the inputs of {getattr(model, 'name', model)!r} is not known: pass "
            "input_shape."
        )
    return shape[1:]


def _prepared(preprocessing, images):
    """Runs preprocessing symbolically."""
    if preprocessing is None:
        return images
    if not isinstance(preprocessing, keras.layers.Layer):
        preprocessing = keras.layers.Lambda(preprocessing, dtype="float32")
    return preprocessing(images)


def _member(model, inputs, name):
    """Runs one model symbolically, under a name of its own; names of models may be equal."""
    if not isinstance(model, keras.Model):
        raise UsageError(f"An ensemble needs keras.Models; received {type(model).__name__}.")
    if taps.output(model) is None:
        own = keras.Input(inputs.shape[1:])
        return keras.Model(own, model(own), name=name)(inputs)
    *_, last, _ = taps.last_operation(model)
    if activation_of(last) is not None:
        raise UsageError(
            f"Model {model.name!r} outputs probabilities, and an ensemble needs logits: "
            "tfkd.models.logits_of(model) takes the activation off."
        )
    wanted, given = model.input_shape, tuple(inputs.shape)
    if len(wanted) != len(given) or any(
        a != b for a, b in zip(wanted, given) if None not in (a, b)
    ):
        raise UsageError(
            f"Model {model.name!r} takes inputs of shape {wanted} and gets {given}: preprocessing "
            "must make the one of the other, as tfkd.layers.TeacherPreprocessing(size=...) does."
        )
    return keras.Model(model.inputs, model.outputs[0], name=name)(inputs)
