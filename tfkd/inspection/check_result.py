"""CheckResult: what `distiller.check` found, as values and as a table."""

import dataclasses
import math


@dataclasses.dataclass
class CheckResult:
    """What teacher, student, losses and data are before training; made by `distiller.check`.

    Attributes:
        warnings: List of strings, one line each: what looks wrong and what would be right.
        data: `{"examples", "decisions", "labels", "inputs", "not_finite"}`: how many were looked
            at; as many, or that times the classes where each is decided by itself; the smallest
            and largest label; `{"shape", "mean", "std", "min", "max"}` of the student's inputs; of
            `"inputs"`, `"labels"` and `"sample weights"` those that hold NaN or infinite values,
            with the number of examples that do.
        student: `{"name", "parameters", "classes", "accuracy", "chance", "outputs", "entrance",
            "normalizes", "peers", "own_steps", "augments"}`; `accuracy` is the mean over the
            classes where each is decided by itself (binary cross-entropy), and None where outputs
            are not the classes of the data; `chance` is what guesses would reach; `outputs` is
            `"logits"` or `"probabilities"`; `entrance` is `{"largest", "std", "std_at_weights"}`,
            the largest absolute value of its inputs, their standard deviation and the one that its
            own preprocessing leaves at its first weights; `normalizes` is whether it has a layer
            that rescales or normalises; `peers` are the names of what else is trained to
            classify; `own_steps` and `augments` list, by the name of the student and of its
            peers, the methods for their own training that they bring, and their layers that alter
            images at random.
        teacher: The first seven, with `"reordered_accuracy"`, the accuracy with the best
            assignment of its classes to the labels (measured on other examples than it was
            chosen from; None where each image may be of several, or the teacher's classes are
            others), and
            `"normalization"`, `{"layer", "shift", "spread", "on_the_way", "accuracy"}`: how far
            the mean of what its first batch normalization receives is from the one in training,
            in standard deviations, how many times the standard deviation in training the one here
            is, whether both are so because its moving averages have not settled yet, and the
            accuracy with the statistics of these batches in that layer; None where there is no
            such layer. None where there is no teacher.
        losses: `{name: {"value", "weight", "weighted", "spots"}}` for the student's loss on its
            labels and each distillation loss. `spots` lists `(student tap, shape, teacher tap,
            shape)`. A value is None where a loss needs the positions of the samples and the
            data does not tell them.
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
        models = [("model", "name", "parameters", "accuracy", "outputs")]
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            if model is not None:
                models.append(
                    (
                        role,
                        model["name"],
                        f"{model['parameters']:,}",
                        "-" if model["accuracy"] is None else f"{model['accuracy']:.2%}",
                        f"{model['classes']} {model['outputs']}",
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
