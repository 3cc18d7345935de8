"""`Arrays`: images and labels in memory as a data set."""

import numpy as np
import tensorflow as tf

from tfkd.data.image_folder import cut_out
from tfkd.errors import UsageError

SPLITS = ("train", "validation", "test")


class Arrays:
    """Images and labels in NumPy arrays as a data set, for `tfkd.data.load`.

    Args:
        train: The pair `(images, labels)`: uint8 `(examples, height, width, channels)`, or
            `(examples, height, width)` of grey images, and integers `(examples,)` from 0 on.
        validation: A pair likewise. `None` sets a part of `train` aside, the last examples, as
            `load(validation=...)` says; so shuffle what is sorted by class.
        test: A pair likewise; `None` as for `validation`.
        class_names: Sequence of strings, one for each class. Defaults to the numbers of the classes
            up to the largest label.
        name: String, the name in results.

    Raises:
        UsageError: If images are no uint8 arrays of one shape, labels no integers below the number
            of classes, or numbers of images and labels differ.

    Example:
    ```python
    arrays = tfkd.data.Arrays((images, labels), class_names=["cat", "dog"])
    data = tfkd.data.load(arrays, batch_size=64, augment=("crop", "flip"))
    ```
    """

    def __init__(self, train, validation=None, test=None, class_names=None, name="arrays"):
        self.name = name
        self.directory = f"the arrays {name!r}"
        given = dict(zip(SPLITS, (train, validation, test)))
        self._splits = {
            split: _checked(split, pair) for split, pair in given.items() if pair is not None
        }
        shapes = {split: images.shape[1:] for split, (images, _) in self._splits.items()}
        if len(set(shapes.values())) > 1:
            raise UsageError(f"Images of all splits must have one shape; received {shapes}.")
        self.shape = shapes["train"]
        largest = max(int(labels.max()) for _, labels in self._splits.values())
        if class_names is None:
            class_names = range(largest + 1)
        self.class_names = tuple(map(str, class_names))
        if largest >= len(self.class_names):
            raise UsageError(
                f"Labels go up to {largest}, and there are {len(self.class_names)} class_names: "
                "class numbers begin at 0."
            )
        self.validation_split, self.test_split = (
            split if split in self._splits else None for split in SPLITS[1:]
        )

    def size(self, split):
        """Returns the number of examples in a split."""
        return len(self._splits[split][1])

    def labels(self, split, start, stop):
        """Returns the labels of a part of a split, an int32 array."""
        return self._splits[split][1][start:stop]

    def references(self, split, start, stop):
        """Returns a dataset of `{"image", "label"}` over a part of a split, in order."""
        images, labels = (part[start:stop] for part in self._splits[split])
        with tf.device("CPU:0"):
            return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})

    def reference_bytes(self, split):
        """Returns how many bytes an element of `references` takes."""
        return max(1, self._splits[split][0][0].nbytes)

    def decode(self, dataset, box=None):
        """Cuts boxes out of the images of a dataset of `references`; see `ImageFolder.decode`."""
        if box is None:
            return dataset

        def cut(element):
            image = cut_out(element["image"], lambda size: box(element, size))
            return {**element, "image": image}

        return dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE)

    def describe(self, parts):
        """Returns None: there is nothing to be found in arrays that their owner does not know."""
        return None


def _checked(split, pair):
    """Returns images `(examples, height, width, channels)` and int32 labels of a split."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UsageError(f"{split} must be a pair (images, labels).")
    images, labels = map(np.asarray, pair)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise UsageError(
            f"Images of {split} must be uint8 (examples, height, width, channels), pixels of 0 to "
            f"255; received {images.dtype} of shape {images.shape}."
        )
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise UsageError(
            f"Labels of {split} must be integers, one for each of the {len(images)} images; "
            f"received {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0:
        raise UsageError(f"Labels of {split} must be 0 or greater; received {labels.min()}.")
    return images, labels.astype(np.int32)
