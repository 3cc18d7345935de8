"""Checkpoints: the whole state of a training run in one file.

Keras' own weight files leave out the state of random generators, without which a resumed run
draws other numbers than an uninterrupted one; and they are written in place, so that a crash
while writing loses both the new checkpoint and the old.
"""

import dataclasses
import json
import os
import pathlib
import re

import numpy as np

from tfkd import files
from tfkd.errors import UsageError


def variables_of(distiller):
    """Returns every variable that training changes: weights, random state, optimizers.

    Args:
        distiller: A compiled `tfkd.Distiller`.

    Returns:
        A list of variables, without the teacher's and without metrics'.
    """
    metrics = {id(variable) for variable in distiller.metrics_variables}
    found = [variable for variable in distiller.variables if id(variable) not in metrics]
    distiller.build_optimizers()
    for optimizer, _ in distiller.optimizers().values():
        found.extend(optimizer.variables)
    return found


def read(distiller):
    """Copies what `variables_of` returns from the device.

    Args:
        distiller: A compiled `tfkd.Distiller`.

    Returns:
        A list of pairs `(variable, array)`.
    """
    return [(variable, variable.numpy()) for variable in variables_of(distiller)]


def not_finite(distiller, pairs=None):
    """Returns the path of the first variable with a value that is NaN or infinite, or None.

    Args:
        distiller: A compiled `tfkd.Distiller`.
        pairs: What `read` returned of it; None reads it now.
    """
    for variable, array in pairs or read(distiller):
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            return variable.path
    return None


def previous(path):
    """Returns where the checkpoint before the one at `path` is kept."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save(path, distiller, state, extra=None, run="", pairs=None):
    """Saves the state of a training run, and keeps the one before beside it.

    Args:
        path: Where; the file that is there stays until the new one is whole, and is then the one
            at `previous(path)`.
        distiller: The compiled `tfkd.Distiller`.
        state: Dictionary of JSON values that belongs to it, such as the epoch.
        extra: `{name: array}` to keep beside it.
        run: String that tells this run from others whose models are alike.
        pairs: What `read` returned of the distiller; None reads it now.

    Raises:
        UsageError: If the file cannot be written.
    """
    pairs = pairs or read(distiller)
    arrays = {f"variable/{i}": array for i, (_, array) in enumerate(pairs)}
    arrays |= {f"extra/{name}": array for name, array in (extra or {}).items()}
    header = {"run": run, "state": state, "names": [variable.path for variable, _ in pairs]}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    files.write(path, lambda temporary: np.savez(temporary, **arrays), keep=previous(path))


@dataclasses.dataclass
class Restored:
    """What `restore` found.

    Attributes:
        state: Dictionary, as `save` was given it.
        extra: `{name: array}`, as `save` was given it.
        path: Path of the file that it was in.
        warning: String, which file was skipped and why; None where none was.
    """

    state: dict
    extra: dict
    path: pathlib.Path
    warning: str | None


def restore(path, distiller, run=""):
    """Restores what `save` has saved last, or, where that file is unusable, the time before.

    An unusable file is then moved aside, to `{name}.damaged.npz`, so that it does not take the
    place of the good one when the next checkpoint is written.

    Args:
        path: The file.
        distiller: The compiled `tfkd.Distiller`, made as it was.
        run: As `save` was given it.

    Returns:
        A `Restored`; None where there is neither file.

    Raises:
        UsageError: If there are files, and none of them is usable: they are damaged, or belong
            to other models or another run. Nothing is then changed.
    """
    path = pathlib.Path(path)
    there = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    variables = variables_of(distiller)
    reasons = []
    for candidate in there:
        try:
            state, arrays, extra = _load(candidate, variables, run)
        except UsageError as error:
            reasons.append(str(error))
            continue
        for variable, array in zip(variables, arrays):
            variable.assign(array)
        warning = None
        if reasons:
            aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
            os.replace(path, aside)
            warning = f"{reasons[0]}; moved to {aside.name}, going on from {candidate.name}."
        return Restored(state, extra, candidate, warning)
    if reasons:
        them = "them" if len(reasons) > 1 else "it"
        raise UsageError(
            f"{', and '.join(reasons)}: move {them} away to start again from the beginning."
        )
    return None


def change_run(path, before, after):
    """Lets a checkpoint belong to another run, which goes on with what this one has done.

    Args:
        path: Path of the file; one that is damaged stays as it is, for `restore` to tell.
        before: String in what `save` was given as `run`.
        after: String to take its place.
    """
    try:
        arrays = files.read_arrays(path)
        header = json.loads(arrays["header"].tobytes())
        header["run"] = header["run"].replace(before, after)
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return
    files.write(path, lambda temporary: np.savez(temporary, **arrays))


def _difference(names, stored, variables):
    """Describes how stored arrays differ from the variables; None where they match.

    Args:
        names: List of the stored paths.
        stored: List of arrays.
        variables: List of variables.
    """
    if len(stored) != len(variables):
        return f"{len(stored)} variables, {len(variables)} expected"
    paths = [variable.path for variable in variables]
    for name, path, array, variable in zip(names, paths, stored, variables):
        if array.shape != variable.shape:
            return f"{name} has shape {array.shape}, {path} {variable.shape}"
    for name, path, (kind, place), (kind_here, place_here) in zip(
        names, paths, _places(names), _places(paths)
    ):
        if kind != kind_here:
            return f"{name} stands where {path} is expected"
        if place != place_here:
            return f"{name} stands where {path} is expected, in another order"
    return None


def _places(paths):
    """Returns `(kind, place)` of each path, which do not change when Keras renumbers names.

    Keras appends a number to the names that it gives, and counts on through a process: conv2d_3
    is conv2d_40 after other models. So the kind is the path without the numbers, and the place is
    their rank among the paths of one kind.
    """
    # In the middle of a part stand the numbers of layers in the names of optimizers' variables,
    # which come in the order of the layers'.
    kinds = [re.sub(r"_\d+(?=[/_]|$)", "", path) for path in paths]
    numbers = [
        tuple(int(found[1]) if (found := re.search(r"_(\d+)$", part)) else 0 for part in parts)
        for parts in (path.split("/") for path in paths)
    ]
    found = {kind: set() for kind in kinds}
    for kind, number in zip(kinds, numbers):
        found[kind].add(number)
    order = {kind: sorted(of_kind) for kind, of_kind in found.items()}
    return [(kind, order[kind].index(number)) for kind, number in zip(kinds, numbers)]


def _load(path, variables, run):
    """Reads a checkpoint.

    Returns:
        The tuple `(state, arrays, extra)`, with an array for each variable.

    Raises:
        UsageError: If it is damaged, or of other variables or another run.
    """
    try:
        arrays = files.read_arrays(path)
        header = json.loads(arrays.pop("header").tobytes())
        stored = [arrays.pop(f"variable/{i}") for i in range(len(header["names"]))]
        state, found = dict(header["state"]), header["run"]
        if not all(isinstance(name, str) for name in header["names"]):
            raise ValueError("names that are no text")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UsageError(f"Checkpoint {path} is damaged ({reason})") from error
    difference = _difference(header["names"], stored, variables)
    if difference is not None:
        raise UsageError(f"Checkpoint {path} belongs to other models ({difference})")
    if found != run:
        raise UsageError(f"Checkpoint {path} belongs to another run ({found!r}, not {run!r})")
    prefix = "extra/"
    return state, stored, {name[len(prefix) :]: array for name, array in arrays.items()}
