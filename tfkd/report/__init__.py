"""Reports: what runs did and what came of it, on one page that needs nothing else.

    python -m tfkd.report --workdir=runs/digits-kd

The page is one HTML file: results, curves, the confusions of classes that the method changed, its
pictures, and how to repeat it. Several work directories, or that of a `tfkd.compare`, make a
comparison.
"""

import pathlib

from tfkd import files
from tfkd.errors import UsageError
from tfkd.report import page, runs

__all__ = ["report"]


def report(paths, output=None, data_dir=None, confusions=True):
    """Writes the page of some runs.

    Predictions on the test set are kept in the work directories, as `predictions-student.npz`.

    Args:
        paths: List of paths: work directories of complete runs, and directories of `tfkd.compare`,
            which stand for their runs. Runs that differ in the seed alone are one group.
        output: Path of the page; None for `report.html` in the first directory.
        data_dir: Where TFDS keeps its data sets; None for its default.
        confusions: Boolean, whether to compare what the models predict on the test set, for which
            it and the models are read.

    Returns:
        The path of the page.

    Raises:
        UsageError: If a directory does not exist, none holds a complete run, or the page cannot
            be written.

    Example:
    ```python
    report(["runs/digits-alone", "runs/digits-kd"], output="digits.html")
    ```
    """
    output = pathlib.Path(output) if output else pathlib.Path(paths[0]) / "report.html"
    if output.is_dir():
        raise UsageError(f"--output={output} is a directory: name a file, such as report.html.")
    found, left_out = runs.find(paths)
    for line in left_out:
        print(f"left out: {line}", flush=True)
    html = page.render(runs.group(found), left_out, data_dir, confusions)
    files.write_text(output, html)
    return output
