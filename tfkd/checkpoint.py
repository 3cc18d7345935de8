"""Checkpoints: the whole state of a training run in one file.

Keras' own weight files leave out the state of random generators, without which a resumed run
draws other numbers than an uninterrupted one; and they are written in place, so that a crash
while writing loses both the new checkpoint and the old.
"""

import json
import os
import pathlib
import zipfile

import numpy as np

from tfkd.errors import UsageError


def write(path, save):
    """Writes a file so that `path` is always whole: the old one or the new one.

    Args:
        path: Where the file is to be.
        save: Function that writes to the path it is given.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays the last one: Keras and numpy choose or add it by the name.
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file in one piece; see `write`."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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


def save(path, distiller, state, extra=None):
    """Saves the state of a training run.

    Args:
        path: Where; the file that is there stays until the new one is whole.
        distiller: The compiled `tfkd.Distiller`.
        state: Dictionary of JSON values that belongs to it, such as the epoch.
        extra: `{name: array}` to keep beside it.
    """
    variables = variables_of(distiller)
    arrays = {f"variable/{i}": v.numpy() for i, v in enumerate(variables)}
    arrays |= {f"extra/{name}": array for name, array in (extra or {}).items()}
    header = {"state": state, "names": [v.path for v in variables]}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    write(path, lambda temporary: np.savez(temporary, **arrays))


def restore(path, distiller):
    """Restores what `save` has saved.

    Args:
        path: The file.
        distiller: The compiled `tfkd.Distiller`, made as it was.

    Returns:
        The tuple `(state, extra)`.

    Raises:
        UsageError: If the file is damaged or belongs to other models. Nothing is then changed.
    """
    remedy = "move it away to start again from the beginning"
    try:
        with np.load(path) as archive:
            # Reading each member checks its checksum.
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"Checkpoint {path} is damaged ({reason}): {remedy}.") from error
    variables = variables_of(distiller)
    stored = [arrays.get(f"variable/{i}") for i in range(len(header["names"]))]
    if [v.shape for v in variables] != [array.shape for array in stored]:
        raise UsageError(
            f"Checkpoint {path} belongs to other models ({len(stored)} variables, "
            f"{len(variables)} expected, or of other shapes): {remedy}."
        )
    for variable, array in zip(variables, stored):
        variable.assign(array)
    prefix = "extra/"
    extra = {k[len(prefix) :]: array for k, array in arrays.items() if k.startswith(prefix)}
    return header["state"], extra
