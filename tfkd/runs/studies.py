"""Results of studies as data, and the tables and pictures made of them.

A study is a JSON file: `{"name", "title", "baselines": [method, ...], "teachers": [entry, ...],
"runs": [entry, ...]}`. An entry is a finished run: `student`, `method`, `seed`, `test_accuracy` and
`validation_accuracy` of the last epoch (of classifiers that teach each other the mean),
`best_epoch` by validation accuracy, `epochs`, `seconds`, `images_per_second` of training,
`command`, `commit` and `versions`. What a benchmark has measured is read and shown like a study;
`tfkd.runs.measurements` has its form.
"""

import json
import pathlib
import re

import numpy as np

from tfkd import files, plots, tables
from tfkd.errors import UsageError
from tfkd.methods import split_at_commas
from tfkd.runs import measurements, results
from tfkd.runs.comparison import folder_of
from tfkd.runs.work_directory import WorkDirectory

_KEY = ("student", "method", "seed", "commit")


def read(path):
    """Returns a study, or what a benchmark has measured.

    Raises:
        UsageError: If there is no such file, or it holds neither.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UsageError(f"There is no study {path}.")
    try:
        study = files.read_json(path)
        study["name"], study["title"]
        if "rows" not in study:
            study["baselines"], study["runs"]
        # What it lacks else, or has of another kind, cannot be shown.
        render(study)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no study: it needs to be JSON with name, title, baselines, teachers and "
            "runs."
        ) from error
    return study


def write(path, study):
    """Writes a study, one run per line, so that a change shows as the lines of its runs."""
    study = dict(study)
    lists = {key: study.pop(key) for key in ("teachers", "runs")}
    head = json.dumps(study, indent=1, ensure_ascii=False).removesuffix("\n}")
    parts = [
        f' "{key}": [\n  ' + ",\n  ".join(json.dumps(entry) for entry in entries) + "\n ]"
        if entries
        else f' "{key}": []'
        for key, entries in lists.items()
    ]
    files.write_text(path, head + ",\n" + ",\n".join(parts) + "\n}\n")


def entry(run, method, commit, speeds=True):
    """Returns the entry of a finished run.

    Args:
        run: A `WorkDirectory`.
        method: String, as `tfkd.compare` was given it.
        commit: String, that of the code that ran.
        speeds: Boolean, whether `seconds` and `images_per_second` tell something: not where the
            machine did other work, and they are None.
    """
    summary = run.summary
    of_role = {found.role: found for found in results.of_method([_at_the_last_epoch(summary)])}
    found = of_role.get("mean", of_role["student"])
    return {
        "student": run.config.student.model,
        "method": method,
        "seed": run.config.seed,
        "test_accuracy": round(found.test[0], 4),
        "validation_accuracy": round(found.validation[0], 4) if found.validation else None,
        "best_epoch": summary["student"]["best"]["epoch"],
        "epochs": run.config.epochs,
        "seconds": summary["training_seconds"] if speeds else None,
        # Of a run that was resumed after its last epoch there is none.
        "images_per_second": summary.get("training_images_per_second") if speeds else None,
        "command": summary["command"],
        "commit": commit,
        "versions": summary["versions"],
    }


def _at_the_last_epoch(summary):
    models = {
        "student": {**summary["student"], **summary["student"]["last"]},
        "learners": {
            name: {**found, **found["last"]} for name, found in summary["learners"].items()
        },
    }
    return {**summary, **models}


def add(study, workdir, commit, speeds=True):
    """Adds the finished runs of a comparison, or of one run of `tfkd.train`, to a study.

    A run that is there with the same commit is replaced; one whose values are those of another
    commit is that run, and left as it is.

    Args:
        study: Dictionary, as `read` returns it; changed.
        workdir: Path of the directory of `tfkd.compare`; of `tfkd.train`, whose run is then a
            teacher of the study.
        commit: String, that of the code that ran.
        speeds: Boolean, as `entry` takes it.

    Returns:
        The number of runs found.

    Raises:
        UsageError: If the directory holds no finished run.
    """
    workdir = pathlib.Path(workdir)
    if "rows" in study:
        raise UsageError(f"{study['name']} is no study but a benchmark, to which no run belongs.")
    if (workdir / "summary.json").exists():
        return _merge(study["teachers"], [entry(WorkDirectory(workdir), "alone", commit, speeds)])
    found = []
    for path in sorted(workdir.glob("*/summary.json")):
        run = WorkDirectory(path.parent)
        named = re.search(r"--methods[= ](\S+)", run.summary["command"] or "")
        methods = split_at_commas(named[1].strip("'\"")) if named else []
        seed, student = run.config.seed, run.config.student.model
        of_run = [
            name
            for name in methods
            if path.parent.name in (folder_of(name, seed), folder_of(name, seed, student))
        ]
        found += [entry(run, name, commit, speeds) for name in of_run]
    if not found:
        raise UsageError(f"{workdir} holds no finished run of tfkd.compare.")
    return _merge(study["runs"], found)


def _merge(entries, found):
    def key(one):
        return [str(one[name]) for name in _KEY]

    # A comparison that went on after a change of the code finds its first runs again.
    known = [one | {"commit": None} for one in entries]
    new = [one for one in found if one | {"commit": None} not in known]
    keys = [key(one) for one in new]
    entries[:] = sorted([one for one in entries if key(one) not in keys] + new, key=key)
    return len(found)


def of_student(study, student):
    """Returns `{method: {seed: test accuracy}}` of a student, the best method first."""
    methods = {}
    for run in study["runs"]:
        if run["student"] == student:
            methods.setdefault(run["method"], {})[run["seed"]] = run["test_accuracy"]
    return dict(sorted(methods.items(), key=lambda pair: -np.mean(list(pair[1].values()))))


def students(study):
    """Returns the students of a study; of a benchmark, none."""
    return sorted({run["student"] for run in study.get("runs", ())})


def paired(accuracies, baseline):
    """Returns the mean difference over the seeds that both have, and its standard error.

    Args:
        accuracies: `{seed: accuracy}`.
        baseline: `{seed: accuracy}`.

    Returns:
        Two numbers; None in place of the second for one seed, of both for none.
    """
    differences = [accuracies[seed] - baseline[seed] for seed in accuracies if seed in baseline]
    if not differences:
        return None, None
    mean, deviation = results.mean_and_deviation(differences)
    return mean, None if deviation is None else deviation / len(differences) ** 0.5


def table(study, student):
    """Returns the results of a student as a Markdown table."""
    methods = of_student(study, student)
    baselines = [name for name in study["baselines"] if name in methods]
    rows = [["method", "test accuracy %", "each seed", *(f"minus `{name}`" for name in baselines)]]
    for method, accuracies in methods.items():
        mean, deviation = results.mean_and_deviation(list(accuracies.values()))
        differences = [
            "" if name == method else _percent(*paired(accuracies, methods[name]), sign=True)
            for name in baselines
        ]
        each = ", ".join(f"{100 * accuracies[seed]:.2f}" for seed in sorted(accuracies))
        rows.append([f"`{method}`", _percent(mean, deviation), each, *differences])
    return tables.markdown(rows)


def _percent(mean, spread, sign=False):
    if mean is None:
        return ""
    text = f"{100 * mean:+.2f}" if sign else f"{100 * mean:.2f}"
    return text if spread is None else f"{text} ± {100 * spread:.2f}"


def render(study):
    """Returns all tables of a study as Markdown: teachers, then the methods of each student."""
    if "rows" in study:
        return measurements.render(study)
    teachers = ", ".join(
        f"{one['student']} {100 * one['test_accuracy']:.2f} % ({one['epochs']} epochs, seed "
        f"{one['seed']})"
        for one in study["teachers"]
    )
    parts = [f"Teacher: {teachers}.\n"] if teachers else []
    for student in students(study):
        parts.append(f"Student {student}, test accuracy of the last epoch:\n")
        parts.append(table(study, student))
        unfinished = [name for name, seeds in of_student(study, student).items() if len(seeds) < 3]
        if unfinished:
            named = ", ".join(f"`{name}`" for name in unfinished)
            parts.append(f"Fewer than three seeds so far, no result yet: {named}.\n")
    return "\n".join(parts) if parts else "No run yet.\n"


def mark(text, study):
    """Returns the text of a page with the tables of a study between its marks, if it has any."""
    name = re.escape(study["name"])
    pattern = rf"(<!-- study {name} -->\n).*?(<!-- end of study {name} -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{render(study)}{found[2]}", text, flags=re.S)


def write_pages(pages, study):
    """Writes the tables of a study into the Markdown files that have its marks.

    Args:
        pages: Iterable of paths.
        study: Dictionary, as `read` returns it.

    Returns:
        The list of the files that changed.
    """
    changed = []
    for page in map(pathlib.Path, pages):
        text = page.read_text(encoding="utf-8")
        marked = mark(text, study)
        if marked != text:
            files.write_text(page, marked)
            changed.append(page)
    return changed


def picture(path, study, student):
    """Draws a study: bars for means, dots for seeds, a line for the teacher.

    Args:
        path: Where to write the PNG.
        study: Dictionary, as `read` returns it.
        student: String, one of `students(study)`.
    """
    methods = {name: list(seeds.values()) for name, seeds in of_student(study, student).items()}
    teacher = max((one["test_accuracy"] for one in study["teachers"]), default=None)
    plots.study(path, f"{study['title']}: {student}", methods, teacher)
