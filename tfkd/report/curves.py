"""Which logs the page draws, and which of them together."""

import base64
import collections
import io

import numpy as np

from tfkd import plots
from tfkd.report import runs

# What every run logs.
_COMMON = {
    "val_accuracy": "Validation accuracy",
    "accuracy": "Training accuracy",
    "val_loss": "Validation loss, on the labels alone",
    "loss": "Training loss, of all that the method minimises",
}


def of_section(section):
    """Draws what all runs log, with a line for each group and one for the teacher.

    Args:
        section: A `tfkd.report.runs.Section`.

    Returns:
        A list of `{"source", "alt"}`.
    """
    lines = {group.label: group.values for group in section.groups}
    teachers = {}
    for group in section.groups:
        for run in group.runs:
            trained = run.own_teacher()
            if trained is not None:
                teachers[trained[0].resolve()] = trained[1]
    # A mean is of runs of equal length.
    histories = list(teachers.values())
    histories = [one for one in histories if len(one) == len(histories[0])]
    if histories:
        lines["teacher, trained alone"] = lambda log: runs.values(histories, log)
    drawn = (
        _draw(title, {label: values(log) for label, values in lines.items()})
        for log, title in _COMMON.items()
    )
    return [one for one in drawn if one is not None]


def of_group(group):
    """Draws what else the runs of a group log, logs of one kind together.

    Args:
        group: A `tfkd.report.runs.Group`.

    Returns:
        A list of `{"source", "alt"}`.
    """
    names = [name for name in group.first.logs[0] if name not in {*_COMMON, "epoch"}]
    drawn = (
        _draw(title, {label: group.values(name) for label, name in members.items()})
        for title, members in together(names).items()
    )
    return [one for one in drawn if one is not None]


def together(names):
    """Groups logs by their last word (`kd_loss`), else by their first one (`swapped_stage1`).

    Args:
        names: List of logs. Those of the validation stay apart from the others.

    Returns:
        `{title: {label: log}}`.
    """
    found, left = {}, list(names)
    for position in (-1, 0):
        kinds = collections.defaultdict(dict)
        for name in left:
            words = name.removeprefix("val_").split("_")
            if len(words) > 1:
                kind = words.pop(position)
                kinds[kind, name.startswith("val_")][" ".join(words)] = name
        for (kind, is_validation), members in kinds.items():
            if len(members) > 1:
                found[kind.capitalize() + (" in validation" if is_validation else "")] = members
                left = [name for name in left if name not in members.values()]
    for name in left:
        title = name.removeprefix("val_").replace("_", " ").capitalize()
        found[title + (" in validation" if name.startswith("val_") else "")] = {name: name}
    return found


def _draw(title, lines):
    """Returns a curve as an image of the page; None where there is nothing to draw."""
    lines = {
        label: values
        for label, values in lines.items()
        # A loss may be finite in no epoch.
        if values is not None and np.isfinite(values).any()
    }
    if not lines:
        return None
    file = io.BytesIO()
    plots.curve(file, title, lines, logarithmic="loss" in title.lower())
    last = [f"{label} {values[:, -1].mean():.4g}" for label, values in lines.items()]
    return {
        "source": data_uri(file.getvalue()),
        "alt": f"{title} over the epochs. After the last one: {', '.join(last)}.",
    }


def data_uri(png):
    """Returns the bytes of a PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
