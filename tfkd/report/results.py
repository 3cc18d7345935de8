"""The table of results: what each model of a section is worth, and what it costs."""

import dataclasses

import numpy as np
from matplotlib.ticker import MaxNLocator


@dataclasses.dataclass
class Row:
    """A line of the table: a model, over the runs of a group.

    Attributes:
        role: `"teacher"`, `"student"`, or the name of another learner.
        model: String, the kind of model.
        method: String, the label of the group; of a teacher what trained it.
        test: Test accuracies, one for each run.
        validation: Validation accuracies; empty where there are none.
        parameters: Mean over the runs, as are the next two; None where it was not measured.
        bytes: Size of the file.
        multiply_adds: For one image.
        images_per_second: Median over the runs.
        smaller: How many times fewer parameters than the teacher's; None without one.
        faster: How many times the teacher's images per second; None without one.
    """

    role: str
    model: str
    method: str
    test: list
    validation: list
    parameters: float
    bytes: float
    multiply_adds: float
    images_per_second: float
    smaller: float = None
    faster: float = None

    @property
    def name(self):
        """What the row is called in charts and sentences."""
        if self.role == "teacher":
            return f"teacher {self.model}"
        return self.method if self.role == "student" else f"{self.method}, {self.role}"


def mean_and_deviation(numbers):
    """Returns the mean and the sample standard deviation, which is None for one number."""
    deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return float(np.mean(numbers)), deviation


def rows(section):
    """Returns the lines of a section's table: teachers first.

    Args:
        section: A `tfkd.report.runs.Section`.

    Returns:
        A list of `Row`.
    """
    teachers, teacher_of, others = {}, {}, []
    for group in section.groups:
        found = [run.teacher_measured() for run in group.runs]
        if None not in found:
            row = _row("teacher", group.first.teacher_name(), "labels only", _distinct(found))
            # One that was given to several groups is one line.
            teacher_of[group.label] = teachers.setdefault(
                repr((row.model, row.parameters, row.test)), row
            )
    only = next(iter(teachers.values())) if len(teachers) == 1 else None
    for group in section.groups:
        teacher = teacher_of.get(group.label, only)
        for role, measured in _models(group).items():
            model = group.config.student.model if role == "student" else ""
            row = _row(role, model, group.label, measured)
            if teacher is not None:
                row.smaller = _ratio(teacher.parameters, row.parameters)
                row.faster = _ratio(row.images_per_second, teacher.images_per_second)
            others.append(row)
    return [*teachers.values(), *others]


def _models(group):
    """Returns `{role: [measured in each run, ...]}`."""
    found = {"student": [run.summary["student"] for run in group.runs]}
    for name in group.first.summary["learners"]:
        found[name] = [run.summary["learners"][name] for run in group.runs]
    peers = group.first.summary.get("peers")
    if peers:
        # None of the classifiers is the best by test data: their mean is the method's result.
        everyone = [found["student"], *(found[name] for name in peers)]
        found["mean of the classifiers"] = [_mean(together) for together in zip(*everyone)]
    return found


def _mean(measured):
    return {
        key: None if None in (values := [one.get(key) for one in measured]) else np.mean(values)
        for key in ("test_accuracy", "validation_accuracy", *_COSTS)
    }


_COSTS = ("parameters", "bytes", "multiply_adds", "images_per_second")


def _distinct(measured):
    """Returns the teachers of some runs, each once; speeds that differ are those of one teacher."""
    same = {}
    for one in measured:
        same.setdefault((one["parameters"], one["test_accuracy"]), []).append(one)
    return [
        {**found[0], "images_per_second": _over_runs(np.median, found, "images_per_second")}
        for found in same.values()
    ]


def _row(role, model, method, measured):
    validation = [one.get("validation_accuracy") for one in measured]
    return Row(
        role,
        model,
        method,
        # A teacher of other classes has none.
        test=[float(one["test_accuracy"]) for one in measured if one["test_accuracy"] is not None],
        validation=[] if None in validation else [float(one) for one in validation],
        parameters=_over_runs(np.mean, measured, "parameters"),
        bytes=_over_runs(np.mean, measured, "bytes"),
        multiply_adds=_over_runs(np.mean, measured, "multiply_adds"),
        images_per_second=_over_runs(np.median, measured, "images_per_second"),
    )


def _over_runs(function, measured, key):
    values = [one.get(key) for one in measured]
    return None if None in values else float(function(values))


def _ratio(one, other):
    return one / other if one and other else None


def strips(rows):
    """Places the test accuracies of the rows on one axis, in percent of its width.

    Args:
        rows: List of `Row`.

    Returns:
        The tuple `(ticks, lines)`: a list of `(position, accuracy)`, and a list of `(row,
        positions of its runs, position of its mean)`.
    """
    rows = [row for row in rows if row.test]
    everything = [one for row in rows for one in row.test]
    low, high = min(everything), max(everything)
    margin = max(0.1 * (high - low), 0.002)
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(
        100 * max(0, low - margin), 100 * min(1, high + margin)
    )
    low, high = ticks[0], ticks[-1]

    def place(accuracy):
        return round(100 * (100 * accuracy - low) / (high - low), 2)

    return (
        [(place(tick / 100), tick) for tick in ticks],
        [(row, [place(one) for one in row.test], place(np.mean(row.test))) for row in rows],
    )
