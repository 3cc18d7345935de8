"""Compares methods over several seeds, with one teacher and one schedule for all.

    python -m tfkd.compare --config=configs/digits.py --methods=alone,kd --workdir=runs/digits

Every single run is a work directory of its own, so an interrupted comparison resumes, and a
comparison of more methods or seeds reuses what is there. Writes `table.md`, `table.json` and
`curves.png` of the methods named, with the mean and the standard deviation over the seeds.
"""

import json
import pathlib

import numpy as np
from absl import flags

from tfkd import command_line, files, plots, tables
from tfkd.methods import ALONE, split_at_commas
from tfkd.runs import comparison

flags.adopt_module_key_flags(command_line)
flags.DEFINE_string(
    "methods",
    f"{ALONE},kd",
    "Methods, separated by commas: alone, kd, kd+at, ackd:attention=logit.",
)
flags.DEFINE_integer("seeds", 3, "How many seeds, from that of the config on.", 1)


def compare(config, workdir, methods, seeds, command=None):
    """Trains a teacher once and the student by each method with each seed.

    Args:
        config: `ConfigDict` of a run. What it says of its method holds for that method; the
            others have their defaults.
        workdir: Path of the directory of the comparison.
        methods: List of methods, as in configs.
        seeds: Integer, the number of seeds.
        command: String, the command that was run, for the table.

    Returns:
        The rows of the table, a list of dictionaries. Accuracies are those of the test set, with
        the standard deviation over the seeds (that of a sample).
    """
    workdir = pathlib.Path(workdir)
    runs, histories = comparison.run_all(config, workdir, methods, seeds, command)
    rows = [row for name, results in runs.items() for row in _rows(name, config, results)]
    table = _table(rows)
    heading = f"# {config.student.model} on {config.data.name}\n\n"
    text = heading + (f"`{command}`\n\n" if command else "") + table
    files.write_text(workdir / "table.md", text)
    files.write_text(workdir / "table.json", json.dumps(rows, indent=2) + "\n")
    files.write(workdir / "curves.png", lambda path: plots.curves(path, histories))
    print(f"\n{table}\nWritten: table.md, table.json and curves.png in {workdir}", flush=True)
    return rows


def _rows(name, config, results):
    """The lines of a method: its student's, and those of what else it trains."""
    rows = [_row(name, config, results, [result["student"] for result in results])]
    for learner in results[0]["learners"]:
        found = [result["learners"][learner] for result in results]
        rows.append(_row(f"{name}, {learner}", config, results, found))
    if results[0]["peers"]:
        found = [_mean_classifier(result) for result in results]
        rows.append(_row(f"{name}, mean", config, results, found))
    return rows


def _mean_classifier(result):
    """The mean over the classifiers of a run, as if it were one: none is the best by test data."""
    everyone = [result["student"], *(result["learners"][peer] for peer in result["peers"])]
    return {
        key: None if None in (values := [one[key] for one in everyone]) else float(np.mean(values))
        for key in _MEASURED
    }


_MEASURED = (
    "test_accuracy",
    "validation_accuracy",
    "parameters",
    "bytes",
    "images_per_second",
)


def _row(name, config, results, students):
    """One line of the table: the mean over the seeds."""
    accuracy = [student["test_accuracy"] for student in students]
    validation = [student["validation_accuracy"] for student in students]
    return {
        "model": config.teacher.model if name == "teacher" else config.student.model,
        "method": ALONE if name == "teacher" else name,
        "role": "teacher" if name == "teacher" else "student",
        "seeds": len(students),
        "accuracy": float(np.mean(accuracy)),
        "accuracy_deviation": float(np.std(accuracy, ddof=min(1, len(accuracy) - 1))),
        "validation_accuracy": None if None in validation else float(np.mean(validation)),
        "parameters": students[0]["parameters"],
        "bytes": students[0]["bytes"],
        "images_per_second": float(np.median([s["images_per_second"] for s in students])),
        "training_seconds": float(np.sum([result["training_seconds"] for result in results])),
    }


def _table(rows):
    """The rows as a Markdown table, which a terminal shows as well."""
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


def main(config):
    """Runs what the flags say."""
    compare(
        config,
        flags.FLAGS.workdir,
        split_at_commas(flags.FLAGS.methods),
        flags.FLAGS.seeds,
        command=command_line.command("compare"),
    )


if __name__ == "__main__":
    command_line.main(main)
