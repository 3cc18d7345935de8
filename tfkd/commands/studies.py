"""Keeps the results of studies as data, and writes the tables and pictures of the pages from them.

    python -m tfkd.studies docs/results/cifar100-10k.json --workdir=runs/cifar100-10k/resnet8

adds the finished runs of a comparison (or, of a directory of `tfkd.train`, a teacher) to the study,
draws a picture of each student beside it, and writes the tables into the Markdown files of
`--pages` between `<!-- study NAME -->` and `<!-- end of study NAME -->`. Without `--workdir` it
writes tables and pictures again, of studies and of what benchmarks have measured:

    python -m tfkd.studies docs/results/*.json
"""

import functools
import pathlib

from absl import flags

from tfkd import command_line, files
from tfkd.errors import UsageError
from tfkd.runs import measurements, studies


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    flags.declare_key_flag("workdir")
    flags.DEFINE_list("pages", ["README.md", "docs"], "Markdown files, or directories of them.")
    flags.DEFINE_string(
        "commit", None, "Commit of the code that ran; that of the current directory if not given."
    )
    flags.DEFINE_bool(
        "speeds", True, "Whether seconds and images/s count: not where other jobs ran beside."
    )


def main(rest):
    """Runs what the flags say."""
    if not rest:
        raise UsageError("Name a study: tfkd studies docs/results/cifar100-10k.json")
    values = flags.FLAGS
    if values.workdir and len(rest) > 1:
        raise UsageError("--workdir adds runs to one study; name only that.")
    pages = [page for path in values.pages for page in _markdown(pathlib.Path(path))]
    for path in map(pathlib.Path, rest):
        study = studies.read(path)
        if values.workdir:
            found = studies.add(study, values.workdir, values.commit or _commit(), values.speeds)
            studies.write(path, study)
            print(f"{path}: {found} finished runs of {values.workdir}")
        for student in studies.students(study):
            drawn = path.with_name(f"{study['name']}_{student}.png")
            files.write(drawn, functools.partial(studies.picture, study=study, student=student))
            print(f"written: {drawn}")
        for page in studies.write_pages(pages, study):
            print(f"written: {page}")
        print(studies.render(study), end="")


def _markdown(path):
    return sorted(path.glob("**/*.md")) if path.is_dir() else [path] if path.exists() else []


def _commit():
    commit = measurements.commit()
    if commit is None:
        raise UsageError("--commit is missing: this directory is no Git repository.")
    return commit


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
