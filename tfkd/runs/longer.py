"""Makes a run longer, where that is what as many epochs from the start would have been."""

import copy

import numpy as np

from tfkd import files
from tfkd.distillers import Distiller
from tfkd.errors import UsageError
from tfkd.runs import checkpoint, guard
from tfkd.runs.assemble import optimizer_steps, schedule


def shorter(config, workdir):
    """Returns the config of the run in a work directory that another config makes longer.

    Args:
        config: `ConfigDict` of the longer run.
        workdir: Path.

    Returns:
        A `ConfigDict`; None where there is no run, or its config differs in anything but fewer
        epochs.
    """
    changed = guard.differences(config, workdir)
    before = changed.get("epochs", (None, None))[0]
    if list(changed) != ["epochs"] or not isinstance(before, int) or before >= config.epochs:
        return None
    found = copy.deepcopy(config)
    found.epochs = before
    return found


def go_on(before, config, data, distiller, workdir):
    """Lets a longer run have the checkpoints of a shorter one; its config takes the other's place.

    Args:
        before: `ConfigDict`, what `shorter` returned.
        config: `ConfigDict` of the longer run.
        data: Its `tfkd.data.Data`.
        distiller: Its compiled `tfkd.Distiller`.
        workdir: Path of the work directory.

    Raises:
        UsageError: If the longer run would have been another from its first epochs on. Nothing is
            then changed.
    """
    reason = _difference(before, config, data, distiller)
    if reason is not None:
        student, begin = workdir / "student.keras", ""
        if student.exists():
            begin = f"; with --config.student.weights={student} it begins with this student"
        raise UsageError(
            f"{workdir} holds a run of {before.epochs} epochs, and one of {config.epochs} is no "
            f"continuation of it: {reason}. Choose another --workdir for the longer one{begin}."
        )
    old, new = guard.digest(before), guard.digest(config)
    for path in sorted(workdir.rglob("checkpoint*.npz")):
        checkpoint.change_run(path, old, new)
    files.write_text(workdir / "config.json", guard.as_json(config))


def _difference(before, config, data, distiller):
    """Returns in what the longer run begins otherwise, a clause; None where in nothing."""
    steps = np.arange(optimizer_steps(before, data, distiller, before.epochs))
    rates = [
        schedule(one, data, distiller, one.epochs, one.optimizer.learning_rate)
        for one in (before, config)
    ]
    first, second = (np.array(rate(steps)) if callable(rate) else rate for rate in rates)
    if not np.array_equal(first, second):
        return f"its learning rate (schedule {config.schedule.name!r}) is planned over all epochs"
    if type(distiller).start_training is not Distiller.start_training:
        return f"method {config.method.name!r} plans over all epochs"
    return None
