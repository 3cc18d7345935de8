"""Which confusions of classes a method changed, on the test set."""

import dataclasses
import hashlib

import numpy as np
from sklearn.metrics import confusion_matrix

from tfkd import files
from tfkd.errors import UsageError
from tfkd.runs import measure, results, work_directory

#: How many pairs are listed, of how many of them images are shown, and how many images of each.
PAIRS, PICTURED, IMAGES = 8, 4, 3

#: How far an accuracy may be from the one in the summary: another device may tip single images.
_TOLERANCE = 0.005


@dataclasses.dataclass
class Example:
    """A test image for which a confusion came or went.

    Attributes:
        index: Integer, its position in the test set.
        votes: How many models take it for the other class, before and after.
        said: What the first of the models take it for, before and after.
    """

    index: int
    votes: tuple
    said: tuple


@dataclasses.dataclass
class Pair:
    """A confusion, and how often it happens before and after.

    Attributes:
        true: Integer, the class that the images have.
        predicted: Integer, the other class that they are taken for.
        before: Mean and standard deviation of the count over the baseline's models; the deviation
            is None where there is one model.
        after: The same over the students.
        images: List of `Example`.
    """

    true: int
    predicted: int
    before: tuple
    after: tuple
    images: list = dataclasses.field(default_factory=list)

    @property
    def change(self):
        """How much the mean count rose."""
        return self.after[0] - self.before[0]


@dataclasses.dataclass
class Changes:
    """What changed between a baseline and the students of a group.

    Attributes:
        pairs: List of `Pair`, the largest change first.
        corrected: How many test images the student has right and the baseline wrong; the mean
            over all pairs of a baseline's model and a student.
        spoilt: How many it is the other way round.
        models: Numbers of models, those of the baseline and the students.
    """

    pairs: list
    corrected: float
    spoilt: float
    models: tuple


class Predictions:
    """Predictions on the test set, which are kept beside the models.

    Args:
        data_dir: Where TFDS keeps its data sets; None for its default.
    """

    def __init__(self, data_dir=None):
        self._data_dir = data_dir
        self._loaded = {}
        #: Lines on predictions that are not what the summaries say.
        self.warnings = []

    def data(self, run):
        """Returns the `tfkd.data.Data` of a run; the test set is that of all of its section."""
        # Only the test set is read from it, which the seed does not change.
        key = repr((run.config.data, work_directory.teacher_image_size(run.config)))
        if key not in self._loaded:
            self._loaded[key] = run.data(self._data_dir)
        return self._loaded[key]

    def of(self, run, name="student"):
        """Returns what a model of a run predicts.

        They are read from `predictions-{name}.npz` where that is of the model that is there, and
        written there otherwise.

        Args:
            run: A `Run`.
            name: String, the model.

        Returns:
            Arrays of the predicted classes and the labels, in the order of the test set.
        """
        path = run.path / f"predictions-{name}.npz"
        model_path = run.path / f"{name}.keras"
        if not model_path.exists():
            raise UsageError(f"{model_path} is not there.")
        digest = hashlib.sha256(model_path.read_bytes()).hexdigest()
        kept = _read(path, digest)
        if kept is None:
            data, model = self.data(run), run.model(name)
            seen, prepare = run.seen_by(name, model, data)
            logits, labels = measure.predictions(model, seen.test, prepare)
            kept = {"predicted": logits.argmax(-1).astype("int32"), "labels": labels}
            self._keep(path, digest, kept)
        measured = run.summary[name]["test_accuracy"]
        accuracy = float(np.mean(kept["predicted"] == kept["labels"]))
        if abs(accuracy - measured) > _TOLERANCE:
            self.warnings.append(
                f"{model_path} has now {accuracy:.2%} of the test images right, and "
                f"{measured:.2%} when it was trained: the data set, the software or the model "
                "differs."
            )
        return kept["predicted"], kept["labels"]

    def _keep(self, path, digest, kept):
        arrays = {**kept, "model": np.array(digest)}
        try:
            files.write(path, lambda temporary: np.savez_compressed(temporary, **arrays))
        except UsageError as error:
            # Runs may be read from where nothing can be written: that costs time, no more.
            self.warnings.append(str(error))


def _read(path, digest):
    """Returns the predictions of a model, or None where the file is not of it or not whole."""
    try:
        arrays = files.read_arrays(path)
        if str(arrays["model"]) != digest:
            return None
        kept = {name: arrays[name] for name in ("predicted", "labels")}
    except (KeyError, ValueError):  # What a damaged file held is computed again.
        return None
    whole = all(one.ndim == 1 and one.dtype.kind in "iu" for one in kept.values())
    return kept if whole and len(kept["predicted"]) == len(kept["labels"]) else None


def changes(before, after, labels, num_classes):
    """Finds the confusions whose number changed most.

    Args:
        before: List of arrays of predicted classes, one for each model of the baseline.
        after: The same for the students.
        labels: Array of labels.
        num_classes: Integer.

    Returns:
        A `Changes`.
    """
    counts_before, counts_after = (
        np.array([_confusions(labels, one, num_classes) for one in models])
        for models in (before, after)
    )
    change = counts_after.mean(0) - counts_before.mean(0)
    # Ties: the confusion that was more frequent, then the order of the classes.
    order = np.lexsort((-counts_before.mean(0).ravel(), -np.abs(change).ravel().round(9)))
    pairs = []
    for position in order[:PAIRS]:
        true, predicted = divmod(int(position), num_classes)
        if abs(change[true, predicted]) > 1e-9:
            pairs.append(
                Pair(
                    true,
                    predicted,
                    results.mean_and_deviation(counts_before[:, true, predicted]),
                    results.mean_and_deviation(counts_after[:, true, predicted]),
                )
            )
    for pair in pairs[:PICTURED]:
        pair.images = _examples(pair, before, after, labels)
    right_before, right_after = (np.array(models) == labels for models in (before, after))
    flips = [
        (np.sum(~old & new), np.sum(old & ~new)) for old in right_before for new in right_after
    ]
    corrected, spoilt = np.mean(flips, axis=0)
    return Changes(pairs, float(corrected), float(spoilt), (len(before), len(after)))


def _confusions(labels, predicted, num_classes):
    """Counts pairs of a class and another one that it is taken for."""
    counts = confusion_matrix(labels, predicted, labels=range(num_classes))
    np.fill_diagonal(counts, 0)
    return counts


def _examples(pair, before, after, labels):
    """Returns the images for which a pair changed most, in its direction."""
    votes = [np.sum(np.array(models) == pair.predicted, axis=0) for models in (before, after)]
    gain = np.sign(pair.change) * (votes[1] / len(after) - votes[0] / len(before))
    candidates = np.flatnonzero((labels == pair.true) & (gain > 0))
    chosen = candidates[np.argsort(-gain[candidates], kind="stable")][:IMAGES]
    return [
        Example(
            int(index),
            (int(votes[0][index]), int(votes[1][index])),
            (int(before[0][index]), int(after[0][index])),
        )
        for index in chosen
    ]


def test_images(data, indices):
    """Returns test images as they were before normalisation, `{index: uint8 array}`.

    Args:
        data: A `tfkd.data.Data`.
        indices: Iterable of positions in the test set.
    """
    wanted = set(indices)
    images = data.pixels("test").unbatch().take(max(wanted, default=-1) + 1).as_numpy_iterator()
    return {index: image for index, (image, _) in enumerate(images) if index in wanted}
