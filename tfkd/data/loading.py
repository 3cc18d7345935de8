"""`load`: one call from the name of a data set to pipelines for `fit` and `evaluate`."""

import functools
import numbers

import numpy as np
import tensorflow as tf

from tfkd.data.augmentation import GEOMETRIC, Augmentation, central_box
from tfkd.data.dataset import Data, check_integer
from tfkd.data.image_folder import ranks
from tfkd.data.pipeline import InMemory, Streamed
from tfkd.data.sources import KNOWN, Source, in_memory_bytes
from tfkd.errors import UsageError, unknown

# Up to this size, in bytes, a decoded split is kept in memory; the buffer of the shuffle over a
# larger one is kept to it.
MEMORY = 2**30

# `mean` and `std` of a channel that is not normalised. Pixels in [0, 1] divided by 1/255 are those
# in [0, 255], so that whoever undoes or repeats the normalisation needs no case of its own.
RAW = ((0.0,), (1 / 255,))


def load(
    name="digits",
    batch_size=64,
    seed=0,
    validation=0.1,
    train_examples=None,
    augment=None,
    mixup=0.0,
    cutmix=0.0,
    one_hot=None,
    image_size=None,
    data_dir=None,
    cache="auto",
    indices=False,
    normalize=True,
    test=0.1,
    skip_broken=False,
    views=None,
    verbose=True,
    balanced=False,
    teacher_image_size=None,
    peer_views=1,
):
    """Loads an image-classification data set, preparing it if that has not been done.

    Batches are pairs of float32 images `(batch, height, width, channels)`, normalised channel by
    channel to a mean of 0 and a standard deviation of 1 unless `normalize` is false, and labels.

    In a folder of images, `train/` is the training split, `val/`, `valid/` or `validation/` the
    validation split, and `test/` the test split. A split that has no folder is set aside from
    `train/`, class by class.

    Training batches are a pure function of `seed`, the epoch and the example's index. A run that
    resumes after `data.start_epoch(epoch)` sees what an uninterrupted one would have seen.

    Args:
        name: String, the name of a data set: one of `available()`, or any other of TFDS that has
            the features `image` and `label`, with its version or configuration if need be
            (`"cifar10:3.0.2"`). A path of images in `split/class/image.png`, at any depth below
            the class, or of a data set as TFDS prepared it; one that could be a name starts with
            `./`. Or images in memory, `tfkd.data.Arrays`, itself or by the name given to
            `tfkd.data.register`; or a `tfds.core.DatasetBuilder`. Defaults to `"digits"`, which
            needs no download.
        batch_size: Positive integer. Training drops what remains after the last full batch of an
            epoch; validation and test do not.
        seed: Non-negative integer.
        validation: Number in [0, 1), the fraction of the training split to set aside, or an
            integer number of examples: the last ones, whatever the seed. A folder of images that
            has a validation split of its own needs none.
        train_examples: Integer, how many of the remaining training examples to keep: as near as
            possible as many of every class, the same ones whatever the seed. `None` keeps all.
        augment: Tuple of `"crop"` (a shift of up to an eighth of the size, black where the image
            ends) or `"resized_crop"` (a random box of 8 to 100 % of the image's area, cut out of
            the original image and resized; validation and test then see the central square of
            7/8 of the shorter side), and `"flip"` (left to right, half of the time), empty for
            none. `None` is what is usual for a data set of `available()`, and none for others.
        mixup: Non-negative number, the alpha of mixup's Beta distribution; 0 is none.
        cutmix: Non-negative number, the alpha of cutmix; 0 is none. With both, each example takes
            one of the two, with equal chances.
        one_hot: Boolean, whether labels of all three splits are one-hot. `None` is true with
            mixup or cutmix, which mix labels, and false otherwise.
        image_size: Integer or pair `(height, width)` to resize images to. `None` keeps them as
            they are, and they must all have one size.
        data_dir: String or path, where TFDS keeps data sets. `None` is the environment variable
            `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        cache: Boolean, whether decoded images are kept in memory rather than read in each epoch.
            `"auto"` keeps each split of up to 1 GiB. What is read in each epoch is shuffled
            undecoded: the files of a folder all, the examples of TFDS in a buffer of 1 GiB. With
            `"resized_crop"` training images are always read.
        indices: Boolean, whether the labels of training batches come as `{"label": labels,
            "index": indices}` with int64 indices `(batch,)`, the examples' positions in the
            training set. Losses that remember every example need it.
        normalize: Boolean; false leaves pixels as they are, float32 in [0, 255], after the
            augmentation: for models that bring their own preprocessing, such as those of
            `keras.applications` with a `Rescaling` layer inside.
        test: Number above 0, of a folder of images without `test/`: what to set aside for it, as
            with `validation`.
        skip_broken: Boolean, of a folder of images: whether files that cannot be decoded are left
            out, for which all are decoded once. Otherwise such a file is an error.
        views: Positive integer, how many fixed augmentations every training image has. They take
            turns by epoch, and are the same whatever the seed, which still decides the order.
            `None` makes a new augmentation in each epoch.
        verbose: Boolean, whether to print what was found in a folder of images: examples in each
            split, files that are left out and why, and classes that a split lacks.
        balanced: Boolean, whether training batches come as `(images, labels, weights)` with
            weights `(batch,)` by which every class counts the same in a loss, however many
            examples it has: examples / (classes · examples of the class).
        teacher_image_size: Integer or pair `(height, width)`: the labels of training batches come
            as `{"label": labels, "teacher_images": images}`, with images for the teacher of
            another size than the student's. Both are cut from the original image by the same box
            and flip, and normalised alike. `Data.of_teacher` has validation and test in that size.
            Training images are then always read. `None` leaves the student's to both.
        peer_views: Positive integer, of several students that are trained together: the labels of
            training batches come as `{"label": labels, "peer_images": (images, ...)}`, and every
            student sees crops and flips of its own, the first one those that are there without.
            1 shows all students the same.

    Returns:
        A `Data`.

    Raises:
        UsageError: If an argument is none of the above, or there is no such data set and it
            cannot be downloaded.

    Example:
    ```python
    data = tfkd.data.load("cifar100", batch_size=64)
    model = tfkd.models.create("resnet20", data.num_classes, data.input_shape)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.train, validation_data=data.validation, epochs=240)
    ```
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    seed = check_integer("seed", seed, 0)
    _check_alpha("mixup", mixup)
    _check_alpha("cutmix", cutmix)
    if one_hot not in (None, True, False):
        raise UsageError(f"one_hot must be True, False or None; received {one_hot!r}.")
    if one_hot is not None and not one_hot and (mixup or cutmix):
        raise UsageError("mixup and cutmix mix labels, which one_hot=False does not allow.")
    if cache not in ("auto", True, False):
        raise UsageError(f"cache must be 'auto', True or False; received {cache!r}.")
    for key, value in {
        "normalize": normalize,
        "skip_broken": skip_broken,
        "balanced": balanced,
    }.items():
        if value not in (True, False):
            raise UsageError(f"{key} must be True or False; received {value!r}.")
    _check_augment(augment)
    if views is not None:
        views = check_integer("views", views, 1)
    peer_views = check_integer("peer_views", peer_views, 1)
    if peer_views > 1 and (mixup or cutmix):
        raise UsageError(
            "peer_views show one image to several students, and mixup and cutmix mix the labels of "
            "each differently: leave out mixup and cutmix."
        )
    _check_share("validation", validation)
    _check_share("test", test)
    if test == 0:
        raise UsageError("test must be above 0: every run is measured on its test split.")
    if train_examples is not None:
        train_examples = check_integer("train_examples", train_examples, 1)
    image_size = _check_image_size("image_size", image_size)
    teacher_size = _check_image_size("teacher_image_size", teacher_image_size)

    source = Source(name, data_dir, image_size, skip_broken)
    if augment is None:
        augment = KNOWN[source.name].augment if source.name in KNOWN else ()
    resized_crop = "resized_crop" in augment
    if peer_views > 1 and (resized_crop or not augment):
        raise UsageError(
            "peer_views are made by 'crop' and 'flip': augment must have one of them, and no "
            f"'resized_crop'; received {augment!r}."
        )
    if resized_crop:
        source.box_of_evaluation = central_box
    if teacher_size == source.image_shape[:2]:
        teacher_size = None
    always_read = {"augment='resized_crop'": resized_crop, "teacher_image_size": teacher_size}
    for argument, there in always_read.items():
        if there and cache is True:
            raise UsageError(
                f"{argument} reads the original images in every epoch, so that training images "
                "cannot be kept: cache must be 'auto' or False."
            )
    by_pixels = [*(name for name in augment if name == "crop"), *["cutmix"] * bool(cutmix)]
    if teacher_size and by_pixels:
        raise UsageError(
            f"teacher_image_size: {by_pixels[0]!r} moves whole pixels of the student's size, for "
            "which there is no like in another one: take augment of 'resized_crop' and 'flip', and "
            "mixup; or resize the student's images for the teacher."
        )
    parts = _parts(source, validation, test)
    if verbose and (found := source.describe(parts)):
        print(found, flush=True)
    available = parts["train"][2]
    size = available if train_examples is None else train_examples
    if size > available:
        raise UsageError(
            f"train_examples={size} is more than the {available} training examples of "
            f"{source.name!r}."
        )
    if batch_size > size:
        raise UsageError(
            f"batch_size={batch_size} is more than the {size} training examples: it must be at "
            f"most {size}."
        )
    if normalize:
        mean, std = source.statistics(available)
    else:
        mean, std = (values * source.image_shape[-1] for values in RAW)

    def of(source, cache, teacher_size=None, of_teacher=None):
        kept = False if resized_crop or teacher_size else cache
        splits = {"train": _open(source, *parts["train"], kept, train_examples, teacher_size)}
        for split in ("validation", "test"):
            splits[split] = _open(source, *parts[split], cache) if split in parts else None
        return Data(
            source,
            mean,
            std,
            batch_size,
            seed,
            Augmentation(augment, mixup, cutmix),
            bool(mixup or cutmix or one_hot),
            indices,
            splits,
            views,
            balanced,
            of_teacher,
            peer_views,
        )

    if teacher_size is None:
        return of(source, cache)
    # Made when it is asked for, and not kept decoded beside the student's.
    of_teacher = functools.cache(lambda: of(source.at(teacher_size), cache=False))
    return of(source, cache, teacher_size, of_teacher)


def _parts(source, validation, test):
    """Returns the part of a split that each name reads, `{"train": (split, start, stop), ...}`.

    The training split begins with what is trained on. Then come the validation examples and the
    test examples, where the source has no split of its own for them.
    """
    end = source.size("train")
    held_out = {
        "test": (source.test_split, test),
        "validation": (source.validation_split, validation),
    }
    parts, stop = {}, end
    for name, (split, share) in held_out.items():
        if split is not None:
            parts[name] = (split, 0, source.size(split))
        elif count := _count(name, share, end):
            parts[name] = ("train", stop - count, stop)
            stop -= count
    if stop < 1:
        raise UsageError(
            f"validation={validation!r} and test={test!r} set aside {end - stop} of the {end} "
            "examples: none is left to train on."
        )
    parts["train"] = ("train", 0, stop)
    return {name: parts[name] for name in ("train", "validation", "test") if name in parts}


def _open(source, split, start, stop, cache, keep=None, teacher_size=None):
    """Returns a part of a split as examples in memory or streamed, `keep` of them if given.

    Streamed ones have images for the teacher too, where `teacher_size` is given.
    """
    size = in_memory_bytes(stop - start, source.image_shape)
    if cache is True or (cache == "auto" and size <= MEMORY):
        images, labels = source.into_memory(split, start, stop)
        if keep is not None:
            kept = balanced_subset(labels, keep)
            images, labels = images[kept], labels[kept]
        return InMemory(images, labels)
    references = source.references(split, start, stop)
    if keep is not None:
        labels = source.labels(split, start, stop)
        references = _filter(references, balanced_subset(labels, keep), stop - start)
    count = stop - start if keep is None else keep
    buffer_size = min(count, max(1, MEMORY // source.reference_bytes(split)))
    decode = functools.partial(source.decode, teacher_size=teacher_size)
    return Streamed(references, decode, count, source.image_shape, buffer_size)


def _filter(dataset, positions, size):
    """Keeps the examples at `positions` of a dataset of `size` examples."""
    kept = np.zeros(size, bool)
    kept[positions] = True
    kept = tf.constant(kept)
    dataset = dataset.enumerate().filter(lambda position, _: tf.gather(kept, position))
    return dataset.map(lambda _, example: example)


def balanced_subset(labels, count):
    """Chooses examples of all classes in equal numbers, as near as possible.

    The first example of each class comes first, then the second of each, and so on: the subset of
    a larger `count` contains that of a smaller one.

    Args:
        labels: Integer array `(examples,)`.
        count: Integer, at most the number of examples.

    Returns:
        An integer array `(count,)`, the ascending positions of the chosen examples.
    """
    return np.sort(np.argsort(ranks(labels), kind="stable")[:count])


def _check_alpha(name, alpha):
    number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
    if not number or not 0 <= alpha < float("inf"):
        raise UsageError(f"{name} must be a number of at least 0; received {alpha!r}.")


def _check_augment(augment):
    if augment is None:
        return
    if not isinstance(augment, (list, tuple)):
        raise UsageError(f"augment must be a tuple of names, or None; received {augment!r}.")
    for name in augment:
        if name not in GEOMETRIC:
            raise unknown("augmentation", name, GEOMETRIC)
    if {"crop", "resized_crop"} <= set(augment):
        raise UsageError("augment takes 'crop' or 'resized_crop', not both.")


def _check_image_size(name, value):
    if value is None:
        return None
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2:
        raise UsageError(f"{name} must be a pair (height, width); received {value!r}.")
    return tuple(check_integer(name, size, 1) for size in pair)


def _check_share(name, value):
    right = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not right or not 0 <= value < float("inf") or (value >= 1 and int(value) != value):
        raise UsageError(
            f"{name} must be a fraction in [0, 1) or an integer number of examples; received "
            f"{value!r}."
        )


def _count(name, share, size):
    """Returns how many of `size` examples to set aside."""
    # Whole numbers of a config arrive as floats.
    count = int(share) if share >= 1 else round(share * size)
    if share and not 0 < count < size:
        raise UsageError(
            f"{name}={share!r} sets aside {count} of the {size} examples: both parts need at "
            "least one."
        )
    return count
