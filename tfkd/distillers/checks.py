"""Finds what is wrong with models, losses and data before, or as, training starts."""

import contextlib
import re

import keras
import numpy as np
import tensorflow as tf

from tfkd import taps
from tfkd.errors import UsageError

_PROBABILITIES = (
    "{role} {name!r} outputs probabilities ({how}); tfkd needs logits: end it without an "
    "activation, and leave the softmax to the loss (from_logits=True)."
)


def check_models(student, teacher=None, teacher_preprocessing=None):
    """Checks that models can be student and teacher.

    Args:
        student: A `keras.Model`.
        teacher: A `keras.Model`, or None.
        teacher_preprocessing: Layer or function that makes the teacher's inputs of the
            student's, or None.

    Raises:
        UsageError: If either is no model, they share variables, differ in input shape or number
            of classes, or output probabilities.
    """
    if teacher_preprocessing is not None and (
        teacher is None or not callable(teacher_preprocessing)
    ):
        raise UsageError(
            "teacher_preprocessing must be a layer or function of a batch, beside a teacher; "
            f"received {teacher_preprocessing!r}{' and no teacher' if teacher is None else ''}."
        )
    models = {"Student": student} if teacher is None else {"Student": student, "Teacher": teacher}
    outputs = {role: _check_model(role, model) for role, model in models.items()}
    if teacher is None:
        return
    _check_apart("Student and teacher", student, teacher)
    if None not in outputs.values():
        (classes, inputs), (teacher_classes, teacher_inputs) = outputs.values()
        if classes != teacher_classes:
            raise UsageError(
                f"Student {student.name!r} has {classes} classes and teacher {teacher.name!r} "
                f"{teacher_classes}: both must be built for the same classes."
            )
        _check_inputs(student, teacher, teacher_preprocessing, inputs, teacher_inputs)


def check_students(students):
    """Checks that models can teach each other.

    Args:
        students: List of `keras.Model`s.

    Returns:
        The list.

    Raises:
        UsageError: If there are fewer than two, one is no model or outputs probabilities, or two
            share variables or differ in input shape.
    """
    if not isinstance(students, (list, tuple)) or len(students) < 2:
        raise UsageError(
            "students must be a list of at least two keras.Models, which teach each other; "
            f"received {students!r}."
        )
    for position, student in enumerate(students):
        _check_model("Student", student)
        for other in students[:position]:
            _check_apart("Two students", student, other)
            shapes = [getattr(model, "input_shape", None) for model in (other, student)]
            if not _agree(*shapes):
                raise UsageError(
                    f"Student {other.name!r} takes inputs of shape {shapes[0]} and student "
                    f"{student.name!r} {shapes[1]}: all see the same images."
                )
    return list(students)


def one_is_there_twice(optimizers):
    """Whether one Keras optimizer is there twice; names and settings make a new one each time.

    Args:
        optimizers: List of what `compile` was given as optimizers.
    """
    objects = [id(one) for one in optimizers if isinstance(one, keras.optimizers.Optimizer)]
    return len(set(objects)) < len(objects)


def logits_shape(model, input_shape):
    """Returns the shape of a model's logits for inputs of a shape, the batch included."""
    output = taps.output(model)
    if output is not None:
        return tuple(output.shape)
    # A subclassed model tells its shapes when it runs.
    step = tf.function(lambda x: model(x, training=False))
    inputs = tf.TensorSpec(input_shape, keras.config.floatx())
    return tuple(step.get_concrete_function(inputs).structured_outputs.shape)


def _check_model(role, model):
    """Checks one model; returns its number of classes and input shape, None where unknown."""
    if not isinstance(model, keras.Model):
        raise UsageError(f"{role} must be a keras.Model; received {type(model).__name__}.")
    output = taps.output(model)
    if output is None:
        return None
    if len(model.inputs) != 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise UsageError(
            f"{role} {model.name!r} takes {len(model.inputs)} inputs ({names}); tfkd distils "
            "models of one input, a tensor of images: keep the others inside of the model, or "
            "join all in one tensor that it splits."
        )
    how = _activation(output)
    if how is not None:
        raise UsageError(_PROBABILITIES.format(role=role, name=model.name, how=how))
    if len(output.shape) != 2:
        raise UsageError(
            f"{role} {model.name!r} outputs shape {tuple(output.shape)}; tfkd needs logits of "
            "shape (batch, classes)."
        )
    return output.shape[-1], model.input_shape


def _check_apart(who, model, other):
    """Checks that two models share no variable."""
    own = {id(variable) for variable in model.variables}
    shared = [variable.path for variable in other.variables if id(variable) in own]
    if shared or model is other:
        raise UsageError(
            f"{who} share {len(shared)} variables, {', '.join(shared[:3])} first: build two "
            "models, or the one would change as the other learns."
        )


def _check_inputs(student, teacher, teacher_preprocessing, inputs, teacher_inputs):
    """Checks that the student's inputs, once preprocessed, have the shape of the teacher's."""
    prepared = inputs
    if teacher_preprocessing is not None and isinstance(inputs, tuple):
        prepare = tf.function(lambda x: preprocessed(teacher_preprocessing, x))
        outputs = prepare.get_concrete_function(tf.TensorSpec(inputs, keras.config.floatx()))
        prepared = tuple(outputs.structured_outputs.shape)
    if _agree(prepared, teacher_inputs):
        return
    remedy = (
        "teacher_preprocessing must make the one of the other, as "
        "tfkd.layers.TeacherPreprocessing(size=..., channels=...) does."
    )
    if teacher_preprocessing is not None:
        remedy = f"teacher_preprocessing makes {prepared} of the student's."
    raise UsageError(
        f"Student {student.name!r} takes inputs of shape {inputs} and teacher {teacher.name!r} "
        f"{teacher_inputs}: {remedy}"
    )


def preprocessed(teacher_preprocessing, inputs):
    """Returns the teacher's inputs: what the layer or function makes of the student's, if any."""
    if teacher_preprocessing is None:
        return inputs
    if isinstance(teacher_preprocessing, keras.layers.Layer):
        return teacher_preprocessing(inputs, training=False)
    return teacher_preprocessing(inputs)


def _agree(shape, other):
    if not (isinstance(shape, tuple) and isinstance(other, tuple)):
        return True
    return len(shape) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(shape, other)
    )


def _activation(output):
    """Names the operation that makes probabilities of the last tensor, or returns None."""
    operation = output._keras_history.operation
    names = {"softmax": "a softmax", "sigmoid": "a sigmoid", "log_softmax": "a log-softmax"}
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(operation).__name__).lower()
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    return names.get(kind) or names.get(activation)


def check_first_batch(student, teacher, teacher_preprocessing, x):
    """Looks for probabilities in the outputs of models whose graph cannot be looked at.

    Args:
        student: A `keras.Model`.
        teacher: A `keras.Model`, or None.
        teacher_preprocessing: As in `check_models`.
        x: What was given to `fit`: a `tf.data.Dataset`, an array or a tensor. Anything else is
            left alone, since looking at it would use it up.

    Raises:
        UsageError: If the outputs for some of the data are probabilities, or the data has several
            inputs, or one in a dictionary, where the student takes one tensor.
    """
    if taps.output(student) is not None:
        _check_one_input(x)
    models = {student: None} if teacher is None else {student: None, teacher: teacher_preprocessing}
    hidden = {model: prepare for model, prepare in models.items() if taps.output(model) is None}
    if not hidden:
        return
    if isinstance(x, tf.data.Dataset):
        element = next(iter(x.take(1)))
        x = element[0] if isinstance(element, tuple) else element
    if not isinstance(x, (np.ndarray, tf.Tensor)):
        return
    for model, prepare in hidden.items():
        outputs = model(preprocessed(prepare, x[:8]), training=False)
        if are_probabilities(keras.ops.convert_to_numpy(outputs).astype("float32")):
            how = "rows that add up to 1"
            raise UsageError(_PROBABILITIES.format(role="Model", name=model.name, how=how))


def _check_one_input(x):
    if isinstance(x, tf.data.Dataset):
        element = x.element_spec
        x = element[0] if isinstance(element, tuple) else element
    if isinstance(x, dict) or (isinstance(x, (list, tuple)) and len(x) > 1):
        names = f" ({', '.join(map(str, x))})" if isinstance(x, dict) else ""
        raise UsageError(
            f"The data has inputs as a {type(x).__name__} of {len(x)}{names}; the student takes "
            "one tensor of images."
        )


def are_probabilities(outputs):
    """Whether the rows of an array are probabilities: none negative, all adding up to 1."""
    return outputs.min() >= 0 and np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-3)


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
        raise UsageError(
            "The loss expects probabilities, and students output logits: use "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True), or the like."
        )
    return loss if isinstance(loss, keras.losses.Loss) else _FunctionLoss(loss)


class _FunctionLoss(keras.losses.Loss):
    """A function as a loss object, which reduces and scales like Keras' own."""

    def __init__(self, function):
        name = getattr(function, "__name__", "loss")
        # A lambda's name, "<lambda>", is none that TensorFlow accepts.
        super().__init__(name=name if name.isidentifier() else "loss")
        self.function = function

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred)


def check_labels(labels):
    """Checks labels given as an array.

    Args:
        labels: What was given to `fit`.

    Raises:
        UsageError: If it holds single numbers that are not whole, or no numbers.
    """
    if not isinstance(labels, (list, tuple, np.ndarray)):
        return
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise UsageError(f"Labels must be numbers; received {labels.dtype}.")
    column = labels.ndim == 1 or labels.shape[-1] == 1
    if column and labels.dtype.kind == "f" and np.any(labels != np.round(labels)):
        raise UsageError("Labels must be whole numbers, the classes; received fractions.")


def check_present(labels):
    """Raises a `UsageError` where data has no labels."""
    if labels is None:
        raise UsageError("Training and evaluation need labels: pass batches (inputs, labels).")


def check_label_shape(loss, labels, logits):
    """Checks that labels have the form that a loss expects.

    Args:
        loss: A `keras.losses.Loss`.
        labels: Tensor, or None where the data has none.
        logits: Tensor `(batch, classes)`.

    Raises:
        UsageError: If there are none, or they are one-hot where the loss wants classes or the
            other way round.
    """
    check_present(labels)
    rank = labels.shape.rank if isinstance(labels, tf.Tensor) else np.ndim(labels)
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
    """Turns TensorFlow's complaint about a label outside the classes into one line.

    Args:
        student: The `keras.Model` that is trained, for its number of classes.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"label value of (-?\d+) .*?range of \[0, (\d+)\)", str(error))
        if found is None:
            raise
        label, classes = found.groups()
        raise label_error(student, label, int(classes)) from None


def label_error(student, label, classes):
    """Returns the error for a label outside the classes of the student, to be raised."""
    return UsageError(
        f"The data has label {label}, and student {student.name!r} has {classes} classes: labels "
        f"must be whole numbers from 0 to {classes - 1}."
    )
