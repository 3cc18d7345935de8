"""Protects work directories: of another config, foreign, or not writable."""

import hashlib
import json
import os
import zlib

import keras

from tfkd import files, runtime
from tfkd.config import default_config, flatten
from tfkd.errors import UsageError
from tfkd.methods import ALONE

# Values of the config that change nothing in training: a run may go on with others.
NON_TRAINING_KEYS = ("diagnostics", "profile")


# Files that a run would overwrite.
_ARTEFACTS = ("teacher.keras", "student.keras", "metrics.csv", "checkpoint.npz", "summary.json")


def as_json(config, without=()):
    """Returns the config as JSON, with the flag that changes numbers too; devices do not.

    Args:
        config: `ConfigDict` of a run.
        without: Iterable of the names of values to leave out.
    """
    values = {**config.to_dict(), "precision": keras.config.dtype_policy().name}
    values = {name: value for name, value in values.items() if name not in without}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def check_writable(workdir):
    """Refuses a work directory that cannot be made or written, by a `UsageError`."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--workdir={workdir}: {there} is a file; choose another directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"--workdir={workdir}: {there} cannot be written; make it writable, or choose another "
            "directory."
        )


def check_same_config(config, workdir):
    """Refuses a work directory that belongs to another config, by a `UsageError`."""
    changed = [
        f"{key} {there!r} there, {here!r} now"
        for key, (there, here) in differences(config, workdir).items()
    ]
    if changed:
        raise UsageError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}): choose another --workdir, or that config."
        )


def differences(config, workdir):
    """Returns in what a config differs from that of the run in a work directory.

    Args:
        config: `ConfigDict` of a run.
        workdir: Path.

    Returns:
        `{key: (value there, value here)}` of what changes something in training, in the order of
        the keys; empty where there is no run.

    Raises:
        UsageError: If the directory holds files of something else, or its config is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        foreign = [name for name in _ARTEFACTS if (workdir / name).exists()]
        if foreign:
            raise UsageError(
                f"{workdir} holds {', '.join(foreign)}, but of no run of tfkd: choose another "
                "--workdir."
            )
        return {}
    try:
        there = flatten(files.read_json(path))
    except (AttributeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: restore it, or choose another --workdir.") from error
    here = flatten(json.loads(as_json(config)))
    for name in NON_TRAINING_KEYS:
        there.pop(name, None)
        here.pop(name, None)
    # A value that a run of an earlier version lacks had the effect of today's default.
    fresh = _defaults(config)
    there = {key: fresh[key] for key in here.keys() & fresh.keys()} | there
    return {
        key: (there.get(key), here.get(key))
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    }


def digest(config):
    """Returns a string that tells configs apart, and stays as it is where options are added."""
    values, fresh = flatten(json.loads(as_json(config, NON_TRAINING_KEYS))), _defaults(config)
    own = {key: value for key, value in values.items() if key not in fresh or fresh[key] != value}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def _defaults(config):
    """Returns the values of a config that sets nothing, flattened."""
    fresh = default_config(ALONE, config.teacher.model, config.student.model).to_dict()
    return flatten(json.loads(json.dumps(fresh)))


def check_same_files(workdir):
    """Refuses to train with workers that would not resume from the same state."""
    kinds = (".json", ".keras", ".npz")
    files = [path for path in sorted(workdir.rglob("*")) if path.suffix in kinds]
    sizes = [(path.name, path.stat().st_size) for path in files if not path.name.startswith(".")]
    if len(set(runtime.all_gather_int(zlib.crc32(repr(sizes).encode())))) > 1:
        raise UsageError(
            f"The workers see different files in {workdir}: --workdir must be a directory that "
            "they share, or one that no run has used."
        )
