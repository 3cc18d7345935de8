"""One pass over data before training, which finds what would spoil it."""

import contextlib
import itertools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfkd import taps
from tfkd.distillers import checks, diagnosis
from tfkd.distillers.report import Report
from tfkd.errors import UsageError, check_positive
from tfkd.losses.label_losses import BINARY, CATEGORICAL, REGRESSION, kind_of, title_of


def check(distiller, dataset, batches=20):
    """Looks at models, losses and data as they are before training; see `Distiller.check`.

    Args:
        distiller: A compiled `Distiller`.
        dataset: Iterable of batches `(inputs, labels[, sample weights])`.
        batches: Integer, how many batches to look at at most.

    Returns:
        A `Report`.

    Raises:
        UsageError: If the distiller is not ready or the data has no labels, none at all, or one
            outside the classes.
    """
    check_positive("batches", batches)
    if not distiller.compiled:
        raise UsageError("Compile the distiller first: its loss on the labels is checked too.")
    if distiller.distillation_parts() and not distiller.built:
        raise UsageError(
            f"Student {distiller.student.name!r} has not run yet, so its shapes are unknown: call "
            "the distiller on a batch first."
        )
    with unchanged(distiller):
        seen = _Seen(distiller)
        for data in itertools.islice(dataset, int(batches)):
            seen.add(data)
        report = seen.report()
    report.warnings = diagnosis.warnings(report) + seen.warnings
    return report


@contextlib.contextmanager
def unchanged(distiller):
    """Puts back what a distiller draws or remembers within, so that looking changes nothing.

    Args:
        distiller: A `Distiller`.
    """
    before = [(variable, np.array(variable)) for variable in distiller.variables]
    try:
        yield
    finally:
        for variable, value in before:
            if not np.array_equal(variable, value):
                variable.assign(value)


class _Seen:
    """Adds up over batches what a report tells."""

    def __init__(self, distiller):
        self.distiller = distiller
        self.normalization = _FirstNormalization.of(distiller.teacher)
        self.look = tf.function(self._look, reduce_retracing=True, autograph=False)
        self.labels, self.sizes = [], []
        self.inputs, self.outputs, self.values, self.moments = [], [], [], []
        self.input_shape = None
        self.warnings = []

    def add(self, data):
        """Looks at one batch."""
        if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
            raise UsageError(
                "check needs batches (inputs, labels) or (inputs, labels, sample weights), such "
                f"as those of a tf.data.Dataset; received {type(data).__name__}."
            )
        data = tf.nest.map_structure(tf.convert_to_tensor, tuple(data))
        batch = self.distiller.unpack(data)
        if not isinstance(batch.inputs, tf.Tensor):
            raise UsageError("check takes one tensor of images per batch; received several.")
        with checks.clear_label_errors(self.distiller.student):
            outputs, values, moments = self.look(data)
        labels = self._labels(np.array(batch.labels), outputs["student"].shape[-1])
        self.labels.append(labels)
        self.sizes.append(len(labels))
        self.input_shape = tuple(batch.inputs.shape[1:])
        self.warnings = self.warnings or self.distiller.warnings(batch.inputs)
        x = np.array(batch.inputs, "float64")
        self.inputs.append((x.mean(), (x**2).mean(), x.min(), x.max()))
        self.outputs.append({role: np.array(logits) for role, logits in outputs.items()})
        self.values.append({name: float(value) for name, value in values.items()})
        self.moments.append([np.array(moment, "float64") for moment in moments])

    def _labels(self, labels, outputs):
        """Returns the numbers of the classes; one label per output where these stand alone."""
        student, label_loss = self.distiller.student, self.distiller.label_loss
        self.kind = kind_of(label_loss) or (CATEGORICAL if outputs > 1 else REGRESSION)
        if self.kind != CATEGORICAL:
            labels = labels.reshape(-1, outputs)
            if self.kind == BINARY and not (labels.min() >= 0 and labels.max() <= 1):
                wrong = labels.max() if labels.max() > 1 else labels.min()
                raise UsageError(
                    f"The data has label {wrong}, and {title_of(label_loss)} takes labels from 0 "
                    "(no) to 1 (yes)."
                )
            return labels
        if labels.ndim == 2:
            labels = labels.argmax(-1) if labels.shape[1] > 1 else labels[:, 0]
        # On a GPU TensorFlow does not complain, and the loss is no number.
        for label in (labels.min(), labels.max()):
            if not 0 <= label < outputs:
                raise checks.label_error(student, label, outputs)
        return labels.astype("int64")

    def _look(self, data):
        """Runs both models on one batch, in inference mode, and every loss on what they say."""
        distiller = self.distiller
        batch = distiller.unpack(data)
        student = distiller.observe_student(batch, training=False)
        teacher = distiller.observe_teacher(batch)
        values = {"student_loss": distiller.student_loss(batch, student["logits"])}
        for loss, pairs in distiller.distillation_parts():
            if loss.needs_indices and batch.indices is None:
                continue
            values[f"{loss.name}_loss"] = loss(
                [student[tap] for tap, _ in pairs],
                [teacher[tap] for _, tap in pairs],
                training=False,
                **distiller.loss_arguments(loss, batch),
            )
        moments = []
        if self.normalization is not None:
            moments = self.normalization.moments(distiller.teacher_inputs(batch.inputs))
        outputs = {"student": student["logits"]}
        if teacher:
            outputs["teacher"] = teacher["logits"]
        return {role: ops.cast(x, "float32") for role, x in outputs.items()}, values, moments

    def report(self):
        """Returns the `Report`, still without warnings."""
        if not self.labels:
            raise UsageError("check needs at least one batch; the data set has none.")
        labels = np.concatenate(self.labels)
        teacher = self.distiller.teacher
        return Report(
            data={
                "examples": len(labels),
                "decisions": labels.size,
                "labels": tuple(_plain(label) for label in (labels.min(), labels.max())),
                "inputs": self._inputs(),
            },
            student={
                **self._model("student", labels),
                "normalizes": _normalizes(self.distiller.student),
            },
            teacher=None if teacher is None else self._teacher(labels),
            losses=self._losses(),
        )

    def _mean(self, numbers):
        return np.average(np.array(numbers), axis=0, weights=self.sizes)

    def _inputs(self):
        means, squares, smallest, largest = zip(*self.inputs)
        mean = float(self._mean(means))
        return {
            "shape": self.input_shape,
            "mean": mean,
            "std": float(np.sqrt(max(self._mean(squares) - mean**2, 0.0))),
            "min": float(min(smallest)),
            "max": float(max(largest)),
        }

    def _model(self, role, labels):
        model = getattr(self.distiller, role)
        outputs = np.concatenate([outputs[role] for outputs in self.outputs])
        probabilities = checks.are_probabilities(outputs)
        accuracy = chance = None
        # A teacher of other classes says nothing of these.
        if self.kind == CATEGORICAL and outputs.shape[-1] == self._classes():
            accuracy, chance = np.mean(outputs.argmax(-1) == labels), 1 / outputs.shape[-1]
        elif self.kind == BINARY and outputs.shape[-1] == self._classes():
            accuracy, chance = diagnosis.binary_accuracy(labels, outputs)
            # Those of a sigmoid do not add up to 1. What a student starts with may look like it.
            probabilities = role == "teacher" and outputs.min() >= 0 and outputs.max() <= 1
        return {
            "name": model.name,
            "parameters": model.count_params(),
            "classes": outputs.shape[-1],
            "accuracy": None if accuracy is None else float(accuracy),
            "chance": None if chance is None else float(chance),
            "outputs": "probabilities" if probabilities else "logits",
        }

    def _classes(self):
        return self.outputs[0]["student"].shape[-1]

    def _teacher(self, labels):
        values = self._model("teacher", labels)
        predictions = np.concatenate([outputs["teacher"].argmax(-1) for outputs in self.outputs])
        reordered = None
        if self.kind == CATEGORICAL and values["classes"] == self._classes():
            reordered = diagnosis.reordered_accuracy(labels, predictions, values["classes"])
        seen = None
        if self.normalization is not None:
            seen = self.normalization.compare(*(self._mean(x) for x in zip(*self.moments)))
        return {
            **values,
            "reordered_accuracy": reordered,
            "normalization": seen,
        }

    def _losses(self):
        distiller = self.distiller
        weights = {"student_loss": float(distiller.student_loss_weight)}
        spots = {"student_loss": []}
        of_student, of_teacher = distiller.tap_shapes((None, *self.input_shape))
        for loss, pairs in distiller.distillation_parts():
            name = f"{loss.name}_loss"
            weights[name] = float(loss.value_of(loss.weight))
            spots[name] = [
                (here, of_student[here][1:], there, of_teacher[there][1:]) for here, there in pairs
            ]
        found = {}
        for name, weight in weights.items():
            known = name in self.values[0]
            value = float(self._mean([values[name] for values in self.values])) if known else None
            found[name] = {
                "value": value,
                "weight": weight,
                "weighted": None if value is None else weight * value,
                "spots": spots[name],
            }
        return found


def _plain(number):
    """Returns a number of NumPy as Python's, an integer where it is whole."""
    return int(number) if number == int(number) else float(number)


def _normalizes(model):
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    return any(isinstance(layer, kinds) for layer in model._flatten_layers())


class _FirstNormalization:
    """Compares what a model's first batch normalization gets with what it got in training."""

    @classmethod
    def of(cls, model):
        """Returns the comparison for a model; None where there is no such layer to be found."""
        found = [] if model is None else taps.of_kind(model, keras.layers.BatchNormalization)
        return cls(model, *found[0]) if found else None

    def __init__(self, model, path, layer):
        self.path, self.layer = path, layer
        self.run = taps.segment(model, end=path)

    def moments(self, inputs):
        """Returns mean and mean square of each channel of its output for a batch."""
        outputs = ops.cast(self.run(inputs, training=False), "float32")
        axis = self.layer.axis % len(outputs.shape)
        axes = [number for number in range(len(outputs.shape)) if number != axis]
        return ops.mean(outputs, axis=axes), ops.mean(outputs**2, axis=axes)

    def compare(self, mean, square):
        """Returns `{"layer", "shift", "spread"}` as in `Report`, from the moments of the data."""
        gamma, beta = (
            default if weight is None else np.array(weight, "float64")
            for weight, default in ((self.layer.gamma, 1.0), (self.layer.beta, 0.0))
        )
        gamma, beta = np.broadcast_to(gamma, mean.shape), np.broadcast_to(beta, mean.shape)
        # A channel that is switched off tells nothing of its input.
        open_ = np.abs(gamma) > 0.01 * np.abs(gamma).max()
        shift = (mean - beta)[open_] / gamma[open_]
        variance = (square - mean**2)[open_] / gamma[open_] ** 2
        return {
            "layer": self.path,
            "shift": float(np.sqrt(np.mean(shift**2))),
            "spread": float(np.sqrt(np.median(np.maximum(variance, 0.0)))),
        }
