"""`Data`: the pipelines of a data set, and what a teacher says of its images."""

import copy
import numbers

import numpy as np
import tensorflow as tf

from tfkd.data import teacher_outputs
from tfkd.data.pipeline import (
    EpochCounter,
    evaluation_pipeline,
    training_pipeline,
    view_pipeline,
)
from tfkd.errors import UsageError, unknown


class Data:
    """A data set, ready for training. Made by `load`.

    Attributes:
        train: `tf.data.Dataset` of `steps_per_epoch` batches of `batch_size`. Every pass over it
            is the next epoch, in another order and with other augmentation.
        validation: `tf.data.Dataset` of all validation examples in order, or `None`.
        test: `tf.data.Dataset` of all test examples in order.
        name: String.
        input_shape: Tuple `(height, width, channels)`.
        num_classes: Integer.
        class_names: Tuple of strings.
        sizes: Dict of the number of examples in `"train"`, `"validation"` and `"test"`.
        mean: Tuple of floats in [0, 1], one per channel, subtracted from images in [0, 1].
        std: Tuple of floats in [0, 1], one per channel, that the images are then divided by. With
            `normalize=False` they are 0 and 1/255, which gives pixels of 0 to 255.
        batch_size: Integer.
        steps_per_epoch: Integer.
        augment: Tuple of strings.
        one_hot: Boolean, whether labels are float32 `(batch, num_classes)` rather than int32
            `(batch,)`.
        seed: Integer.
        views: Integer, how many fixed augmentations every training image has, or `None`.

    `train_labels()` returns the labels of the training set, which losses that remember every
    example ask for; `pixels()` gives images as they were before normalisation; `start_epoch()`
    chooses the epoch of the next pass; `cache_teacher()` and `with_teacher_outputs()` return data
    whose training batches carry what a teacher says of them; `of_teacher` and
    `with_teacher_images()` give the images of a teacher that sees another size.
    """

    def __init__(
        self,
        source,
        mean,
        std,
        batch_size,
        seed,
        augmentation,
        one_hot,
        indices,
        splits,
        views,
        balanced=False,
        of_teacher=None,
        peer_views=1,
    ):
        self.name = source.name
        self.input_shape = source.image_shape
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.mean, self.std = mean, std
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augmentation.names
        self.one_hot = one_hot
        self.sizes = {name: split.size if split else 0 for name, split in splits.items()}
        self.steps_per_epoch = self.sizes["train"] // batch_size
        self.views = views
        self._of_teacher = of_teacher
        self._peer_views = peer_views
        self._augmentation = augmentation
        self._indices = indices
        self._examples = splits
        self._class_weights = self._balancing() if balanced else None
        self._read_training()
        self.validation, self.test = (
            evaluation_pipeline(splits[name], batch_size, self._encode) if splits[name] else None
            for name in ("validation", "test")
        )

    def _read_training(self, teacher_outputs=None):
        """Makes the training pipeline, at its first epoch."""
        self._counter = EpochCounter()
        self.train = training_pipeline(
            self._examples["train"],
            self.batch_size,
            self.seed,
            self._augmentation,
            self._encode,
            self._counter,
            self._indices,
            self.views,
            teacher_outputs,
            self._class_weights,
            self._peer_views,
        )

    def _balancing(self):
        """Returns the weight of each class that gives all of them the same share; mean 1."""
        counts = np.bincount(self.train_labels(), minlength=self.num_classes)
        there = np.count_nonzero(counts)
        return np.where(counts, self.sizes["train"] / np.maximum(there * counts, 1), 0.0)

    @property
    def of_teacher(self):
        """The same data in the size that the teacher sees, a `Data`; itself if not another one.

        Box and flip of an image are the same in both. `of_teacher.train` has the teacher's images
        alone.
        """
        return self if self._of_teacher is None else self._of_teacher()

    def with_teacher_images(self, split):
        """Returns a split of evaluation with the images of both models, as training has them.

        For `Distiller.check` and `tfkd.callbacks.Diagnostics`, which look at student and teacher.

        Args:
            split: `"validation"` or `"test"`.

        Returns:
            A `tf.data.Dataset` of `(images, {"label": labels, "teacher_images": images})`;
            `validation` or `test` itself, where the teacher sees the student's images.

        Example:
        ```python
        data = tfkd.data.load(
            "./photos", image_size=128, teacher_image_size=224, augment=("resized_crop", "flip")
        )
        print(distiller.check(data.with_teacher_images("validation")))
        ```
        """
        own = getattr(self, split)
        if own is None or self._of_teacher is None:
            return own

        def together(student, teacher):
            images, labels = student
            return images, {"label": labels, "teacher_images": teacher[0]}

        return tf.data.Dataset.zip(own, getattr(self.of_teacher, split)).map(together)

    def cache_teacher(
        self,
        teacher,
        taps=("logits",),
        path=None,
        preprocessing=None,
        dtype="float32",
        limit=2**34,
    ):
        """Runs a teacher once over the training images, and returns data that carry its outputs.

        Distillers then take the teacher's outputs from the batches, and run it only for what is
        not there. With augmentation every image needs a fixed number of views,
        `load(..., views=8)`: so many passes of the teacher serve any number of epochs, seeds and
        methods.

        With `load(..., teacher_image_size=224)` they are those of the teacher's own images, which
        the batches still carry.

        Args:
            teacher: `keras.Model` that outputs logits.
            taps: Tuple of taps of the teacher to keep. Vectors are small; maps of features can
                take more time to read than to compute.
            path: Path of a folder to store them in, for other runs with the same teacher and data;
                each teacher and data set has a subfolder of its own. `None` stores them in memory.
            preprocessing: Function or layer from a batch of this data's images to the teacher's
                inputs, such as a `tfkd.layers.TeacherPreprocessing`; `None` for the identity.
            dtype: `"float32"`, or `"float16"` for half of the size.
            limit: Integer, the most bytes that the outputs may take.

        Returns:
            A `Data` like this one, whose training labels come as `{"label": labels, "teacher":
            {tap: outputs}}`.

        Raises:
            UsageError: If images or labels are mixed, the augmentation has no fixed views, the
                outputs take more than `limit` bytes, or a file of them is damaged.

        Example:
        ```python
        data = tfkd.data.load("cifar100", views=8)
        data = data.cache_teacher(teacher, path="runs/teacher_outputs")
        distiller.fit(data.train, validation_data=data.validation, epochs=240)
        ```
        """
        self._check_not_mixed()
        if self.augment and self.views is None:
            raise UsageError(
                f"Augmentation ({', '.join(self.augment)}) makes another image in every epoch, so "
                "that a teacher's outputs cannot be kept: load(..., views=8) gives every image 8 "
                "fixed augmentations."
            )
        examples = self.of_teacher._examples["train"]

        def view(number):
            return view_pipeline(
                examples, self.batch_size, self._augmentation, self._encode, self.views, number
            )

        numbers = (self.views or 1, examples.size)
        return self._with(
            teacher_outputs.compute(
                teacher, taps, view, numbers, path, dtype, limit, preprocessing, self.train_labels()
            )
        )

    def with_teacher_outputs(self, outputs):
        """Returns data that carry a teacher's outputs from elsewhere.

        For example of an ensemble, of a PyTorch model, or of a model behind an interface. Every
        view of an image gets the same.

        Args:
            outputs: Array of logits `(examples, classes)`, one row for each training example in
                the order of the training set (that of `data.pixels("train")`), or the path of an
                `.npy` file of it; or `{tap: array (examples, ...)}`, or the path of an `.npz` file
                of these. A list of such outputs makes the mean of several teachers: of logits, the
                logarithm of the mean of their predictions.

        Returns:
            A `Data` like this one, as `cache_teacher()` returns it.

        Raises:
            UsageError: If images or labels are mixed, or the outputs do not fit the training set.

        Example:
        ```python
        data = data.with_teacher_outputs("logits.npz")
        teacher = tfkd.models.recorded(student)
        distiller = tfkd.KnowledgeDistiller(student, teacher)
        ```
        """
        self._check_not_mixed()
        size = self._examples["train"].size
        return self._with(teacher_outputs.given(outputs, size, self.views or 1))

    def _with(self, outputs):
        """Returns a copy whose training batches carry a teacher's outputs."""
        data = copy.copy(self)
        data._read_training(outputs)
        return data

    def _check_not_mixed(self):
        if self._augmentation.mixup or self._augmentation.cutmix:
            raise UsageError(
                "mixup and cutmix make new images of several, of which a teacher's outputs are not "
                "known: run the teacher, or load the data without them."
            )

    def train_labels(self):
        """Returns the labels of the training set, int32 `(examples,)`, in the order of indices."""
        return self._examples["train"].labels()

    def pixels(self, split):
        """Returns the examples of a split in order, with neither augmentation nor normalisation.

        Args:
            split: `"train"`, `"validation"` or `"test"`.

        Returns:
            A `tf.data.Dataset` of batches of uint8 images `(batch, *input_shape)`, resized where
            `image_size` asks for it, and int32 labels `(batch,)`; `None` where there is no
            validation split.

        Raises:
            UsageError: If there is no such split.
        """
        if split not in self._examples:
            raise unknown("split", split, self._examples)
        if self._examples[split] is None:
            return None
        return evaluation_pipeline(
            self._examples[split], self.batch_size, lambda images, labels: (images, labels)
        )

    def start_epoch(self, epoch):
        """Makes the next pass over `train` that of `epoch`.

        A pass that delivers its last batch makes the next epoch the next one, so this is needed
        only where a run resumes, or where another run over the same data begins. To be certain of
        the epoch, call it from a callback's `on_epoch_begin`: with several replicas TensorFlow
        reads a few batches ahead, which can be all there are.

        Args:
            epoch: Non-negative integer.

        Raises:
            UsageError: If `epoch` is not a non-negative integer.
        """
        self._counter.epoch = check_integer("epoch", epoch, 0)

    def _encode(self, images, labels):
        """Normalises uint8 images and encodes int32 labels."""
        scale = 1 / (255 * np.array(self.std))
        offset = np.array(self.mean) / np.array(self.std)
        images = tf.cast(images, tf.float32) * scale.astype("float32") - offset.astype("float32")
        return images, tf.one_hot(labels, self.num_classes) if self.one_hot else labels

    def __repr__(self):
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        return (
            f"Data({self.name!r}, {sizes}, input_shape={self.input_shape}, "
            f"num_classes={self.num_classes}, batch_size={self.batch_size}, "
            f"augment={self.augment}, seed={self.seed})"
        )


def check_integer(name, value, least):
    """Returns an integer; a `UsageError` where it is none, or less than `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"{name} must be an integer of at least {least}; received {value!r}.")
    return int(value)
