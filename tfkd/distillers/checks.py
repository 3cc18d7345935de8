"""Finds what is wrong with models, losses and data before, or as, training starts."""

import contextlib
import inspect
import math
import re

import keras
import numpy as np
import tensorflow as tf

from tfkd import losses as losses_module
from tfkd import runtime, taps
from tfkd.errors import UsageError, unknown
from tfkd.losses.label_losses import BINARY, REGRESSION, kind_of, title_of
from tfkd.models.logits import activation_of

_PROBABILITIES = "{role} {name!r} outputs probabilities ({how}); tfkd needs logits: {remedy}"
_CUT = "tfkd.models.logits_of(model) ends before it, with the same weights."
_REWRITE = "end it without an activation, and leave the softmax to the loss (from_logits=True)."


def check_constructor_arguments(cls, given):
    """Raises a `UsageError` for arguments that the constructor of a distiller does not have.

    Args:
        cls: A subclass of `Distiller`.
        given: `{name: value}` of the keyword arguments.
    """
    known = _constructor_arguments(cls)
    for name, value in given.items():
        if name not in known:
            what = f"argument of {cls.__name__}"
            raise unknown_argument(cls, what, name, value, known, given.get("losses"))


def _constructor_arguments(cls):
    """Returns the names that a constructor takes, those that it only passes on included."""
    known = {}
    for base in cls.__mro__:
        if "__init__" in base.__dict__:
            parameters = [*inspect.signature(base.__init__).parameters.values()][1:]
            known |= {one.name: one.kind for one in parameters}
            if inspect.Parameter.VAR_KEYWORD not in known.values():
                break
            known = {name: kind for name, kind in known.items() if kind not in _VARIADIC}
    return list(known)


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def unknown_argument(cls, what, name, value, known, chosen=None):
    """Returns the error for an argument that does not exist, to be raised.

    Args:
        cls: The subclass of `Distiller` that it was given to.
        what: String, what the name should have been, such as `"argument of IAKD"`.
        name: The name as given.
        value: What was given.
        known: Iterable of the names that exist.
        chosen: The losses given beside it, where they were.
    """
    of_constructor = _constructor_arguments(cls)
    if "losses" not in of_constructor:
        return unknown(what, name, known)
    if name == "alpha" and "student_loss_weight" in of_constructor and "dkd" not in _ids(chosen):
        # What the Keras example of distillation, and many others, call the share of the labels.
        return UsageError(
            f"Unknown {what} {name!r}: the labels have the weight student_loss_weight=0.1, and "
            "each loss its own, as in losses=[tfkd.losses.get('kd', weight=0.9)]."
        )
    available = losses_module.available()
    for identifier in dict.fromkeys((*_ids(chosen), "kd", *available)):
        parameters = inspect.signature(available[identifier]).parameters
        if name in parameters and name != "kwargs":
            return UsageError(
                f"Unknown {what} {name!r}: it is one of a loss, as in "
                f'losses=[tfkd.losses.get("{identifier}", {name}={value!r})].'
            )
    return unknown(what, name, known)


def _ids(chosen):
    """Returns the ids of losses as they were given to a distiller."""
    if isinstance(chosen, (str, losses_module.DistillationLoss)):
        chosen = [chosen]
    found = [getattr(loss, "id", loss) for loss in chosen or ()]
    return [one for one in found if one in losses_module.available()]


def check_models(student, teacher=None, teacher_preprocessing=None, same_classes=True):
    """Checks that models can be student and teacher.

    Args:
        student: A `keras.Model`.
        teacher: A `keras.Model`, or None.
        teacher_preprocessing: Layer or function that makes the teacher's inputs of the
            student's, or None.
        same_classes: Whether both must have the same number of classes.

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
        if same_classes and classes != teacher_classes:
            raise UsageError(
                f"Student {student.name!r} has {classes} classes and teacher {teacher.name!r} "
                f"{teacher_classes}: both must be built for the same classes. A teacher of others "
                "can teach under tfkd.KnowledgeDistiller, by losses of features such as 'fitnet'."
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


def check_compile_arguments(cls, given):
    """Raises a `UsageError` for arguments of `compile` that neither Keras nor a method has.

    Args:
        cls: The class of the distiller.
        given: Dictionary of the further arguments.
    """
    known = [*cls.extra_optimizers]
    for method in (cls.compile, keras.Model.compile):
        names = [*inspect.signature(method).parameters][1:]
        known += [name for name in names if name not in (*known, "args", "kwargs")]
    for name, value in given.items():
        if name not in known:
            raise unknown_argument(cls, f"argument of {cls.__name__}.compile", name, value, known)


def has_duplicates(optimizers):
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
    how = activation_of(output._keras_history.operation)
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
        # A lambda's name, "<lambda>", is none that TensorFlow accepts.
        super().__init__(name=name if name.isidentifier() else "loss")
        # The name that Keras' own loss objects have for it, so that both are told alike.
        self.fn = function

    def call(self, y_true, y_pred):
        return self.fn(y_true, y_pred)


def match_labels(distiller):
    """Tells the losses of a distiller what its loss on the labels says of the outputs.

    Args:
        distiller: A `Distiller` with its `label_loss`.

    Raises:
        UsageError: If the method, or one of its losses, has no meaning beside it.
    """
    label_loss = distiller.label_loss
    if distiller.needs_classes and kind_of(label_loss) in (BINARY, REGRESSION):
        raise UsageError(
            f"{type(distiller).__name__} needs images of one class each, and "
            f"{title_of(label_loss)} is for other labels: use a categorical cross-entropy, "
            "or tfkd.KnowledgeDistiller."
        )
    for layer in distiller._flatten_layers():
        # One of weight 0 is not computed.
        if isinstance(layer, losses_module.DistillationLoss) and layer.weight != 0:
            layer.match_labels(label_loss)


def metrics_of_logits(metrics, label_loss):
    """Returns metrics for `keras.Model.compile`, of which "accuracy" means that of the logits.

    Keras makes of it, beside yes-or-no labels, one that compares probabilities with 0.5, or the
    largest of several outputs.

    Args:
        metrics: As `keras.Model.compile` takes them.
        label_loss: The `keras.losses.Loss` on the labels.
    """
    if kind_of(label_loss) != BINARY:
        return metrics

    def of_logits(metric):
        if metric in ("accuracy", "acc"):
            return keras.metrics.BinaryAccuracy(name=metric, threshold=0.0)
        return metric

    return keras.tree.map_structure(of_logits, metrics, none_is_leaf=False)


def check_labels(labels, loss):
    """Checks labels given as an array.

    Args:
        labels: What was given to `fit`.
        loss: The `keras.losses.Loss` on them.

    Raises:
        UsageError: If it holds single numbers that are not whole, or no numbers.
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
            other way round; if there is not one for each output where the loss takes the
            outputs one by one.
    """
    check_present(labels)
    rank = labels.shape.rank if isinstance(labels, tf.Tensor) else np.ndim(labels)
    one_by_one = kind_of(loss) in (BINARY, REGRESSION)
    if one_by_one and rank is not None and math.prod(labels.shape[1:]) != logits.shape[-1]:
        # Keras would repeat the labels for all outputs.
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
    """Turns TensorFlow's complaints about a batch into one line: a label outside the classes.

    Args:
        student: The `keras.Model` that is trained, for its number of classes.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if runtime.NO_SAMPLE in str(error):
            raise UsageError(f"{runtime.NO_SAMPLE}.") from None
        found = re.search(r"label value of (-?\d+) .*?range of \[0, (\d+)\)", str(error))
        if found is None:
            raise
        label, classes = found.groups()
        raise label_error(student, label, int(classes)) from None


def label_error(student, label, classes):
    """Returns the error for a label outside the classes of the student, to be raised."""
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
