"""Where images come from: TFDS data sets, prepared where need be, and folders of images."""

import collections
import copy
import json
import math
import os
import pathlib
import random
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfkd.data.arrays import Arrays
from tfkd.data.digits import Digits
from tfkd.data.image_folder import ImageFolder, decoded
from tfkd.errors import UsageError, raised_within, unknown

# Mean and standard deviation of every channel in [0, 1], and the augmentation that is usual.
Known = collections.namedtuple("Known", ["mean", "std", "augment"])

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KNOWN = {
    # Computed over the training split, as are all below but CIFAR-100 and ImageNet.
    "cifar10": Known((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), ("crop", "flip")),
    # Of the CRD benchmark (https://github.com/HobbitLong/RepDistiller), so that results compare.
    "cifar100": Known((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), ("crop", "flip")),
    # A mirrored digit is no digit.
    Digits.name: Known((0.3058,), (0.3753,), ("crop",)),
    "fashion_mnist": Known((0.2860,), (0.3530,), ("crop", "flip")),
    # Of torchvision's networks, which the published teachers are; its ten classes likewise.
    "imagenet2012": Known(*IMAGENET, ("resized_crop", "flip")),
    "imagenette": Known(*IMAGENET, ("resized_crop", "flip")),
    "mnist": Known((0.1307,), (0.3081,), ("crop",)),
    "svhn_cropped": Known((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), ("crop",)),
}

# ImageNet and its like keep the labels of their test split to themselves.
TEST_SPLITS = ("test", "validation", "val")

# How many images are looked at to find out a size that the data set does not state.
PEEK = 100

VARYING = "Images vary in size: pass image_size, such as image_size=64, to resize them."

CONNECT_SECONDS = 10
CONNECT_ATTEMPTS = 2


def available():
    """Returns the names of the data sets whose statistics and usual augmentation are known.

    `load` takes every other data set of TFDS as well that has an image and a class label.

    Returns:
        A list of strings.
    """
    return list(KNOWN)


#: `{name: function that makes it}`, of `register`.
_REGISTERED = {}


def register(name, make):
    """Gives a data set of your own a name, for `load` and for configs.

    Args:
        name: String.
        make: Function without arguments that returns an `Arrays`; called when the data set is
            loaded.

    Raises:
        UsageError: If `make` is no function.

    Example:
    ```python
    def bars():
        return tfkd.data.Arrays(train=(images, labels), test=(test_images, test_labels))


    tfkd.data.register("bars", bars)
    data = tfkd.data.load("bars")
    ```
    """
    if not callable(make):
        raise UsageError(
            f"Data set {name!r}: give the function that makes the images, such as lambda: arrays; "
            f"received {type(make).__name__}."
        )
    _REGISTERED[name] = make


def _made(name):
    found = _REGISTERED[name]()
    if not isinstance(found, Arrays):
        raise UsageError(
            f"Data set {name!r}: what was registered must return tfkd.data.Arrays; it returned a "
            f"{type(found).__name__}."
        )
    found.name = name
    return found


class Source:
    """An image-classification data set, prepared for reading.

    Args:
        name: String, path, `Arrays` or `tfds.core.DatasetBuilder`, as `load` takes it.
        data_dir: String or path, where TFDS keeps data sets; `None` for its default.
        image_size: `None`, or integers `(height, width)` to resize images to.
        skip_broken: Boolean, whether a folder of images may hold files that cannot be decoded.

    Attributes:
        box_of_evaluation: Function of the size `(height, width)` of an image that returns the box
            `(top, left, height, width)` that is kept of it where nothing is random; `None`, as at
            first, keeps whole images.
        name: String.
        validation_split: String or `None`, the data set's own validation split.
        test_split: String or `None`, its test split.
        class_names: Tuple of strings.
        num_classes: Integer.
        image_shape: Tuple `(height, width, channels)`.

    Raises:
        UsageError: If there is no such data set, it cannot be prepared, has no images with
            class labels, lacks a split, or its images vary in size and `image_size` is `None`.
    """

    def __init__(self, name, data_dir=None, image_size=None, skip_broken=False):
        found = _find(name, data_dir)
        if isinstance(found, pathlib.Path):
            self._reader = ImageFolder(found, skip_broken)
        elif isinstance(found, Arrays):
            self._reader = found
        elif skip_broken:
            raise UsageError(f"skip_broken is for folders of images; {found.name!r} is none.")
        else:
            self._reader = _Prepared(found)
        self._image_size = image_size
        self.box_of_evaluation = None
        self.name = self._reader.name
        self.validation_split = self._reader.validation_split
        self.test_split = self._reader.test_split
        self.class_names = self._reader.class_names
        self.num_classes = len(self.class_names)
        self.image_shape = self._find_image_shape()

    def at(self, image_size):
        """Returns the same data set with images of another size.

        Args:
            image_size: Integers `(height, width)`.
        """
        other = copy.copy(self)
        other._image_size, other.image_shape = image_size, (*image_size, self.image_shape[-1])
        return other

    def size(self, split):
        """Returns the number of examples in a split."""
        return self._reader.size(split)

    def describe(self, parts):
        """Returns what was found in a folder of images, as lines of text; `None` for others.

        Args:
            parts: `{name: (split, start, stop)}` of what is read.
        """
        return self._reader.describe(parts)

    def references(self, split, start, stop):
        """Returns a dataset of `{"image", "label"}` with undecoded images, which `decode` takes.

        Args:
            split: String.
            start: Integer, the first example's position in the split.
            stop: Integer, the position behind the last.
        """
        return self._reader.references(split, start, stop)

    def reference_bytes(self, split):
        """Returns about how many bytes an element of `references` takes, an integer above 0."""
        return self._reader.reference_bytes(split)

    def decode(self, dataset, box=None, teacher_size=None):
        """Decodes the images of a dataset of `references`.

        Args:
            dataset: Dataset of dicts with `"image"` and `"label"`; other entries are kept.
            box: Function of an element and the size of its image that returns the box to cut out;
                `None` for that of evaluation.
            teacher_size: Integers `(height, width)`, to which the same box is resized for the
                teacher; `None` for no such image.

        Returns:
            A dataset of the same dicts in the same order: a uint8 image of `image_shape`, an
            int32 label, and with `teacher_size` a uint8 image `"teacher_image"` of that size.
        """
        if box is None and self.box_of_evaluation is not None:

            def box(element, size):
                del element  # Its box is that of every image.
                return self.box_of_evaluation(size)

        def fit(element):
            image = self._fit(element["image"], resize=box is not None)
            made = {"image": image, "label": tf.cast(element["label"], tf.int32)}
            if teacher_size is not None:
                made["teacher_image"] = self._resized(element["image"], teacher_size)
            return {**element, **made}

        return self._reader.decode(dataset, box).map(fit, num_parallel_calls=tf.data.AUTOTUNE)

    def read(self, split, start, stop):
        """Reads a part of a split, as it is evaluated.

        Args:
            split: String.
            start: Integer, the first example's position in the split.
            stop: Integer, the position behind the last.

        Returns:
            A `tf.data.Dataset` of pairs: a uint8 image of `image_shape` and an int32 label, in an
            order that never changes.
        """
        dataset = self.decode(self.references(split, start, stop))
        return dataset.map(lambda example: (example["image"], example["label"]))

    def labels(self, split, start, stop):
        """Returns the labels of a part of a split, an int32 array."""
        return self._reader.labels(split, start, stop)

    def into_memory(self, split, start, stop):
        """Reads a part of a split into memory.

        Args:
            split: String.
            start: Integer, the first example's position in the split.
            stop: Integer, the position behind the last.

        Returns:
            A uint8 array `(stop - start, *image_shape)` and an int32 array `(stop - start,)`.

        Raises:
            UsageError: If the files are damaged, images vary in size, or labels lie outside the
                classes.
        """
        images = np.empty((stop - start, *self.image_shape), np.uint8)
        labels = np.empty(stop - start, np.int32)
        filled = 0
        for batch in self._iterate(self.read(split, start, stop).batch(500)):
            rows = slice(filled, filled + len(batch[1]))
            images[rows], labels[rows] = batch
            filled = rows.stop
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise UsageError(
                f"Labels of {self.name!r}, split {split!r}, must lie in 0 to "
                f"{self.num_classes - 1}; found {labels.min()} to {labels.max()}."
            )
        return images, labels

    def statistics(self, stop):
        """Returns mean and standard deviation of each channel, known or computed.

        Args:
            stop: Integer, how many of the training split's examples there are to train on: the
                first 10,000 of them at most are used.

        Returns:
            Two tuples of floats, in [0, 1].
        """
        if self.name in KNOWN:
            return KNOWN[self.name].mean, KNOWN[self.name].std
        count, total, squares = 0, 0.0, 0.0
        for images, _ in self._iterate(self.read("train", 0, min(stop, 10_000)).batch(100)):
            pixels = images.reshape(-1, images.shape[-1]) / 255.0
            count, total = count + len(pixels), total + pixels.sum(0)
            squares = squares + np.square(pixels).sum(0)
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0)
        # A channel that never changes is centred only.
        std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
        return tuple(mean.tolist()), tuple(std.tolist())

    def _find_image_shape(self):
        *size, channels = self._reader.shape
        if self._image_size is not None:
            return (*self._image_size, channels)
        if None not in size:
            return (*size, channels)
        shown = self._reader.references("train", 0, min(PEEK, self.size("train")))
        shown = self._reader.decode(shown)
        sizes = {example["image"].shape[:2] for example in self._iterate(shown)}
        if len(sizes) > 1:
            raise UsageError(f"Data set {self.name!r}: {VARYING}")
        return (*sizes.pop(), channels)

    def _fit(self, image, resize):
        """Brings an image to `image_shape`: it has it already without `resize` and `image_size`."""
        if self._image_size is None and not resize:
            same = tf.debugging.assert_equal(tf.shape(image), self.image_shape, message=VARYING)
            with tf.control_dependencies([same]):
                return tf.ensure_shape(image, self.image_shape)
        if image.shape == self.image_shape:
            return image
        return self._resized(image, self.image_shape[:2])

    def _resized(self, image, size):
        resized = tf.image.resize(image, size, method="bilinear", antialias=True)
        shape = (*size, self.image_shape[-1])
        return tf.ensure_shape(tf.saturate_cast(tf.round(resized), tf.uint8), shape)

    def _iterate(self, dataset):
        """Yields the elements of a dataset as arrays; a `UsageError` says what cannot be read."""
        try:
            yield from dataset.as_numpy_iterator()
        except tf.errors.OpError as error:
            usage_error = raised_within(error)
            if usage_error is not None:
                raise usage_error from None
            if VARYING in str(error):
                raise UsageError(f"Data set {self.name!r}: {VARYING}") from None
            raise _unreadable(self._reader.directory, error) from error


class _Prepared:
    """A data set of TFDS, as `ImageFolder` is a folder of images.

    Args:
        builder: `tfds.core.DatasetBuilder`.
    """

    # Splits that are published for both are kept for one: results compare by them.
    validation_split = None

    def __init__(self, builder):
        self.name = builder.name
        self._check_features(builder)
        self._builder = _prepare(builder)
        self.directory = self._builder.data_dir
        splits = self._builder.info.splits
        tests = [split for split in TEST_SPLITS if split in splits]
        if len(tests) > 1 and not self._has_labels(tests[0]):
            del tests[0]
        self.test_split = next(iter(tests), None)
        if "train" not in splits or self.test_split is None:
            raise UsageError(
                f"Data set {self.name!r} needs a split 'train' and one of "
                f"{', '.join(map(repr, TEST_SPLITS))}; it has {', '.join(splits) or 'none'}."
            )
        features = self._builder.info.features
        self.class_names = tuple(features["label"].names)
        self.shape = features["image"].shape

    def _has_labels(self, split):
        try:
            return self.labels(split, 0, 1)[0] >= 0
        except tf.errors.OpError as error:
            raise _unreadable(self.directory, error) from error

    def size(self, split):
        return self._builder.info.splits[split].num_examples

    def labels(self, split, start, stop):
        labels = self.references(split, start, stop).map(lambda example: example["label"])
        return np.fromiter(labels.as_numpy_iterator(), np.int32, stop - start)

    def references(self, split, start, stop):
        try:
            dataset = self._builder.as_dataset(
                split=f"{split}[{start}:{stop}]",
                decoders={"image": tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(try_autocache=False, skip_prefetch=True),
            )
        except Exception as error:
            # Of what its dataset_info.json says of splits and files.
            raise _unreadable(self.directory, error) from error
        return dataset.map(lambda example: {name: example[name] for name in ("image", "label")})

    def reference_bytes(self, split):
        return max(1, self._builder.info.splits[split].num_bytes // self.size(split))

    def decode(self, dataset, box=None):
        feature = self._builder.info.features["image"]

        def decode(element):
            cut = None if box is None else lambda size: box(element, size)
            image = decoded(element["image"], feature.decode_example, self.shape[-1], cut)
            return {**element, "image": image}

        return dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)

    def describe(self, parts):
        return None

    def _check_features(self, builder):
        features = builder.info.features
        features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
        image, label = features.get("image"), features.get("label")
        right = isinstance(image, tfds.features.Image)
        if not right or not isinstance(label, tfds.features.ClassLabel):
            raise UsageError(
                f"Data set {self.name!r} cannot be classified: it needs the features 'image' (an "
                f"Image) and 'label' (a ClassLabel), and it has {', '.join(features) or 'others'}."
            )
        if image.np_dtype != np.uint8 or image.shape[-1] is None:
            raise UsageError(
                f"Images of {self.name!r} must be uint8 with a known number of channels; they are "
                f"{np.dtype(image.np_dtype).name} of shape {image.shape}."
            )
        if not label.num_classes:
            raise UsageError(f"Data set {self.name!r} does not say how many classes it has.")


def in_memory_bytes(count, image_shape):
    """Returns how many bytes `count` decoded images take."""
    return count * math.prod(image_shape)


def _find(name, data_dir):
    """Returns a builder, which need not be prepared, arrays, or the path of a folder."""
    if isinstance(name, tfds.ImageFolder):
        return pathlib.Path(name.data_dir)
    if isinstance(name, (tfds.core.DatasetBuilder, Arrays)):
        return name
    if not isinstance(name, (str, os.PathLike)):
        raise UsageError(
            "name must be the name or path of a data set, tfkd.data.Arrays or a TFDS builder; "
            f"received a {type(name).__name__}."
        )
    if name in _REGISTERED:
        return _made(name)
    text = os.path.expanduser(os.fspath(name))
    # `a/b` is configuration b of data set a, so TFDS is asked first unless it looks like a path.
    if isinstance(name, os.PathLike) or os.path.isabs(text) or text.startswith("."):
        return _find_folder(pathlib.Path(text))
    try:
        # TFDS itself reads the variable at its import, before flags can set it.
        data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
        folder = pathlib.Path(data_dir or "~/tensorflow_datasets").expanduser()
        _check_features(folder / re.split("[:/]", text)[0])
        return tfds.builder(text, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        if os.path.isdir(text):
            return _find_folder(pathlib.Path(text))
        others = ["any other image classification data set of TFDS", "a path"]
        known = [*available(), *_REGISTERED, *others]
        raise unknown("data set", text, known) from None
    except UsageError:
        raise
    except Exception as error:
        if os.path.isdir(text):
            return _find_folder(pathlib.Path(text))
        # TFDS answers so where a version or configuration does not exist, or a name is malformed,
        # and where prepared files are damaged. It puts the arguments in front of the reason.
        reason = _short(str(error).rpartition('}": ')[-1])
        raise UsageError(f"Data set {text!r} cannot be opened: {reason}") from None


def _find_folder(path):
    """Returns the builder of a prepared data set, or the path if it may be a folder of images."""
    if not path.is_dir():
        raise UsageError(f"There is no directory {str(path)!r} to read a data set from.")
    if (path / "dataset_info.json").exists():
        _check_features(path)
        return _open(path)
    return path


def _open(directory):
    """Returns the builder of a prepared data set; a `UsageError` says that it is damaged."""
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:
        # The readers of its JSON, and the features made of it, raise many kinds of exceptions.
        raise _unreadable(directory, error) from error


def _unreadable(directory, error):
    """Returns a `UsageError` that says why a prepared data set cannot be read."""
    return UsageError(
        f"The data set in {directory} cannot be read: {_describe(error)} If its files are "
        "damaged, delete that directory to have it prepared again."
    )


def _check_features(folder):
    """Refuses prepared data sets whose files would let TFDS import a module that they name.

    TFDS finds the class of a feature by importing its module, which may be a file beside the data.

    Args:
        folder: Path of a folder with one or more prepared data sets; nothing happens where there is
            none.

    Raises:
        UsageError: If a class is neither of TFDS nor of a module that has been imported already.
    """
    for file in folder.rglob("features.json"):
        classes = []

        def collect(pairs, classes=classes):
            # A key may stand twice, of which a dictionary would show one.
            names = ("type", "pythonClassName", "python_class_name")
            classes += [value for key, value in pairs if key in names and isinstance(value, str)]
            return dict(pairs)

        try:
            json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=collect)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{file} is damaged: delete {str(file.parent)!r}, and the data set is prepared "
                "again, or restore the file."
            ) from error
        for name in classes:
            module = name.rpartition(".")[0]
            if name.partition(".")[0] != "tensorflow_datasets" and module not in sys.modules:
                raise UsageError(
                    f"{file} names {name!r}, a class outside of TFDS, whose module would be run: "
                    f"if you trust it, import {module or name} before, in a Python config."
                )


def _prepare(builder):
    """Downloads and prepares a data set unless that has been done.

    Returns:
        A builder that can read.
    """
    if builder.is_prepared():
        # A builder made before that does not know which files it can read.
        return builder if builder.info.splits else _open(builder.data_dir)
    # TFDS prepares in a temporary directory beside the final one and renames it at the end. It
    # takes that directory's name from the global generator, and two processes that were given the
    # same seed would write into one.
    state = random.getstate()
    random.seed()
    try:
        _check_reachable(builder)
        builder.download_and_prepare()
        return builder
    except Exception as error:
        # If another process was faster, the rename fails, and its result is equal.
        if builder.is_prepared():
            return _open(builder.data_dir)
        _remove_empty(builder.data_path.parent, builder.data_dir_root)
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            manual = os.path.join(builder.data_dir_root, "downloads", "manual")
            raise UsageError(
                f"Data set {builder.name!r} is made of files that one downloads oneself, to "
                f"{manual}: {_short(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)} To prepare it failed: "
                f"{_describe(error)}"
            ) from error
        raise UsageError(
            f"Data set {builder.name!r} is not prepared in {builder.data_dir_root} and could not "
            f"be downloaded and prepared: {_describe(error)} Prepare it with "
            f"tfds.builder({builder.name!r}, data_dir=...).download_and_prepare() on a machine "
            "with network access, or pass data_dir."
        ) from error
    finally:
        random.setstate(state)


def _check_reachable(builder):
    """Raises at once if there is no network, where TFDS would try for three minutes."""
    addresses = [url for url in builder.url_infos or () if url.startswith("http")]
    if not addresses or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    request = urllib.request.Request(addresses[0], method="HEAD")
    for attempt in range(CONNECT_ATTEMPTS):
        try:
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
            return
        except urllib.error.HTTPError:
            return  # A server that refuses is a server that answers. The download may differ.
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                return
            if attempt + 1 == CONNECT_ATTEMPTS:
                host = urllib.parse.urlsplit(addresses[0]).netloc
                raise ConnectionError(f"{host} cannot be reached ({error.reason})") from error
        except OSError:
            return  # It was reached and broke off, which TFDS handles better.


def _remove_empty(directory, root):
    """Removes the directories that TFDS created for a data set that it then could not prepare."""
    while directory != root:
        try:
            os.rmdir(directory)
        except OSError:
            return  # It does not exist, or another version is in it.
        directory = directory.parent


def _describe(error):
    """Returns an exception in a line."""
    return f"{type(error).__name__}: {_short(str(error))}"


def _short(text):
    """Returns the beginning of a text as one line that ends in a full stop."""
    text = " ".join(text.split())
    return text.rstrip(".") + "." if len(text) <= 200 else text[:200] + "..."
