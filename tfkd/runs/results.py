"""Turns the summaries of runs into results: what each model reaches and costs, over the seeds."""

import dataclasses
import json

import numpy as np

from tfkd import files, plots, tables
from tfkd.methods import ALONE

_MEASURED = (
    "test_accuracy",
    "validation_accuracy",
    "parameters",
    "bytes",
    "multiply_adds",
    "images_per_second",
)


@dataclasses.dataclass
class Result:
    """What a model reaches and costs, over runs that differ in the seed.

    Attributes:
        role: `"teacher"`, `"student"`, the name of another learner, or `"mean"` for the mean over
            the classifiers of a run.
        test: Test accuracies, one for each run.
        validation: Validation accuracies; empty where one is missing.
        parameters: Number of parameters, the same in each run; None where it was not measured, as
            with the next two.
        bytes: Size of the first run's file.
        multiply_adds: For one image.
        images_per_second: Median over the runs; None where it was not measured in each.
    """

    role: str
    test: list
    validation: list
    parameters: float
    bytes: float
    multiply_adds: float
    images_per_second: float


def mean_and_deviation(numbers):
    """Returns the mean and the sample standard deviation, which is None for one number."""
    deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return float(np.mean(numbers)), deviation


def of_model(role, measured):
    """Returns the `Result` of a model.

    Args:
        role: String, as `Result` has it.
        measured: List of what each run's summary says of the model.
    """
    validation = [one.get("validation_accuracy") for one in measured]
    speeds = [one.get("images_per_second") for one in measured]
    return Result(
        role,
        # A teacher of other classes has no accuracy.
        test=[one["test_accuracy"] for one in measured if one["test_accuracy"] is not None],
        validation=[] if None in validation else validation,
        parameters=measured[0].get("parameters"),
        bytes=measured[0].get("bytes"),
        multiply_adds=measured[0].get("multiply_adds"),
        images_per_second=None if None in speeds else float(np.median(speeds)),
    )


def of_method(summaries):
    """Returns the results of what a method trains.

    Args:
        summaries: List of the summaries of its runs.

    Returns:
        A list of `Result`: of the student, of each other learner, and the mean over classifiers
        that teach each other.
    """
    first = summaries[0]
    measured = {"student": [one["student"] for one in summaries]}
    for learner in first["learners"]:
        measured[learner] = [one["learners"][learner] for one in summaries]
    if first.get("peers"):
        # None of the classifiers is the best by test data: their mean is the method's result.
        everyone = [measured["student"], *(measured[peer] for peer in first["peers"])]
        measured["mean"] = [_mean(classifiers) for classifiers in zip(*everyone)]
    return [of_model(role, found) for role, found in measured.items()]


def _mean(classifiers):
    """Returns the mean over the classifiers of a run, as if it were one classifier."""
    columns = {key: [one.get(key) for one in classifiers] for key in _MEASURED}
    return {
        key: None if None in values else float(np.mean(values)) for key, values in columns.items()
    }


def table_rows(name, config, summaries):
    """Returns the rows of a method in the table of `tfkd.compare`.

    Args:
        name: String, the method; `"teacher"` for the training of the teacher.
        config: `ConfigDict` of the comparison.
        summaries: List of the summaries of its runs.

    Returns:
        A list of dictionaries.
    """
    role = "teacher" if name == "teacher" else "student"
    method = ALONE if name == "teacher" else name
    rows = []
    for found in of_method(summaries):
        accuracy, deviation = mean_and_deviation(found.test)
        rows.append(
            {
                "model": config[role].model,
                "method": method if found.role == "student" else f"{method}, {found.role}",
                "role": role,
                "seeds": len(found.test),
                "accuracy": accuracy,
                "accuracy_deviation": deviation or 0.0,
                "validation_accuracy": (
                    mean_and_deviation(found.validation)[0] if found.validation else None
                ),
                "parameters": found.parameters,
                "bytes": found.bytes,
                "images_per_second": found.images_per_second,
                "training_seconds": float(np.sum([one["training_seconds"] for one in summaries])),
            }
        )
    return rows


def table(rows):
    """Returns rows as a Markdown table, which reads well in a terminal.

    Args:
        rows: List of dictionaries, as `table_rows` returns them.
    """
    columns = {
        "": lambda row: row["role"],
        "model": lambda row: row["model"],
        "method": lambda row: row["method"],
        "test accuracy %": lambda row: (
            f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_deviation']:.2f}"
            if row["seeds"] > 1
            else f"{100 * row['accuracy']:.2f}"
        ),
        "seeds": lambda row: str(row["seeds"]),
        "parameters": lambda row: f"{row['parameters']:,.0f}",
        "size on disk": lambda row: f"{row['bytes'] / 1024:,.0f} kB",
        "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    }
    return tables.markdown(
        [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    )


def write(workdir, title, rows, histories, command=None):
    """Writes `table.md`, `table.json` and `curves.png`, and prints the table.

    Args:
        workdir: Path of the directory of several runs.
        title: String, the heading of the table.
        rows: List of dictionaries, as `table_rows` returns them.
        histories: `{label: [logs of each epoch of a run, ...]}`.
        command: String, the command that was run, or None.
    """
    text = table(rows)
    told = f"`{command}`\n\n" if command else ""
    files.write_text(workdir / "table.md", f"# {title}\n\n{told}{text}")
    files.write_text(workdir / "table.json", json.dumps(rows, indent=2) + "\n")
    files.write(workdir / "curves.png", lambda path: plots.curves(path, histories))
    print(f"\n{text}\nWritten: table.md, table.json and curves.png in {workdir}", flush=True)
