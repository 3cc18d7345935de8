"""Reads the golden numbers: `TFKD_GOLDEN` names the folder, `tests/golden` by default."""

import os
import pathlib

import numpy as np

FOLDER = pathlib.Path(os.environ.get("TFKD_GOLDEN", pathlib.Path(__file__).parent / "golden"))


def load(file):
    """Returns the arrays of one golden file as `{key: array}`."""
    with np.load(FOLDER / file) as archive:
        return {key: archive[key] for key in archive.files}


def cases(file, prefix="", depth=1):
    """Returns `{case: {key: array}}` of a file whose keys are `CASE/key`.

    With `depth=2` a case is named by two parts, `ID/CASE/key`.
    """
    grouped = {}
    for key, array in load(file).items():
        parts = key.split("/")
        case, rest = "/".join(parts[:depth]), "/".join(parts[depth:])
        if case.startswith(prefix):
            grouped.setdefault(case, {})[rest] = array
    return grouped


def files(pattern):
    """Returns the names of the golden files that match a glob pattern."""
    return sorted(path.name for path in FOLDER.glob(pattern))
