"""Atomic writes: a path always holds the old file or the new one."""

import errno
import json
import os
import pathlib
import re
import shutil

import numpy as np

from tfkd.errors import UsageError

#: Part of the name of an incomplete file: `.{process}.partial.{name}`.
_PARTIAL = "partial"


def write(path, save, keep=None):
    """Writes a file atomically: `path` always holds the old file or the new one.

    A directory is replaced as a whole, too, by two renames: between them `path` does not exist.

    Args:
        path: Where the file is to be.
        save: Function that writes to the path it is given, a file or a directory.
        keep: Path to which the file that is there is moved once the new one is whole; None to
            replace it.

    Raises:
        UsageError: If the disk is full or does not let it be written. What was there is then as
            it was.
    """
    path = pathlib.Path(path)
    # Keeps the extension: Keras and NumPy choose the format by it, or append it.
    temporary = path.with_name(f".{os.getpid()}.{_PARTIAL}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(temporary)
            _to_disk(temporary)
            if keep is not None and path.exists():
                os.replace(path, keep)
            if temporary.is_dir() and path.is_dir():
                _replace_directory(temporary, path)
            else:
                os.replace(temporary, path)
        finally:
            _remove(temporary)
    except (OSError, RuntimeError) as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        raise UsageError(
            f"{path} could not be written ({reason}): make room, or make its directory writable; "
            "then the same command goes on. What was there is as it was."
        ) from error


def _to_disk(path):
    """Waits until a file, or all files of a directory, are on the disk."""
    for one in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(one, "rb+") as file:
            os.fsync(file.fileno())


def _replace_directory(temporary, path):
    old = path.with_name(f".{os.getpid()}.{_PARTIAL}.old.{path.name}")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def _remove(path):
    """Removes a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _storage_reason(error):
    """Describes in a few words why a file could not be written; None for other errors."""
    text = str(error)
    # Only Python's own errors have `errno`; others, such as HDF5's, have it in a long message.
    found = re.search(r"errno = (\d+)", text)
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number is None and re.search(r"\d+ requested and \d+ written", text):
        # The message of NumPy for a full disk.
        number = errno.ENOSPC
    if number is None:
        return None
    return os.strerror(number)


def remove_partial(folder):
    """Removes the incomplete files of killed processes in a folder and those below it.

    Args:
        folder: Path; nothing happens where there is none.
    """
    # Lists all paths first: a removed path may be a directory that would be searched next.
    for path in list(pathlib.Path(folder).rglob(f".*.{_PARTIAL}.*")):
        process = path.name.split(".")[1]
        if process.isdecimal() and not _lives(int(process)):
            _remove(path)


def _lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It belongs to another user.
        return True
    return True


def read_json(path):
    """Returns what a JSON file holds.

    Args:
        path: Path of the file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON in UTF-8, or nested deeper than Python reads.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def read_arrays(path):
    """Returns the arrays of an `.npz` file, `{name: array}`; objects in it are not unpickled.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If it is damaged, or holds something else. The checksum of each is read.
    """
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        other = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        if other:
            raise ValueError(f"{other[0]} is no array")
    except Exception as error:
        # The readers of zip files and arrays raise many kinds of exceptions.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(reason) from error
    return arrays


def write_text(path, text):
    """Writes a text file in one piece; see `write`."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
