"""Tables of benchmarks as data, and the Markdown made of them.

A measurement is a JSON file: `{"name", "title", "columns": {heading: format}, "rows": [[cell, ...],
...]}`, and of what it was measured with, as far as it is known: `command`, `commit`, `machine` and
`versions`. A format is one of Python's for numbers, such as `".3f"`; an empty one writes a cell as
it is, and in the first column as code.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import keras
import tensorflow as tf

from tfkd import files, runtime, tables


def write(path, title, columns, rows):
    """Writes a measurement of this process: its command, commit, machine and versions are added.

    Args:
        path: Path of the JSON file, whose stem is the measurement's name.
        title: String, what was measured.
        columns: `{heading: format}`.
        rows: List of lists of strings, numbers or None, as many in each as there are columns.
    """
    path = pathlib.Path(path)
    devices = runtime.describe_devices().removeprefix("devices: ")
    measurement = {
        "name": path.stem,
        "title": title,
        "command": f"python {shlex.join(sys.argv)}",
        "commit": commit(),
        "machine": f"{devices}, {os.cpu_count()} cores",
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "columns": columns,
    }
    # One row per line, so that a change shows as the lines of its rows.
    head = json.dumps(measurement, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    files.write_text(path, f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')


def commit():
    """Returns the commit of the current directory, None where it is no Git repository."""
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def render(measurement):
    """Returns a measurement as Markdown: what it was measured with, and its table.

    Example:
    ```python
    measurement = {"title": "Steps", "columns": {"method": "", "ms": ".1f"}, "rows": [["kd", 2.04]]}
    print(measurements.render(measurement))
    ```
    """
    known = [f"`{measurement['command']}`"] if measurement.get("command") else []
    known += [measurement["machine"]] if measurement.get("machine") else []
    known += [" ".join(pair) for pair in measurement.get("versions", {}).items()]
    known += [f"commit {measurement['commit']}"] if measurement.get("commit") else []
    formats = list(measurement["columns"].values())
    cells = [[_cell(*pair) for pair in zip(row, formats)] for row in measurement["rows"]]
    named = [[f"`{first}`", *others] for first, *others in cells]
    table = tables.markdown([list(measurement["columns"]), *named])
    by = f" ({'; '.join(known)})" if known else ""
    return f"{measurement['title']}{by}:\n\n{table}"


def _cell(value, form):
    return "" if value is None else format(value, form)
