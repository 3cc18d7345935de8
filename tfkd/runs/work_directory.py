"""Reads a finished run's artifacts."""

import csv
import pathlib

from ml_collections import ConfigDict

from tfkd import data, files, models
from tfkd.config import NOT_OF_THE_CONFIG
from tfkd.errors import UsageError
from tfkd.methods import ALONE, needs_indices, peers
from tfkd.runs.teacher_images import teacher_preprocessing

#: Files that mark a directory of several runs, and the remedy for each.
_OF_SEVERAL_RUNS = {
    "table.json": "several runs: name the directory of one of them, such as METHOD-seed0.",
    "tuner.json": "a search: train its best_config.json, and name the directory of that run.",
}


class WorkDirectory:
    """A run that is complete, as `tfkd.train` or `tfkd.compare` left it.

    Args:
        path: Path of its work directory.

    Raises:
        UsageError: If there is no such directory, or it holds no run that is complete.

    Example:
    ```python
    run = WorkDirectory("runs/digits-kd")
    run.summary["student"]["test_accuracy"]
    student, data = run.model(), run.data()
    ```
    """

    def __init__(self, path):
        if not path:
            raise UsageError("--workdir=DIR is missing: the directory of a complete run.")
        self.path = pathlib.Path(path)
        if not self.path.is_dir():
            raise UsageError(f"--workdir={path}: there is no such directory.")
        #: Dictionary, the run's `summary.json`.
        self.summary = self._read("summary.json")
        values = {k: v for k, v in self._read("config.json").items() if k not in NOT_OF_THE_CONFIG}
        #: `ConfigDict`, as it was run.
        self.config = ConfigDict(values)

    def data(self, data_dir=None):
        """Returns the `tfkd.data.Data` of the run, splits and normalisation included.

        Args:
            data_dir: Where TFDS keeps its data sets; None for its default.
        """
        data = load_data(self.config, data_dir, verbose=False)
        check_class_names(self.path, data)
        return data

    def models(self):
        """Returns the names of the run's models that classify: `student` first, no teacher."""
        return ["student", *self.summary["learners"]]

    def model(self, name="student"):
        """Returns a trained model.

        Args:
            name: String: `"student"`, `"teacher"`, or another of `models()`.

        Raises:
            UsageError: If the run has no such model, or its file cannot be read.
        """
        path = self.path / f"{name}.keras"
        if not path.exists():
            there = ", ".join(sorted(file.stem for file in self.path.glob("*.keras")))
            raise UsageError(f"{self.path} has no {path.name}; it has {there or 'no model'}.")
        return models.load(path, "the run's own is damaged: train it again in another --workdir")

    def seen_by(self, name, model, data):
        """Returns what a model of the run sees.

        Args:
            name: String, as `model()` takes it.
            model: `keras.Model`, what `model()` returned.
            data: The `tfkd.data.Data` of the run.

        Returns:
            The tuple `(data, layer)`: a `Data` of its images, and the layer that makes its inputs
            of them, or None.
        """
        if name != "teacher":
            return data, None
        return data.of_teacher, teacher_preprocessing(self.config, data, model)

    def history(self):
        """Returns the logs of each epoch, a list of `{name: value}`."""
        return history(self.path)

    def _read(self, name):
        path = self.path / name
        if not path.exists():
            for other, told in _OF_SEVERAL_RUNS.items():
                if (self.path / other).exists():
                    raise UsageError(f"{self.path} holds {told}")
            raise UsageError(
                f"{self.path} has no {name}: it is the directory of no run, or of one that has "
                "not ended; the command that began it goes on."
            )
        try:
            found = files.read_json(path)
            if not isinstance(found, dict):
                raise ValueError(f"{path} holds no dictionary")
        except ValueError as error:
            raise UsageError(f"{path} is damaged: remove it, and run the run's command.") from error
        return found


def history(path):
    """Returns the logs of a run's student as a list of `{name: value}`, one per epoch.

    An epoch lacks the values that are not measured in it.

    Args:
        path: Path of a work directory.
    """
    with open(pathlib.Path(path) / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [{key: float(value) for key, value in row.items() if value} for row in rows]


def load_data(config, data_dir=None, verbose=True):
    """Returns the `tfkd.data.Data` that a config describes.

    Args:
        config: `ConfigDict` of a run.
        data_dir: Where TFDS keeps its data sets; None for its default.
        verbose: Boolean, as `tfkd.data.load` takes it.
    """
    return data.load(
        seed=config.seed,
        data_dir=data_dir,
        # Keras smooths labels that are one-hot. A run of before has no such value.
        one_hot=True if config.get("label_smoothing") else None,
        indices=needs_indices(config),
        verbose=verbose,
        teacher_image_size=teacher_image_size(config),
        **{**config.data.to_dict(), "peer_views": peer_views(config)},
    )


def peer_views(config):
    """Returns how many augmentations of every image a batch has: one for each student, or 1.

    Args:
        config: `ConfigDict` of a run. One of before has no such value.
    """
    return 1 + len(peers(config)) if config.data.get("peer_views") else 1


def teacher_image_size(config):
    """Returns the size that a teacher's own images are cut in; None where it has none.

    Args:
        config: `ConfigDict` of a run. One of before has no such value.
    """
    teaches = config.teacher.get("from_original") and config.method.name != ALONE
    return config.teacher.image_size if teaches else None


def write_class_names(path, names):
    """Writes the names of the classes to a text file, one a line, in the order of the outputs.

    Args:
        path: Path of the file.
        names: Iterable of strings.
    """
    files.write_text(path, "".join(f"{name}\n" for name in names))


def check_class_names(workdir, data):
    """Refuses data whose classes are not those that a run has begun with.

    Args:
        workdir: Path of the run's work directory.
        data: A `tfkd.data.Data`.

    Raises:
        UsageError: If `class_names.txt` is there and has others, or is damaged.
    """
    path = pathlib.Path(workdir) / "class_names.txt"
    if not path.exists():
        return
    try:
        there = tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
    except ValueError as error:
        raise UsageError(f"{path} is damaged: restore it, or choose another --workdir.") from error
    if there != tuple(data.class_names):
        changed = sorted(set(there) ^ set(data.class_names)) or ["their order"]
        raise UsageError(
            f"The classes of data set {data.name!r} are not those of the run (changed: "
            f"{', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}): restore them as in "
            f"{path}, or choose another --workdir."
        )
