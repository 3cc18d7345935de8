"""Checks that models can be student and teacher."""

import keras
import numpy as np
import tensorflow as tf

from tfkd import taps
from tfkd.errors import UsageError
from tfkd.models import ensemble
from tfkd.models.logits import activation_of
from tfkd.taps.graph import operation_of

_PROBABILITIES = "{role} {name!r} outputs probabilities ({how}); tfkd needs logits: {remedy}"
_CUT = "tfkd.models.logits_of(model) ends before it, with the same weights."
_REWRITE = "end it without an activation, and leave the softmax to the loss (from_logits=True)."


def check_models(student, teacher=None, teacher_preprocessing=None, same_classes=True):
    """Checks that models can be student and teacher.

    Args:
        student: A `keras.Model`.
        teacher: A `keras.Model`, or None.
        teacher_preprocessing: Layer or function from the student's inputs to the teacher's, or
            None.
        same_classes: Whether both must have the same number of classes.

    Raises:
        UsageError: If one is no model, they share variables, differ in input shape or number
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
        if same_classes and classes != teacher_classes:
            raise UsageError(
                f"Student {student.name!r} has {classes} classes and teacher {teacher.name!r} "
                f"{teacher_classes}: both must be built for the same classes. A teacher of others "
                "can teach under tfkd.KnowledgeDistiller, by losses of features such as 'fitnet'."
            )
        _check_inputs(student, teacher, teacher_preprocessing, inputs, teacher_inputs)


def refuse_teacher(method, teacher):
    """Raises a `UsageError` where a method without a teacher, a class, is given one."""
    if teacher is not None:
        raise UsageError(
            f"{method.__name__} takes no teacher: leave it out, or take tfkd.KnowledgeDistiller."
        )


def joined(student, teachers, preprocessing):
    """Joins several teachers in one.

    Args:
        student: A `keras.Model`.
        teachers: List of `keras.Model`s.
        preprocessing: From the student's inputs to the teachers': one for all, or a list.

    Returns:
        A `tfkd.models.ensemble` that takes the student's inputs.

    Raises:
        UsageError: If they cannot be joined, or share variables with the student.
    """
    for teacher in teachers:
        _check_model("Teacher", teacher)
        # Before the student's own check, which would name the ensemble.
        _check_apart("Student and teacher", student, teacher)
    shape = getattr(student, "input_shape", None)
    return ensemble(
        teachers, preprocessing, input_shape=shape[1:] if isinstance(shape, tuple) else None
    )


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
    how = activation_of(operation_of(output))
    if how is not None:
        raise UsageError(_PROBABILITIES.format(role=role, name=model.name, how=how, remedy=_CUT))
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
        prepare = tf.function(lambda x: preprocessed(teacher_preprocessing, x), autograph=False)
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
    """Applies teacher preprocessing, if any, to the student's inputs."""
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


def check_first_batch(student, teacher, teacher_preprocessing, x):
    """Checks that subclassed models do not output probabilities, on some of the data.

    Args:
        student: A `keras.Model`.
        teacher: A `keras.Model`, or None.
        teacher_preprocessing: As in `check_models`.
        x: The data given to `fit`: a `tf.data.Dataset`, an array or a tensor. Anything else is
            not checked, since reading it would consume it.

    Raises:
        UsageError: If the outputs are probabilities, or the data has several inputs, or one in a
            dictionary, where the student takes one tensor.
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
            raise UsageError(
                _PROBABILITIES.format(role="Model", name=model.name, how=how, remedy=_REWRITE)
            )


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
