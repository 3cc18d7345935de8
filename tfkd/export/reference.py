"""The reference of an exported file: the original model on the same images."""

import functools

import numpy as np
import scipy.special

from tfkd.errors import UsageError
from tfkd.export.formats import _threads
from tfkd.runs import measure

#: How far an output of a float export may be from the original's, as a share of the largest. On a
#: CPU it is below 1e-5; GPUs multiply with a mantissa of ten bits (TF32) unless told otherwise.
TOLERANCE = 0.01


class Reference:
    """The outputs of the original for all test images, which exported models are compared with.

    Args:
        model, data, preprocessing, probabilities: As `export` takes them.
    """

    def __init__(self, model, data, preprocessing, probabilities):
        forward = measure.forward(model)
        prepare = preprocessing or (lambda images: images)
        self._run = lambda images: forward(prepare(images)).numpy()
        self._images, self._pixels = data.test, data.pixels("test")
        self.labels = np.concatenate([labels for _, labels in self._pixels])
        self.outputs = _outputs(self._run, self._images)
        if probabilities:
            self.outputs = scipy.special.softmax(self.outputs, axis=-1)

    def compare(self, run):
        """Returns the accuracy of an exported model, and how far its outputs are from the original.

        Args:
            run: Function of uint8 images that returns outputs as an array.
        """
        outputs = _outputs(run, self._pixels)
        equal = outputs.argmax(-1) == self.outputs.argmax(-1)
        return {
            "test_accuracy": self.accuracy(outputs),
            "equal_predictions": float(np.mean(equal)),
            "largest_difference": float(np.max(np.abs(outputs - self.outputs))),
        }

    def times(self, run):
        """Yields how long inference takes the original, and how long an exported model.

        Args:
            run: Function of uint8 images that returns outputs as an array.
        """
        runs = (self._run, self._images), (run, self._pixels)
        single, batch = [], []
        for function, batches in runs:
            images, _ = next(batches.as_numpy_iterator())
            single.append(functools.partial(function, images[:1]))
            batch.append(functools.partial(function, images))
        for one, many in zip(
            measure.median_seconds(*single, repeats=50), measure.median_seconds(*batch)
        ):
            yield {
                "milliseconds_per_image": 1000 * one,
                "milliseconds_per_batch": 1000 * many,
                "batch_size": len(images),
                "threads": _threads(),
            }

    def check(self, exported, path):
        """Raises a `UsageError` if a float export disagrees with the original."""
        difference, largest = exported["largest_difference"], float(np.max(np.abs(self.outputs)))
        # Not the other way round: a difference may be NaN.
        if not difference <= TOLERANCE * largest:
            raise UsageError(
                f"The export to {path} disagrees with the original: outputs of up to "
                f"{largest:.3g} differ by up to {difference:.3g}, test accuracy is "
                f"{exported['test_accuracy']:.2%} instead of {self.accuracy(self.outputs):.2%}. "
                "It was not kept; choose another format."
            )

    def accuracy(self, outputs):
        """Returns the share of test images that outputs classify right."""
        return float(np.mean(outputs.argmax(-1) == self.labels))


def _outputs(run, batches):
    return np.concatenate([run(images) for images, _ in batches.as_numpy_iterator()])


def size_on_disk(path):
    """Returns the bytes of a file, or of all files in a directory."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
