"""Which runs a report is about: they are found, read and grouped."""

import dataclasses
import datetime
import pathlib
import re

import numpy as np

from tfkd.config import flatten, teacher_paths
from tfkd.errors import UsageError
from tfkd.methods import ALONE
from tfkd.runs import work_directory
from tfkd.runs.work_directory import WorkDirectory

#: What `tfkd.compare` and `tfkd.chain` call the work directory of a run.
_OF_SEVERAL_RUNS = re.compile(r".*-seed\d+|stage\d+-.*")

#: Without them a directory is of no run, or of one of another version.
_NEEDED = {
    "summary.json": ("config", "data", "student", "learners", "training_seconds"),
    "the config": ("data", "epochs", "method", "seed", "student", "teacher"),
}


class Run(WorkDirectory):
    """A complete run, with its curves and what tells it from others.

    Args:
        path: Path of its work directory.

    Attributes:
        logs: List of the logs of each epoch, `{name: value}`.
        seed: Integer.
        settings: The whole config but the seed, `{"data.name": value}`.
        ended: When, as a `datetime`.

    Raises:
        UsageError: If it holds no run that is complete.
    """

    def __init__(self, path):
        super().__init__(path)
        for name, tree in (("summary.json", self.summary), ("the config", self.config)):
            missing = [key for key in _NEEDED[name] if key not in tree]
            if missing:
                raise UsageError(
                    f"{self.path}: {name} has no {', '.join(missing)}; it is of no run of this "
                    "version of tfkd."
                )
        self.logs = _history(self.path)
        self.seed = self.config.seed
        self.settings = flatten(self.summary["config"])
        self.settings.pop("seed")
        ended = (self.path / "summary.json").stat().st_mtime
        self.ended = datetime.datetime.fromtimestamp(ended, datetime.UTC)

    def own_teacher(self):
        """Returns where the teacher was trained, as `(folder, logs)`; None where that is gone.

        The teacher of this run, or one that was given as the student of another run: that of a
        comparison lies beside its runs, also after the comparison was moved.
        """
        if "teacher" not in self.summary:
            return None
        given = self.config.teacher.path
        if not given:
            folder = self.path / "teacher"
            try:
                return folder, _history(folder)
            except UsageError:
                return None
        given = pathlib.Path(given)
        for folder in (given.parent, self.path.parent / given.parent.name):
            try:
                trained = WorkDirectory(folder).summary["student"]
                logs = _history(folder)
            except (UsageError, KeyError):
                continue
            # A file of that name may have been trained again, or be another's.
            same = ("parameters", "test_accuracy")
            if all(trained[key] == self.summary["teacher"][key] for key in same):
                return folder, logs
        return None

    def teacher_measured(self):
        """Returns what is known of the teacher, as the summary has it of a student, or None."""
        if "teacher" not in self.summary:
            return None
        found, trained = dict(self.summary["teacher"]), self.own_teacher()
        if trained is not None:
            folder, logs = trained
            # One that was trained for this run is kept as it was after its last epoch.
            found["validation_accuracy"] = logs[-1].get("val_accuracy")
            if self.config.teacher.path:
                measured = WorkDirectory(folder).summary["student"]
                found["validation_accuracy"] = measured["validation_accuracy"]
        return found

    def teacher_name(self):
        """Returns the kind of the teacher, or the file that it was given as."""
        trained = self.own_teacher() if self.config.teacher.path else None
        if trained is not None:
            return WorkDirectory(trained[0]).config.student.model
        names = [path.name for path in teacher_paths(self.config)]
        return self.config.teacher.model or "+".join(names)


@dataclasses.dataclass
class Group:
    """Runs of one config with several seeds.

    Attributes:
        runs: List of `Run`.
        label: String that tells it from the other groups on the page.
    """

    runs: list
    label: str = ""

    def __post_init__(self):
        self.first = self.runs[0]
        self.config = self.first.config
        self.method = self.config.method.name
        self.label = self.label or self.method

    @property
    def is_alone(self):
        """Whether the method is the baseline of every comparison."""
        return self.method == ALONE

    def values(self, log):
        """Returns the values of a log, an array `(runs, epochs)`; None where it is not there."""
        return values([run.logs for run in self.runs], log)


@dataclasses.dataclass
class Section:
    """What is compared with each other: the groups of one data set.

    Attributes:
        name: String, the data set.
        groups: List of `Group`.
    """

    name: str
    groups: list

    def baseline(self, group):
        """Returns the group that trained the same student on the same data alone, or None."""
        if group.is_alone:
            return None
        alone = [
            other
            for other in self.groups
            if other.is_alone
            and other.config.data == group.config.data
            and other.config.student == group.config.student
        ]
        if not alone:
            return None
        return min(alone, key=lambda other: len(_differing([group, other])))


def values(histories, log):
    """Returns the values of a log as an array `(runs, epochs)`; None where it is not there.

    Args:
        histories: List of the logs of each epoch, for each run.
        log: String.
    """
    if not all(epoch.keys() >= {log} for history in histories for epoch in history):
        return None
    return np.array([[epoch[log] for epoch in history] for history in histories])


def find(paths):
    """Finds the runs in some directories.

    Args:
        paths: Paths of work directories, and of directories of `tfkd.compare` and `tfkd.chain`.

    Returns:
        The tuple `(runs, left_out)`: a list of `Run`, and a list of lines that say why a
        directory is not among them.

    Raises:
        UsageError: If a directory does not exist, or none of them holds a complete run.
    """
    runs, left_out, seen = {}, [], set()
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            raise UsageError(f"--workdir={path}: there is no such directory.")
        for folder in _runs_in(path):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                run = Run(folder)
            except UsageError as error:
                left_out.append(str(error))
                continue
            # A copy counted again would make the deviation over the seeds smaller than it is.
            first = runs.setdefault((_key(run), run.seed), run)
            if first is not run:
                left_out.append(f"{folder} has the config and the seed of {first.path}.")
    if not runs:
        more = f" ({len(left_out) - 1} more are left out as well.)" if left_out[1:] else ""
        raise UsageError(f"There is no complete run to report: {left_out[0]}{more}")
    return list(runs.values()), left_out


def _runs_in(path):
    """Returns the work directories that a directory stands for: its own, or those in it."""
    if (path / "config.json").exists():
        return [path]
    children = [
        one for one in path.iterdir() if one.is_dir() and _OF_SEVERAL_RUNS.fullmatch(one.name)
    ]
    # Younger ones last, as the methods were named: the folders' names alone would sort them.
    return sorted(children, key=_begun) or [path]


def _begun(folder):
    path = folder / "config.json"
    return (path.stat().st_mtime_ns if path.exists() else float("inf"), folder.name)


def group(runs):
    """Groups runs by everything in their configs but the seed, and those by data set.

    Args:
        runs: List of `Run`.

    Returns:
        A list of `Section`, in the order of the runs; baselines come first.
    """
    same = {}
    for run in runs:
        same.setdefault(_key(run), []).append(run)
    groups = [Group(sorted(found, key=lambda run: run.seed)) for found in same.values()]
    sections = {}
    for one in groups:
        size = one.config.data.get("image_size")
        name = one.config.data.name + (f" at {size}" if size else "")
        sections.setdefault(name, []).append(one)
    found = []
    for name, members in sections.items():
        _set_labels(members)
        found.append(Section(name, sorted(members, key=lambda one: not one.is_alone)))
    return found


def _key(run):
    """Returns what is equal for runs of one group."""
    return repr(sorted(run.settings.items()))


def _set_labels(groups):
    """Gives the groups of one method labels that tell them apart."""
    for method in {one.method for one in groups}:
        alike = [one for one in groups if one.method == method]
        if len(alike) == 1:
            continue
        keys = _differing(alike)
        for one in alike:
            told = [f"{key}={one.first.settings.get(key)}" for key in keys[:3]]
            one.label = f"{method} ({', '.join(told)}{', ...' if keys[3:] else ''})"
        labels = [one.label for one in alike]
        for number, one in enumerate(alike, 1):
            if labels.count(one.label) > 1:
                one.label = f"{one.label} no. {number}"


def differences(groups):
    """Returns the settings in which groups differ, beside what belongs to their methods.

    Args:
        groups: List of `Group`.

    Returns:
        `{"data.name": [value of each group, ...]}`.
    """
    return {
        key: [one.first.settings.get(key) for one in groups]
        for key in _differing(groups)
        # The defaults that the config file has for every method.
        if not key.startswith(("method.", "settings."))
    }


def _differing(groups):
    keys = dict.fromkeys(key for one in groups for key in one.first.settings)
    return [key for key in keys if len({repr(one.first.settings.get(key)) for one in groups}) > 1]


def _history(folder):
    path = folder / "metrics.csv"
    try:
        logs = work_directory.history(folder)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no metrics.csv: it is of no complete run.") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: its cells must be numbers.") from error
    if not logs:
        raise UsageError(f"{path} has no epoch.")
    return logs
