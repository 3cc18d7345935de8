"""The accuracies of a complete run's models, measured again."""

import math

from tfkd import tables
from tfkd.errors import UsageError, unknown
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
        The tuple `(scores, class_names)`: `{model: scores}`, those of `tfkd.runs.measure.scores`,
        and the names of the classes.

    Raises:
        UsageError: If the run is not complete, or has no such model or split.

    Example:
    ```python
    scores, _ = tfkd.runs.evaluation.evaluate("runs/digits-kd", model="student")
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
    if not data.sizes[split]:
        raise UsageError(f"{run.path} was trained without a validation split: use --split=test.")
    scores = {}
    for name, one in models.items():
        if one.output_shape[-1] != data.num_classes:
            raise UsageError(
                f"Model {name!r} of {run.path} has {one.output_shape[-1]} classes, and the data "
                f"{data.num_classes}: it cannot be measured on them."
            )
        seen, prepare = run.seen_by(name, one, data)
        scores[name] = measure.scores(*measure.predictions(one, getattr(seen, split), prepare))
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
