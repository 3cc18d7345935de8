"""Evaluates the models of a complete run again, and says what they get right.

    python -m tfkd.evaluate --workdir=runs/digits-kd [--split=validation] [--model=student]

Prints one table: a column for each model, with its accuracy, top-5 accuracy where there are more
than five classes, cross-entropy, and accuracy on the images of each class. Writes nothing.
"""

import math

from absl import flags

from tfkd import command_line, tables
from tfkd.errors import UsageError, check_no_arguments, unknown
from tfkd.runs import measure
from tfkd.runs.work_directory import WorkDirectory

#: What models can be evaluated on.
SPLITS = ("test", "validation")


def evaluate(workdir, split="test", model=None, data_dir=None):
    """Evaluates models of a complete run.

    Args:
        workdir: Path of its work directory.
        split: `"test"` or `"validation"`.
        model: String: `"student"`, `"teacher"` or another model of the run; None for all.
        data_dir: Where TFDS keeps its data sets; None for its default.

    Returns:
        The tuple `(scores, class_names)`: `{model: scores}`, those of `tfkd.runs.measure.scores`, and
        the names of the classes.

    Raises:
        UsageError: If the run is not complete, or has no such model or split.

    Example:
    ```python
    scores, _ = evaluate("runs/digits-kd", model="student")
    scores["student"]["accuracy"]
    ```
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    run = WorkDirectory(workdir)
    teaches = run.summary.get("teacher", {"test_accuracy": None})["test_accuracy"] is not None
    names = [model] if model else [*run.models(), *["teacher"] * teaches]
    models = {name: run.model(name) for name in names}
    data = run.data(data_dir)
    dataset = data.test if split == "test" else data.validation
    if dataset is None:
        raise UsageError(f"{run.path} was trained without a validation split: use --split=test.")
    scores = {}
    for name, one in models.items():
        if one.output_shape[-1] != data.num_classes:
            raise UsageError(
                f"Model {name!r} of {run.path} has {one.output_shape[-1]} classes, and the data "
                f"{data.num_classes}: it cannot be measured on them."
            )
        prepare = run.preprocessing(name, one, data)
        scores[name] = measure.scores(*measure.predictions(one, dataset, prepare))
    return scores, data.class_names


def table(scores, class_names):
    """Returns what `evaluate` has found as a Markdown table."""
    first = next(iter(scores.values()))
    rows = [["", *scores], ["accuracy %", *(_percent(one["accuracy"]) for one in scores.values())]]
    if first["top5_accuracy"] is not None:
        rows.append(["top-5 accuracy %", *(_percent(s["top5_accuracy"]) for s in scores.values())])
    rows.append(["cross-entropy", *(f"{one['cross_entropy']:.4f}" for one in scores.values())])
    for position, name in enumerate(class_names):
        found = (one["class_accuracy"][position] for one in scores.values())
        rows.append([f"accuracy %, {name}", *map(_percent, found)])
    return tables.markdown(rows)


def _percent(share):
    return "no image" if math.isnan(share) else f"{100 * share:.2f}"


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)
    flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.")
    flags.DEFINE_string(
        "model", None, "Model of the run: student, teacher, ensemble, ...; all if not given."
    )


def main(rest):
    """Runs what the flags say."""
    check_no_arguments(rest)
    values = flags.FLAGS
    print(table(*evaluate(values.workdir, values.split, values.model, values.data_dir)), end="")


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
