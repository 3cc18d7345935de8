"""`ImageFolder`: a directory of `split/class/image` files as a data set."""

import collections
import concurrent.futures
import os
import random

import numpy as np
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.stderr import without_lines

#: The names that folders of a split may have, in any case.
SPLITS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}

#: What is taken for an image, by its extension, in any case: what TensorFlow decodes, but BMP,
#: where it takes the numbers of a palette for grey levels.
FORMATS = (".gif", ".jpeg", ".jpg", ".png", ".webp")

#: How many names a line lists before it breaks off, and how many classes.
LISTED, LISTED_CLASSES = 3, 10


class ImageFolder:
    """A directory of images in `split/class/image`, or deeper: a class holds all that is below it.

    Folders and files whose names begin with a dot are left out, and so are files of other formats.
    Every split has an order of its own that never changes, and in which any part of it has the
    classes in equal shares, as near as possible: what is carved from it is stratified.

    Args:
        path: Path of the directory.
        skip_broken: Boolean, whether files that cannot be decoded are left out: all are decoded
            once to find them. Otherwise the first one that is read raises an error.

    Attributes:
        name: String.
        directory: String, the path.
        class_names: Tuple of strings: the folders below the splits that hold an image, sorted.
        shape: The images' shape, of which the size is not known: `(None, None, 3)`.
        validation_split: String or `None`, the name of the split if there is one.
        test_split: String or `None`, likewise.

    Raises:
        UsageError: If there is no training image, two folders are the same split, or no image of
            a split can be decoded.
    """

    name = "image_folder"
    shape = (None, None, 3)

    def __init__(self, path, skip_broken=False):
        self.directory = str(path)
        self._folders = _split_folders(path)
        self._left_out, self._broken = collections.Counter(), []
        found = {split: [] for split in self._folders}
        for file in _files(str(path)):
            split, name, reason = self._place(os.path.relpath(file, path))
            if reason:
                self._left_out[reason] += 1
            else:
                found[split].append((file, name))
        if not found.get("train"):
            raise UsageError(
                f"Directory {self.directory!r} is no data set: it needs to hold split/class/image "
                "files, such as train/cat/1.png, or a data set that TFDS has prepared."
                + (f" Left out: {self._reasons()}." if self._left_out else "")
            )
        self.class_names = tuple(sorted({name for files in found.values() for _, name in files}))
        if skip_broken:
            for split, files in found.items():
                found[split] = self._whole(split, files)
        self._splits = {split: self._in_order(split, files) for split, files in found.items()}
        self.validation_split, self.test_split = (
            split if found.get(split) else None for split in ("validation", "test")
        )

    def size(self, split):
        """Returns the number of images in a split."""
        return len(self._splits[split][1])

    def labels(self, split, start, stop):
        """Returns the labels of a part of a split, an int32 array; decodes nothing."""
        return self._splits[split][1][start:stop]

    def references(self, split, start, stop):
        """Returns a dataset of `{"image": path, "label"}` over a part of a split, in order."""
        files, labels = (part[start:stop] for part in self._splits[split])
        # Bytes: a name need not be UTF-8.
        files = [os.fsencode(file) for file in files]
        return tf.data.Dataset.from_tensor_slices({"image": files, "label": labels})

    def reference_bytes(self, split):
        """Returns about how many bytes an element of `references` takes: a path, not an image."""
        return 2**8

    def decode(self, dataset, box=None):
        """Decodes the images that a dataset of `references` names.

        The error of TensorFlow's decoder does not tell which file is broken. A Python function
        around it would, but with deterministic ops TensorFlow runs such a function for one file at
        a time. So a file that fails is dropped, and what comes in its place has the wrong position.

        Args:
            dataset: Dataset of dicts with `"image"`; other entries are kept.
            box: Function of an element and the size `(height, width)` of its image that returns
                the box to cut out, `(top, left, height, width)`; None for whole images.

        Returns:
            A dataset of the same dicts, with uint8 images `(height, width, 3)`. A file that cannot
            be decoded raises a `UsageError`.
        """
        named = dataset.enumerate()

        def decode(position, element):
            content = tf.io.read_file(element["image"])
            cut = None if box is None else lambda size: box(element, size)
            return position, {**element, "image": decoded(content, _decode_whole, 3, cut)}

        images = named.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        # Without an element behind the last, a dataset that fails there would end before it is
        # seen.
        last = tf.nest.map_structure(
            lambda spec: tf.zeros([size or 0 for size in spec.shape], spec.dtype),
            images.element_spec[1],
        )
        last = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), last))

        def check(expected, found):
            message = tf.strings.join(
                [
                    "UsageError: Image ",
                    expected[1]["image"],
                    " cannot be decoded, it is empty, damaged or something else: mend or remove "
                    "it, or leave out all such files by skip_broken=True "
                    "(--config.data.skip_broken=True).",
                ]
            )
            right = tf.debugging.Assert(found[0] == expected[0], [message])
            with tf.control_dependencies([right]):
                return tf.nest.map_structure(tf.identity, found[1])

        return tf.data.Dataset.zip(named, images.ignore_errors().concatenate(last)).map(check)

    def describe(self, parts):
        """Returns what was found, left out and is missing, as lines of text.

        Args:
            parts: `{name: (split, start, stop)}` of `"train"`, `"validation"` and `"test"`, those
                that there are.
        """
        sizes, missing = [], []
        for name, (split, start, stop) in parts.items():
            folder = self._folders[split]
            source = f"{folder}/" if name == split else f"set aside from {folder}/"
            sizes.append(f"{name} {stop - start:,} ({source})")
            counts = np.bincount(self.labels(split, start, stop), minlength=len(self.class_names))
            if np.any(counts == 0):
                absent = [self.class_names[label] for label in np.flatnonzero(counts == 0)]
                absent = _counted(absent, "class", "classes")
                missing.append(f"warning: no {name} image of {absent}")
        classes = _number(len(self.class_names), "class", "classes")
        lines = [f"Images in {self.directory}: {', '.join(sizes)}; {classes}"]
        if self._left_out or self._broken:
            lines.append(f"Left out: {self._reasons()}")
        counts = np.bincount(self.labels(*parts["train"]), minlength=len(self.class_names))
        told = [f"{name} {count:,}" for name, count in zip(self.class_names, counts)]
        if len(told) > LISTED_CLASSES:
            told = [f"from {told[np.argmin(counts)]} to {told[np.argmax(counts)]}"]
        lines.append(f"Training images of a class: {', '.join(told)}")
        return "\n".join([*lines, *missing])

    def _place(self, path):
        """Returns the split and class of a file, or why it is left out, as a triple."""
        *folders, file = path.split(os.sep)
        if any(part.startswith(".") for part in (*folders, file)):
            return None, None, "hidden"
        split = next((s for s, folder in self._folders.items() if folders[:1] == [folder]), None)
        if split is None:
            return None, None, f"in {folders[0]}/" if folders else "beside the splits"
        if len(folders) == 1:
            return None, None, "in no class folder"
        extension = os.path.splitext(file)[1].lower()
        if extension not in FORMATS:
            return None, None, extension or "without extension"
        return split, folders[1], None

    def _whole(self, split, files):
        """Returns the files that can be decoded, and remembers the others."""
        # The decoders tell of broken files, but not of which.
        with without_lines(b""), concurrent.futures.ThreadPoolExecutor() as pool:
            broken = list(pool.map(lambda pair: _is_broken(pair[0]), files))
        self._broken += [file for (file, _), found in zip(files, broken) if found]
        whole = [pair for pair, found in zip(files, broken) if not found]
        if files and not whole:
            raise UsageError(
                f"None of the {len(files)} images in {self.directory}/{self._folders[split]} can "
                "be decoded."
            )
        return whole

    def _in_order(self, split, files):
        """Returns the paths and labels of a split in its order."""
        files = list(files)
        random.Random(split).shuffle(files)
        numbers = {name: label for label, name in enumerate(self.class_names)}
        labels = np.array([numbers[name] for _, name in files], np.int32)
        share = (ranks(labels) + 0.5) / np.maximum(np.bincount(labels), 1)[labels]
        order = np.argsort(share, kind="stable")
        return [files[position][0] for position in order], labels[order]

    def _reasons(self):
        parts = [f"{count:,} {reason}" for reason, count in self._left_out.most_common()]
        if self._broken:
            parts.append(_counted(sorted(self._broken), "broken file", "broken files"))
        return ", ".join(parts)


def ranks(labels):
    """Returns how many examples of the same class precede each one, an integer array."""
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def _split_folders(path):
    """Returns `{split: name of its folder}`."""
    folders = {}
    for name in sorted(entry.name for entry in os.scandir(path) if entry.is_dir()):
        for split, names in SPLITS.items():
            if name.lower() not in names:
                continue
            if split in folders:
                raise UsageError(
                    f"Directory {str(path)!r} has {folders[split]}/ and {name}/, which both are "
                    f"the {split} split: keep one."
                )
            folders[split] = name
    return folders


def _files(folder, above=()):
    """Yields all files below a folder, sorted; follows links, but not in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry.path, (*above, real))
        else:
            yield entry.path


def decoded(content, decode, channels, box=None):
    """Decodes an image, or only a box of it, which of a JPEG takes less time.

    Args:
        content: Scalar string, the bytes of the file.
        decode: Function that decodes them.
        channels: Integer.
        box: Function of the size `(height, width)` that returns the box to cut out, `(top, left,
            height, width)`, all int32; None for the whole image.

    Returns:
        A uint8 tensor `(height, width, channels)`.
    """
    if box is None:
        return decode(content)

    def part_of_jpeg():
        size = tf.image.extract_jpeg_shape(content)[:2]
        return tf.image.decode_and_crop_jpeg(content, box(size), channels)

    def part_of_other():
        return cut_out(decode(content), box)

    image = tf.cond(tf.io.is_jpeg(content), part_of_jpeg, part_of_other)
    return tf.ensure_shape(image, (None, None, channels))


def cut_out(image, box):
    """Returns the part of an image `(height, width, channels)` in its box; see `decoded`."""
    top, left, height, width = tf.unstack(box(tf.shape(image)[:2]))
    return image[top : top + height, left : left + width]


def _decode_whole(content):
    """Returns an image as a uint8 tensor `(height, width, 3)`; of several in a file, the first."""
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def _is_broken(file):
    try:
        with tf.device("CPU:0"):
            _decode_whole(tf.io.read_file(os.fsencode(file)))
    except tf.errors.OpError:
        return True
    return False


def _number(count, one, several):
    return f"{count:,} {one if count == 1 else several}"


def _counted(names, one, several):
    """Returns a number of things with the first of their names."""
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    return f"{_number(len(names), one, several)} ({listed})"
