"""Which curves are drawn, and which of them together."""

import collections
import dataclasses

import numpy as np
from markupsafe import Markup

from tfkd.report import runs
from tfkd.report.charts import Line

#: What every run logs: titles, logs, and whether they are shares.
_COMMON = (
    ("Validation accuracy", "val_accuracy", True),
    ("Training accuracy", "accuracy", True),
    ("Validation loss, on the labels alone", "val_loss", False),
    ("Training loss, of all that the method minimises", "loss", False),
)
# Last words of logs whose values are shares of something.
_SHARES = ("accuracy", "agreement", "attention", "probability", "share")
_VALIDATION = "val_"


@dataclasses.dataclass
class Panel:
    """A chart.

    Attributes:
        title: String.
        lines: List of `Line`, for the legend.
        svg: Markup.
    """

    title: str
    lines: list
    svg: Markup


def overview(section, charts):
    """Draws what all runs log, with a line for each group and one for the teacher.

    Args:
        section: A `tfkd.report.runs.Section`.
        charts: A `Charts`.

    Returns:
        The tuple `(panels, lines)`: a list of `Panel`, and the lines of the legend that they
        share.
    """
    teacher = _teacher_histories(section)
    panels, legend = [], {}
    for title, log, share in _COMMON:
        lines = [
            Line(group.label, group.values(log), number)
            for number, group in enumerate(section.groups)
            if group.values(log) is not None
        ]
        if len(section.groups) == 1 and log.endswith("accuracy"):
            lines += _learners(section.groups[0], log)
        values = runs.values(teacher, log) if teacher else None
        if values is not None:
            lines.append(Line("teacher, trained alone", values, None))
        if lines:
            legend |= {line.label: line for line in lines}
            panels.append(Panel(title, lines, charts.draw(title, lines, share)))
    return panels, list(legend.values())


def _learners(group, log):
    lines = []
    for number, learner in enumerate(group.first.summary["learners"], 1):
        values = group.values(log.replace("accuracy", f"{learner}_accuracy"))
        if values is not None:
            lines.append(Line(learner, values, number))
    return lines


def _teacher_histories(section):
    """Returns the logs of the teachers' own training, those of equal length as the first."""
    found = {}
    for group in section.groups:
        for run in group.runs:
            trained = run.own_teacher()
            if trained is not None:
                found[trained[0].resolve()] = trained[1]
    histories = list(found.values())
    return [one for one in histories if len(one) == len(histories[0])]


def of_method(group, charts):
    """Draws what else a group's runs log, logs of one kind together.

    Args:
        group: A `tfkd.report.runs.Group`.
        charts: A `Charts`.

    Returns:
        A list of `Panel`.
    """
    common = {log for _, log, _ in _COMMON}
    names = [name for name in group.first.logs[0] if name not in common | {"epoch"}]
    names = [name for name in names if group.values(name) is not None]
    panels = []
    for title, members in together(names).items():
        lines = [
            Line(label, group.values(name), number)
            for number, (label, name) in enumerate(members.items())
        ]
        # Of a loss that nothing is known of yet, such as one that is not finite.
        lines = [line for line in lines if np.isfinite(line.values).any()]
        share = all(name.split("_")[-1] in _SHARES for name in members.values())
        share = share and all(np.nanmax(abs(line.values)) <= 1 for line in lines)
        if lines:
            panels.append(Panel(title, lines, charts.draw(title, lines, share)))
    return panels


def together(names):
    """Sorts logs by what they have in common.

    First and last word (`discriminator_real_accuracy`), else the last one (`kd_loss`), else the
    first one (`swapped_stage1`); logs of the validation are apart.

    Args:
        names: List of logs.

    Returns:
        `{title: {label: log}}`.
    """
    words = {name: name.removeprefix(_VALIDATION).split("_") for name in names}
    keys = {
        name: [
            (is_validation := name.startswith(_VALIDATION), parts[0], parts[-1]),
            (is_validation, "", parts[-1]),
            (is_validation, parts[0], ""),
        ]
        for name, parts in words.items()
    }
    chosen, left = collections.defaultdict(list), list(names)
    for level in range(3):
        # What is left of a name is its label: a word at least.
        longer = [name for name in left if len(words[name]) > (2 if level == 0 else 1)]
        count = collections.Counter(keys[name][level] for name in longer)
        grouped = [name for name in longer if count[keys[name][level]] > 1]
        for name in grouped:
            chosen[keys[name][level]].append(name)
        left = [name for name in left if name not in grouped]
    found = {}
    for (is_validation, first, last), members in chosen.items():
        title = _title([first, last], is_validation)
        labels = {_label(words[name], first, last): name for name in members}
        found[title] = labels
    for name in left:
        found[_title(words[name], name.startswith(_VALIDATION))] = {name: name}
    return found


def _title(words, is_validation):
    title = " ".join(word for word in words if word)
    return title[:1].upper() + title[1:] + (" in validation" if is_validation else "")


def _label(words, first, last):
    rest = words[1:] if first else words
    return " ".join(rest[:-1] if last else rest)
