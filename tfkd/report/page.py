"""The page: what the template is filled with, and how numbers are written on it."""

import io
import json
import shlex

import jinja2
import numpy as np
from PIL import Image

from tfkd import describe, export, files
from tfkd.config import default_config, flatten
from tfkd.errors import UsageError
from tfkd.methods import ALONE, method_config
from tfkd.report import confusion, curves, runs, table
from tfkd.runs import results

#: The page has a section of curves.
_CURVES = "curves.png"

#: The longer side that example images are reduced to.
_LARGEST = 96


def render(sections, left_out, data_dir=None, compares=True):
    """Makes the page.

    Args:
        sections: List of `tfkd.report.runs.Section`.
        left_out: List of lines on directories that are not among them.
        data_dir: Where TFDS keeps its data sets; None for its default.
        compares: Boolean, whether to compare what the models predict on the test set.

    Returns:
        The HTML, a string.
    """
    predictions = confusion.Predictions(data_dir)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfkd.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "count": count,
        "size": size,
        "times": times,
        "points": points,
        "duration": duration,
        "mean": mean,
        "value": value,
        "signed": lambda number: f"{number:+g}".replace("-", "−"),
    }
    filled = [_section(one, predictions if compares else None) for one in sections]
    everyone = [run for one in sections for group in one.groups for run in group.runs]
    return environment.get_template("page.html").render(
        title=_page_title(sections),
        sections=filled,
        left_out=left_out,
        warnings=list(dict.fromkeys(predictions.warnings)),
        first_ended=min(run.ended for run in everyone),
        last_ended=max(run.ended for run in everyone),
        runs=len(everyone),
    )


def _page_title(sections):
    first = sections[0]
    students = dict.fromkeys(group.config.student.model for group in first.groups)
    labels = dict.fromkeys(group.method for one in sections for group in one.groups)
    names = ", ".join(one.name for one in sections)
    shown = ", ".join(list(labels)[:4]) + (", …" if len(labels) > 4 else "")
    return f"{', '.join(students)} on {names}: {shown}"


def _section(section, predictions):
    rows = table.rows(section)
    ticks, strips = table.strips(rows)
    sizes = {
        split: sorted({run.summary["data"][split] for one in section.groups for run in one.runs})
        for split in ("train", "validation", "test")
    }
    return {
        "name": section.name,
        "sizes": {split: " or ".join(map(count, found)) for split, found in sizes.items()},
        "rows": rows,
        "gains": _gains(section),
        "ticks": ticks,
        "strips": strips,
        "curves": curves.of_section(section),
        "confusions": _confusions(section, predictions) if predictions else None,
        "groups": [_group(group) for group in section.groups],
        "settings": _settings(section),
        "commands": list(
            dict.fromkeys(
                _in_lines(run.summary["command"])
                for group in section.groups
                for run in group.runs
                if run.summary.get("command")
            )
        ),
    }


def _gains(section):
    """Returns `{label: points of test accuracy above the student alone}`."""
    found = {}
    for group in section.groups:
        alone = section.baseline(group)
        if alone is not None:
            accuracies = [
                np.mean([run.summary["student"]["test_accuracy"] for run in one.runs])
                for one in (group, alone)
            ]
            found[group.label] = accuracies[0] - accuracies[1]
    return found


def _group(group):
    first = group.first
    return {
        "label": group.label,
        "is_alone": group.is_alone,
        "lines": describe.method_in_lines(group.method),
        "runs": group.runs,
        "config": first.config,
        "versions": {
            **first.summary.get("versions", {}),
            "precision": first.settings.get("precision", "float32"),
        },
        "teacher": first.teacher_name() if "teacher" in first.summary else None,
        "method_settings": {
            key.removeprefix("method."): value
            for key, value in first.settings.items()
            if key.startswith(("method.arguments.", "method.losses.", "method.optimizers."))
            and value not in (None, {})
        },
        "seconds": results.mean_and_deviation(
            [run.summary["training_seconds"] for run in group.runs]
        ),
        "curves": curves.of_group(group),
        "pictures": _pictures(first),
        "check": _check(first),
        "export": _export(first),
        "full_config": json.dumps(first.summary["config"], indent=2, sort_keys=True),
    }


def _settings(section):
    """Returns the settings that are not the defaults, or not the same everywhere.

    Returns:
        A list of `(key, default, [(labels, value), ...])`; without labels where all groups have
        the value.
    """
    rows, compared = {}, runs.differences(section.groups)
    for group in section.groups:
        defaults = _defaults(group)
        for key, own in group.first.settings.items():
            # A config keeps beside the settings of its method what its file says of others.
            if key.startswith("settings.") or own == {}:
                continue
            default = defaults.get(key)
            if own != default or key in compared:
                row = rows.setdefault(key, (set(), {}))
                row[0].add(value(default))
                row[1].setdefault(repr(own), ([], own))[0].append(group.label)
    found = []
    for key, (defaults, values) in rows.items():
        told = [
            ([] if len(labels) == len(section.groups) else labels, own)
            for labels, own in values.values()
        ]
        found.append((key, ", ".join(sorted(defaults)), told))
    return found


def _defaults(group):
    """Returns the settings of a config of the group's method and models that changes nothing."""
    config = group.config
    known, own = group.method, {}
    try:
        method_config(known, config.settings.to_dict())
    except UsageError:
        # A method or a loss of the user's own: the defaults of its arguments are not known here.
        known, own = ALONE, {"method": config.method.to_dict()}
    default = default_config(
        known, config.teacher.model, config.student.model, config.settings.to_dict()
    )
    default.teacher.path = config.teacher.path
    # As JSON has it, so that tuples are lists.
    flat = flatten(json.loads(json.dumps({**default.to_dict(), **own})))
    return {**flat, "precision": "float32"}


def _in_lines(command):
    """Breaks a command before each of its options, as a shell takes it."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    lines = [""]
    for word in map(shlex.quote, words):
        if word.startswith("--"):
            lines.append("    ")
        lines[-1] += ("" if lines[-1].endswith("    ") or not lines[-1] else " ") + word
    return " \\\n".join(lines)


def _check(run):
    """Returns what the check before training found, or None where there was none."""
    check = run.summary.get("check")
    if not isinstance(check, dict) or not {"data", "student", "losses", "warnings"} <= check.keys():
        return None
    return check


def _export(run):
    """Returns the table of `export.json`, `(columns, {format: cells})`, or None."""
    path = run.path / "export.json"
    if not path.exists():
        return None
    try:
        exported = files.read_json(path)
        rows = {
            f"{model}, {name}": found
            for model, formats in exported.items()
            for name, found in formats.items()
        }
        shown = export.MEASUREMENTS
        return shown, {name: [show(one) for show in shown.values()] for name, one in rows.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{path} is damaged"], {}


def _pictures(run):
    """Returns a run's pictures, `{"source", "caption", "width", "height"}` for each."""
    newest = {}
    for path in sorted((run.path / "pictures").glob("*-epoch*.png")):
        newest[path.stem.rpartition("-epoch")[0]] = path
    found = []
    for path in [*sorted(run.path.glob("*.png")), *newest.values()]:
        if path.name == _CURVES:
            continue
        try:
            with Image.open(path) as image:
                image.load()
                told, (width, height) = image.info.get("Description"), image.size
        except OSError:
            found.append({"source": None, "caption": f"{path.name} is damaged"})
            continue
        name, _, epoch = path.stem.rpartition("-epoch")
        caption = told or (name or path.stem).replace("_", " ").capitalize()
        if epoch.isdecimal() and name:
            caption += f", after epoch {int(epoch)}"
        found.append(
            {
                "source": curves.data_uri(path.read_bytes()),
                "caption": caption,
                "file": path.relative_to(run.path).as_posix(),
                "width": width,
                "height": height,
            }
        )
    return found


def _confusions(section, predictions):
    """Returns what changed for each method, a list of dictionaries with `label`."""
    found = []
    for group in section.groups:
        if group.is_alone:
            continue
        one = {"label": group.label, "changes": None, "reason": None}
        found.append(one)
        alone = section.baseline(group)
        teacher = group.first.summary.get("teacher", {"test_accuracy": None})
        if alone is None and teacher["test_accuracy"] is None:
            one["reason"] = (
                "Nothing to compare with: the method has no teacher of the same classes, and no "
                "run of the same student on the same data alone is among the directories."
            )
            continue
        print(f"comparing predictions: {group.label}", flush=True)
        try:
            before, labels, one["baseline"] = _baseline(group, alone, predictions)
            after = [predictions.of(run)[0] for run in group.runs]
            data = predictions.data(group.first)
            one["changes"] = confusion.changes(before, after, labels, data.num_classes)
            one["class_names"] = data.class_names
            one["images"] = _examples(one["changes"], data)
            # Their pixels stay squares; photographs are smooth.
            one["small"] = max(data.input_shape[:2]) < _LARGEST
        except UsageError as error:
            one["reason"] = f"Predictions were not compared: {error}"
    return found


def _baseline(group, alone, predictions):
    """Returns predictions of the baseline's models, the labels, and the baseline's name."""
    if alone is not None:
        everyone = [predictions.of(run) for run in alone.runs]
        return [one for one, _ in everyone], everyone[0][1], alone.label
    # A teacher that was given to all seeds is one model.
    teachers = {run.summary["teacher"]["test_accuracy"]: run for run in group.runs}
    everyone = [predictions.of(run, "teacher") for run in teachers.values()]
    return [one for one, _ in everyone], everyone[0][1], "teacher"


def _examples(changes, data):
    """Returns the pictures of the images that are shown, `{index: data URI}`."""
    indices = {image.index for pair in changes.pairs for image in pair.images}
    found = {}
    for index, array in confusion.test_images(data, indices).items():
        image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        if max(image.size) > _LARGEST:
            image.thumbnail((_LARGEST, _LARGEST))
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        found[index] = curves.data_uri(file.getvalue())
    return found


# How numbers are written. What was not measured is a dash.

_NONE = "–"


def percent(share):
    """`0.9667` as `96.67`."""
    return _NONE if share is None else f"{100 * share:.2f}"


def mean(numbers):
    """Accuracies as their mean in percent, with the deviation where there are several."""
    if not numbers:
        return _NONE
    average, deviation = results.mean_and_deviation(numbers)
    return percent(average) + ("" if deviation is None else f" ± {percent(deviation)}")


def points(difference):
    """A difference of shares in points of percent, with its sign."""
    return _NONE if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def count(number):
    """`78426` as `78,426`."""
    return _NONE if number is None else f"{number:,.0f}"


def size(number):
    """Bytes in kB or MB."""
    if number is None:
        return _NONE
    return f"{number / 1024:,.0f} kB" if number < 1024**2 else f"{number / 1024**2:,.1f} MB"


def times(ratio):
    """`8.84` as `8.8×`."""
    return _NONE if ratio is None else f"{ratio:,.1f}×"


def duration(seconds):
    """`4000` as `1 h 6 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def value(anything):
    """A value of JSON as people write it."""
    if anything is None:
        return _NONE
    if isinstance(anything, bool):
        return "yes" if anything else "no"
    if isinstance(anything, int):
        return f"{anything:,}" if abs(anything) >= 10_000 else str(anything)
    if isinstance(anything, float):
        return f"{anything:.4g}"
    if isinstance(anything, (list, tuple)):
        return ", ".join(map(value, anything))
    return str(anything)
