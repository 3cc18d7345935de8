"""Checks models, losses and data before training, in one pass over the data."""

import contextlib
import itertools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfkd import runtime, taps
from tfkd.distillers import checks
from tfkd.errors import UsageError, check_positive, check_positive_integer
from tfkd.inspection import findings
from tfkd.inspection.check_result import CheckResult
from tfkd.losses.label_losses import BINARY, CATEGORICAL, REGRESSION, kind_of, title_of


def check(distiller, x, y=None, sample_weight=None, batch_size=32, batches=20):
    """Checks models, losses and data before training; see `Distiller.check`.

    Args:
        distiller: A compiled `Distiller`.
        x: As in `Distiller.check`.
        y: As in `Distiller.check`.
        sample_weight: As in `Distiller.check`.
        batch_size: Integer, of arrays.
        batches: Integer, the largest number of batches to read.

    Returns:
        A `CheckResult`.

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
    dataset = _batches(x, y, sample_weight, batch_size, distiller.label_loss)
    with unchanged(distiller), distiller.running():
        seen = _Seen(distiller)
        for data in itertools.islice(dataset, int(batches)):
            seen.add(data)
        report = seen.report()
    report.warnings = findings.warnings(report) + seen.warnings
    return report


def _batches(x, y, sample_weight, batch_size, label_loss):
    """Returns an iterable of batches of the data that `Distiller.check` takes."""
    together = isinstance(x, (tuple, list)) and 2 <= len(x) <= 3
    # The first part of a list of batches is a batch, so no array.
    if y is None and together and not isinstance(x[0], (tuple, list)):
        x, y, sample_weight = (*x, None)[:3]
    if isinstance(x, keras.utils.PyDataset):
        return (x[number] for number in range(len(x)))
    if y is None:
        return x
    check_positive_integer("batch_size", batch_size)
    if not (hasattr(x, "__array__") or isinstance(x, (list, tuple, dict))):
        raise UsageError(
            f"check takes y beside an array; {type(x).__name__} brings its labels with it. The "
            "number of batches to look at is batches=..."
        )
    checks.labels.check_labels(y, label_loss)
    given = {"inputs": x, "labels": y, "sample weights": sample_weight}
    arrays = {name: _array(name, part) for name, part in given.items() if part is not None}
    sizes = {name: len(array) for name, part in arrays.items() for array in tf.nest.flatten(part)}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"check needs as many labels as inputs; received {sizes}.")
    # Arrays are often sorted by class, and their beginning would be one class only.
    order = np.random.default_rng(0).permutation(sizes["inputs"])

    def at(positions):
        return tf.nest.map_structure(lambda array: array[positions], tuple(arrays.values()))

    return (at(order[start : start + batch_size]) for start in range(0, len(order), batch_size))


def _array(name, part):
    if isinstance(part, dict):
        return {key: _array(name, value) for key, value in part.items()}
    try:
        part = np.asarray(part)
    except ValueError:
        part = np.array(None)
    if part.ndim == 0:
        raise UsageError(f"check takes one array of {name}; received no rows of equal shape.")
    return part


@contextlib.contextmanager
def unchanged(distiller):
    """Restores all variables of a distiller at the end of the context.

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
    """Accumulates the values of a report over batches."""

    def __init__(self, distiller):
        self.distiller = distiller
        self.normalization = _FirstNormalization.of(distiller.teacher)
        models = {"student": distiller.student, "teacher": distiller.teacher}
        self.entrances = {role: _Entrance(model) for role, model in models.items() if model}
        self.look = runtime.for_any_batch(self._look)
        self.labels, self.sizes = [], []
        self.inputs, self.outputs, self.values, self.moments = [], [], [], []
        self.spreads = []
        self.not_finite = dict.fromkeys(("inputs", "labels", "sample weights"), 0)
        self.input_shape = None
        self.images, self.own_images = {}, False
        self.warnings = []

    def add(self, data):
        """Adds one batch."""
        if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
            raise UsageError(
                "check needs batches (inputs, labels) or (inputs, labels, sample weights), such "
                f"as those of a tf.data.Dataset; received {type(data).__name__}."
            )
        data = tf.nest.map_structure(tf.convert_to_tensor, tuple(data))
        batch = self.distiller.unpack(data)
        if not isinstance(batch.inputs, tf.Tensor):
            raise UsageError("check takes one tensor of images per batch; received several.")
        self._count_not_finite(batch)
        outputs, values, moments, spreads = self.look(data)
        labels = self._labels(np.array(batch.labels), outputs["student"].shape[-1])
        self.labels.append(labels)
        self.sizes.append(len(labels))
        self.input_shape = tuple(batch.inputs.shape[1:])
        self.own_images = batch.teacher_images is not None
        self.warnings = self.warnings or self.distiller.warnings(batch.inputs)
        x = np.array(batch.inputs, "float64")
        self.inputs.append((x.mean(), (x**2).mean(), x.min(), x.max()))
        self.outputs.append({role: np.array(logits) for role, logits in outputs.items()})
        self.values.append({name: float(value) for name, value in values.items()})
        self.moments.append([np.array(moment, "float64") for moment in moments])
        self.spreads.append({role: np.array(spread) for role, spread in spreads.items()})

    def _count_not_finite(self, batch):
        """Counts the samples with values that are not finite."""
        parts = (batch.inputs, batch.labels, batch.sample_weight)
        for name, part in zip(self.not_finite, parts):
            if part is not None and part.dtype.is_floating:
                finite = np.isfinite(np.array(part, "float64"))
                self.not_finite[name] += int(np.sum(~finite.reshape(len(finite), -1).all(axis=1)))

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
        # On a GPU TensorFlow raises no error, and the loss is NaN.
        for label in (labels.min(), labels.max()):
            if not 0 <= label < outputs:
                raise checks.labels.label_error(student, label, outputs)
        return labels.astype("int64")

    def _look(self, data):
        """Runs both models on one batch, in inference mode, and every loss on their outputs."""
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
                **batch.loss_arguments(loss, distiller.distillation_sample_weight),
            )
        inputs, outputs, moments = {"student": batch.inputs}, {"student": student["logits"]}, []
        if teacher:
            inputs["teacher"] = distiller.teacher_inputs(batch.for_teacher)
            outputs["teacher"] = teacher["logits"]
        if self.normalization is not None:
            *moments, outputs["restored"] = self.normalization.look(inputs["teacher"])
        # Their shapes do not change: the trace tells them.
        self.images = {role: tuple(images.shape[1:]) for role, images in inputs.items()}
        spreads = {role: entrance.look(inputs[role]) for role, entrance in self.entrances.items()}
        outputs = {role: ops.cast(x, "float32") for role, x in outputs.items()}
        return outputs, values, moments, spreads

    def report(self):
        """Returns the `CheckResult`, still without warnings."""
        if not self.labels:
            raise UsageError("check needs at least one batch; the data set has none.")
        labels = np.concatenate(self.labels)
        teacher = self.distiller.teacher
        return CheckResult(
            data={
                "examples": len(labels),
                "decisions": labels.size,
                "labels": tuple(_plain(label) for label in (labels.min(), labels.max())),
                "inputs": self._inputs(),
                "not_finite": {name: count for name, count in self.not_finite.items() if count},
            },
            student={
                **self._model("student", labels),
                "normalizes": _normalizes(self.distiller.student),
                "peers": [model.name for model in _trained(self.distiller)[1:]],
                "own_steps": _own_steps(self.distiller),
                "augments": _augmentations(self.distiller),
            },
            teacher=None if teacher is None else self._teacher(labels),
            losses=self._losses(),
        )

    def _mean(self, numbers):
        return np.average(np.array(numbers), axis=0, weights=self.sizes)

    def _inputs(self):
        means, squares, smallest, largest = zip(*self.inputs)
        mean = float(self._mean(means))
        with np.errstate(invalid="ignore"):
            variance = max(self._mean(squares) - mean**2, 0.0)
        return {
            "shape": self.input_shape,
            "mean": mean,
            "std": float(np.sqrt(variance)),
            "min": float(min(smallest)),
            "max": float(max(largest)),
        }

    def _model(self, role, labels):
        model = getattr(self.distiller, role)
        outputs = np.concatenate([outputs[role] for outputs in self.outputs])
        probabilities = checks.models.are_probabilities(outputs)
        accuracy, chance = self._accuracy(labels, outputs)
        if self.kind == BINARY and accuracy is not None:
            # Those of a sigmoid do not add up to 1. What a student starts with may look like it.
            probabilities = role == "teacher" and outputs.min() >= 0 and outputs.max() <= 1
        return {
            "name": model.name,
            "parameters": model.count_params(),
            "classes": outputs.shape[-1],
            "accuracy": accuracy,
            "chance": chance,
            "outputs": "probabilities" if probabilities else "logits",
            "images": self.images[role],
            "entrance": self._entrance(role),
            "finite_weights": all(np.isfinite(np.array(w)).all() for w in model.weights),
        }

    def _accuracy(self, labels, outputs):
        """Returns the accuracy of outputs and that of chance, None where undefined."""
        # A teacher of other classes has no accuracy on these.
        if self.kind == REGRESSION or outputs.shape[-1] != self._classes():
            return None, None
        if self.kind == BINARY:
            accuracy, chance = findings.binary_accuracy(labels, outputs)
            return float(accuracy), float(chance)
        return float(np.mean(outputs.argmax(-1) == labels)), 1 / outputs.shape[-1]

    def _classes(self):
        return self.outputs[0]["student"].shape[-1]

    def _entrance(self, role):
        spreads = [spreads[role] for spreads in self.spreads]
        largest = float(np.max([spread[0] for spread in spreads]))
        std, std_at_weights = self._mean([spread[1:] for spread in spreads])
        return {"largest": largest, "std": float(std), "std_at_weights": float(std_at_weights)}

    def _teacher(self, labels):
        values = self._model("teacher", labels)
        predictions = np.concatenate([outputs["teacher"].argmax(-1) for outputs in self.outputs])
        reordered = None
        if self.kind == CATEGORICAL and values["classes"] == self._classes():
            reordered = findings.reordered_accuracy(labels, predictions, values["classes"])
        seen = None
        if self.normalization is not None:
            seen = self.normalization.compare(*(self._mean(x) for x in zip(*self.moments)))
            restored = np.concatenate([outputs["restored"] for outputs in self.outputs])
            seen["accuracy"], _ = self._accuracy(labels, restored)
        return {
            **values,
            "own_images": self.own_images,
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
    return any(isinstance(layer, kinds) for layer in runtime.all_layers(model))


def _trained(distiller):
    """Returns the models that are trained to classify: the student and its peers."""
    return [distiller.student, *distiller.learners().values()]


def _own_steps(distiller):
    """Returns `{model: [methods]}` of training methods of the models, which are not called."""
    methods = ("train_step", "compute_loss")
    found = {
        model.name: [
            f"{type(model).__name__}.{name}"
            for name in methods
            if getattr(type(model), name) is not getattr(keras.Model, name)
        ]
        for model in _trained(distiller)
    }
    return {name: steps for name, steps in found.items() if steps}


def _augmentations(distiller):
    """Returns `{model: [layers]}` of layers that alter images at random."""
    others = ("AugMix", "CutMix", "MixUp", "RandAugment")
    kinds = tuple(
        kind
        for name, kind in vars(keras.layers).items()
        if name.startswith("Random") or name in others
    )
    found = {}
    for model in _trained(distiller):
        layers = [layer for layer in runtime.all_layers(model) if isinstance(layer, kinds)]
        # RandAugment and its like consist of others.
        parts = {id(part) for one in layers for part in runtime.all_layers(one)[1:]}
        names = [layer.name for layer in layers if id(layer) not in parts]
        if names:
            found[model.name] = names
    return found


class _Entrance:
    """Measures the inputs of a model before and after its own preprocessing."""

    def __init__(self, model):
        self.run = taps.entrance(model)

    def look(self, inputs):
        """Returns a tensor of three numbers, as in `CheckResult`."""
        inputs = ops.cast(inputs, "float32")
        left = inputs if self.run is None else ops.cast(self.run(inputs), "float32")
        return ops.stack([ops.max(ops.abs(inputs)), _deviation(inputs), _deviation(left)])


def _deviation(x):
    """Returns the standard deviation of a batch, around the mean of each channel."""
    axes = tuple(range(len(x.shape) - 1))
    return ops.sqrt(ops.mean(ops.var(x, axis=axes)))


class _FirstNormalization:
    """Compares the inputs of a model's first batch normalization with those in training."""

    @classmethod
    def of(cls, model):
        """Returns the comparison for a model; None where it has no such layer."""
        found = [] if model is None else taps.of_kind(model, keras.layers.BatchNormalization)
        return cls(model, *found[0]) if found else None

    def __init__(self, model, path, layer):
        self.model, self.path, self.layer = model, path, layer
        self.run = taps.before(model, path)

    def look(self, inputs):
        """Measures one batch.

        Returns:
            Mean and mean square of each channel of the layer's inputs, and the logits of the
            model with these as the layer's statistics, in place of those of its training.
        """
        x = ops.cast(self.run(inputs, training=False), "float32")
        axis = self.layer.axis % len(x.shape)
        axes = [number for number in range(len(x.shape)) if number != axis]
        mean, square = ops.mean(x, axis=axes), ops.mean(x**2, axis=axes)
        variance = ops.maximum(square - mean**2, 0.0)
        own = [(self.layer.moving_mean, mean), (self.layer.moving_variance, variance)]
        # Nothing is assigned: the variables have these values within the scope only.
        with keras.StatelessScope(own):
            return mean, square, self.model(inputs, training=False)

    def compare(self, mean, square):
        """Returns the values of `CheckResult` for the layer, without accuracy, from moments."""
        layer = self.layer
        gamma = np.ones(mean.shape) if layer.gamma is None else np.abs(np.array(layer.gamma))
        # Channels with a scale near 0 are left out.
        open_ = gamma > 0.01 * gamma.max()
        here = mean[open_], np.maximum(square - mean**2, 0.0)[open_]
        moving = [
            np.array(variable, "float64")[open_]
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        # For data that is not finite all values are NaN.
        with np.errstate(invalid="ignore"):
            shift, spread = _differences(*here, *moving, layer.epsilon)
            return {
                "layer": self.path,
                "shift": float(np.sqrt(np.mean(shift**2))),
                "spread": float(np.median(spread)),
                "on_the_way": _on_the_way(*here, *moving, layer.epsilon),
            }


def _differences(mean, variance, moving_mean, moving_variance, epsilon):
    """Returns differences of means in standard deviations, and ratios of these deviations."""
    deviation = np.sqrt(moving_variance + epsilon)
    return (mean - moving_mean) / deviation, np.sqrt(variance + epsilon) / deviation


def _on_the_way(mean, variance, moving_mean, moving_variance, epsilon):
    """Whether moving averages are on their way from 0 and 1, where they start, to the data.

    After few steps they are `(1 - left) * statistics + left * start` with one `left` for all
    channels: other images do not make that of means and variances at once.
    """
    weights = np.concatenate([(variance + epsilon) ** -0.5, 1 / (variance + epsilon)])
    to_start = np.concatenate([-mean, 1 - variance]) * weights
    to_moving = np.concatenate([moving_mean - mean, moving_variance - variance]) * weights
    left = np.clip(to_start @ to_moving / max(to_start @ to_start, 1e-12), 0, 0.999)
    settled = moving_mean / (1 - left), np.maximum(moving_variance - left, 0) / (1 - left)
    shift, spread = _differences(mean, variance, *settled, epsilon)
    near = np.abs(np.log(spread)) < np.log(1.25)
    return bool(np.sqrt(np.mean(shift**2)) < 0.2 and np.mean(near) >= 0.75)
