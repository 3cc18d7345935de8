"""CheckResult: the result of `distiller.check`, as values and as a table."""

import dataclasses
import math


@dataclasses.dataclass
class CheckResult:
    """Teacher, student, losses and data before training; made by `distiller.check`.

    Attributes:
        warnings: List of strings, one line each: the problem and its remedy.
        data: `{"examples", "decisions", "labels", "inputs", "not_finite"}`: the number of
            examples; the number of decisions, which is that times the classes under binary
            cross-entropy; the smallest and largest label; `{"shape", "mean", "std", "min",
            "max"}` of the student's inputs; of `"inputs"`, `"labels"` and `"sample weights"`
            those with NaN or infinite values, and the number of such examples.
        student: `{"name", "parameters", "classes", "accuracy", "chance", "outputs", "images",
            "entrance", "finite_weights", "normalizes", "peers", "own_steps", "augments"}`;
            `accuracy` is the mean over the classes under binary cross-entropy, and None where
            outputs are not the classes of the data; `chance` is the accuracy of chance; `outputs`
            is `"logits"` or `"probabilities"`; `images` is the shape of what it sees, after
            preprocessing; `entrance` is `{"largest", "std", "std_at_weights"}`, the largest
            absolute value of its inputs, their standard deviation, and the standard deviation
            after its own preprocessing, at its first weights; `finite_weights` is whether none of
            its weights is NaN or infinite; `normalizes` is whether it has a layer that rescales or
            normalises; `peers` are the names of the other classifiers in training; `own_steps` and
            `augments` list, by the name of the student and of its peers, training methods that
            they override, and layers that alter images at random.
        teacher: The first nine, with `"own_images"`, whether its images came with the data rather
            than being made of the student's, `"reordered_accuracy"`, the accuracy with the best
            assignment of its classes to the labels (measured on other examples than it was
            chosen from; None for multi-label data or a teacher of other classes), and
            `"normalization"`, `{"layer", "shift", "spread", "on_the_way", "accuracy"}`: for the
            inputs of its first batch normalization the difference of their mean from that in
            training, in standard deviations; the ratio of their standard deviation to that in
            training; whether both come from moving averages that have not settled yet; and the
            accuracy with the statistics of these batches in that layer; None where there is no
            such layer. None where there is no teacher.
        losses: `{name: {"value", "weight", "weighted", "spots"}}` for the student's loss on its
            labels and each distillation loss. `spots` lists `(student tap, shape, teacher tap,
            shape)`. A value is None where a loss needs the positions of the samples and the
            data has none.
    """

    data: dict
    student: dict
    teacher: dict
    losses: dict
    warnings: list = dataclasses.field(default_factory=list)

    def as_dict(self):
        """Returns everything as values of JSON; numbers that are not finite as strings."""
        return _json(dataclasses.asdict(self))

    def __str__(self):
        data, inputs = self.data, self.data["inputs"]
        low, high = (x if isinstance(x, int) else f"{x:.4g}" for x in data["labels"])
        title = (
            f"check on {data['examples']} examples: labels {low} to {high}, inputs "
            f"{_shape(inputs['shape'])} from {inputs['min']:.3g} to {inputs['max']:.3g} "
            f"(mean {inputs['mean']:.3g}, std {inputs['std']:.3g})"
        )
        models = [("model", "name", "parameters", "accuracy", "outputs", "images")]
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            if model is not None:
                models.append(
                    (
                        role,
                        model["name"],
                        f"{model['parameters']:,}",
                        "-" if model["accuracy"] is None else f"{model['accuracy']:.2%}",
                        f"{model['classes']} {model['outputs']}",
                        _images(model, self.student),
                    )
                )
        losses = [("loss", "value", "weight", "weighted", "student -> teacher")]
        for name, loss in self.losses.items():
            spots = [
                f"{student} {_shape(shape)} -> {teacher} {_shape(teacher_shape)}"
                for student, shape, teacher, teacher_shape in loss["spots"]
            ] or [""]
            numbers = [_number(loss[key]) for key in ("value", "weight", "weighted")]
            losses.append((name, *numbers, spots[0]))
            losses.extend(("", "", "", "", spot) for spot in spots[1:])
        parts = [title, _table(models), _table(losses)]
        parts.extend(f"warning: {warning}" for warning in self.warnings)
        return "\n".join(parts)


def _images(model, student):
    """Returns what a model sees, and of a teacher what that was made of."""
    text = _shape(model["images"])
    if model.get("own_images"):
        return f"{text}, its own"
    return text if model["images"] == student["images"] else f"{text}, made of the student's"


def _json(value):
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shape(shape):
    return "x".join("?" if size is None else str(size) for size in shape)


def _number(value):
    return "needs indices" if value is None else f"{value:.4g}"


def _table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join("  " + line.rstrip() for line in lines)
