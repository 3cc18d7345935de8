"""The table of results: the models of a section, and how they compare with the teacher."""

import dataclasses

import numpy as np
from matplotlib.ticker import MaxNLocator

from tfkd.runs import results


@dataclasses.dataclass
class Row:
    """A line of the table: a model, over the runs of a group.

    Attributes:
        result: A `tfkd.runs.results.Result`.
        model: String, the kind of model; empty for a learner beside the student.
        method: String, the label of the group; of a teacher what trained it.
        smaller: How many times fewer parameters than the teacher's; None without one.
        faster: How many times the teacher's images per second; None without one.
    """

    result: results.Result
    model: str
    method: str
    smaller: float = None
    faster: float = None

    @property
    def name(self):
        """What the row is called beside its accuracies, and in the table."""
        role = self.result.role
        if role == "teacher":
            return f"teacher {self.model}"
        return self.method if role == "student" else f"{self.method}, {role}"


def rows(section):
    """Returns the lines of a section's table: teachers first.

    Args:
        section: A `tfkd.report.runs.Section`.

    Returns:
        A list of `Row`.
    """
    teachers, teacher_of, others = {}, {}, []
    for group in section.groups:
        measured = [run.teacher_measured() for run in group.runs]
        if None not in measured:
            found = results.of_model("teacher", _distinct(measured))
            row = Row(found, group.first.teacher_name(), "labels only")
            # One that was given to several groups is one line.
            key = repr((row.model, found.parameters, found.test))
            teacher_of[group.label] = teachers.setdefault(key, row).result
    only = next(iter(teachers.values())).result if len(teachers) == 1 else None
    for group in section.groups:
        teacher = teacher_of.get(group.label, only)
        for found in results.of_method([run.summary for run in group.runs]):
            model = group.config.student.model if found.role == "student" else ""
            row = Row(found, model, group.label)
            if teacher is not None:
                row.smaller = _ratio(teacher.parameters, found.parameters)
                row.faster = _ratio(found.images_per_second, teacher.images_per_second)
            others.append(row)
    return [*teachers.values(), *others]


def _distinct(measured):
    """Returns the teachers of some runs, each once; speeds that differ are those of one teacher."""
    same = {}
    for one in measured:
        same.setdefault((one["parameters"], one["test_accuracy"]), []).append(one)
    return [
        {**found[0], "images_per_second": results.of_model("teacher", found).images_per_second}
        for found in same.values()
    ]


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
    rows = [row for row in rows if row.result.test]
    everything = [one for row in rows for one in row.result.test]
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
        [(row, list(map(place, row.result.test)), place(np.mean(row.result.test))) for row in rows],
    )
