"""`tf.data` pipelines in which the seed, the epoch and the index decide everything."""

import os

import numpy as np
import tensorflow as tf

from tfkd.data.augmentation import generator, random_box

#: How many batches are made at a time, and how many wait for the training step.
PARALLEL_CALLS = min(16, os.cpu_count() or 1)
PREFETCHED = 4


class EpochCounter:
    """Holds the epoch of a training pipeline's next pass.

    A pass counts once its last batch has been delivered. What reads a first batch and drops it,
    as Keras does under `tf.distribute` to build a model, or breaks off in the middle, begins the
    same epoch again the next time.
    """

    def __init__(self):
        self.epoch = 0

    def deliver(self, epoch, step, steps):
        """Notes that batch `step` of the `steps` of `epoch` is delivered."""
        if step == steps - 1:
            self.epoch = int(epoch) + 1


class InMemory:
    """Examples that are held decoded in the host's memory.

    Args:
        images: Uint8 array `(examples, height, width, channels)`.
        labels: Int32 array `(examples,)`.
    """

    def __init__(self, images, labels):
        self.size = len(labels)
        self.image_shape = images.shape[1:]
        # An eager tensor goes to the accelerator if there is one: gathering is the host's work.
        with tf.device("CPU:0"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels)

    def in_order(self, batch_size, draws=None):
        """Returns a dataset of batches for `read`, the last one smaller.

        Args:
            batch_size: Integer.
            draws: Dict of tensors `(size, ...)`, to go with the examples.
        """
        indices = tf.data.Dataset.range(self.size).batch(batch_size)
        return indices.map(lambda index: _with_draws({"index": index}, draws))

    def plan(self, rng, draws, batch_size):
        """Plans a pass in random order.

        Args:
            rng: A `numpy.random.Generator`.
            draws: Dict of arrays `(size,)`, to go with the examples.
            batch_size: Integer. What remains after the last full batch is dropped.

        Returns:
            A dict of arrays, which `shuffled` takes as tensors.
        """
        steps = self.size // batch_size
        order = rng.permutation(self.size)[: steps * batch_size]
        plan = {"index": order, **{name: draw[order] for name, draw in draws.items()}}
        return {name: values.reshape(steps, batch_size) for name, values in plan.items()}

    def shuffled(self, plan, batch_size):
        """Returns the dataset of batches for `read` that was planned."""
        del batch_size  # The plan consists of batches.
        return tf.data.Dataset.from_tensor_slices(plan)

    def labels(self):
        """Returns all labels as an array, in order."""
        return self._labels.numpy()

    def read(self, batch):
        """Returns the images and labels of a batch."""
        index = batch["index"]
        return tf.gather(self._images, index), tf.gather(self._labels, index)


class Streamed:
    """Examples that are read and decoded again in every pass.

    Args:
        references: Dataset of `{"image", "label"}` with undecoded images, in a fixed order.
        decode: Function of such a dataset and a function that chooses the box of an image (see
            `Source.decode`), which decodes the images to one known shape; those for the teacher
            too, where it sees others.
        size: Integer, how many there are.
        image_shape: Tuple `(height, width, channels)`.
        buffer_size: Integer, how many undecoded examples the shuffle may hold.
    """

    def __init__(self, references, decode, size, image_shape, buffer_size):
        self.size = size
        self.image_shape = image_shape
        self._decode = decode
        self._references = references.enumerate().map(
            lambda index, example: {"index": index, **example}
        )
        self._buffer_size = buffer_size

    def in_order(self, batch_size, draws=None):
        """Returns a dataset of batches for `read`, as `InMemory.in_order` does."""
        return self._batches(self._references, draws).batch(batch_size)

    def _batches(self, references, draws):
        """Decodes examples, with the rows of `draws` that belong to them."""
        if not draws:
            return self._decode(references)
        references = references.map(lambda example: _with_draws(example, draws))
        if "box" not in draws:
            return self._decode(references)
        return self._decode(references, lambda example, size: random_box(size, example["box"]))

    def plan(self, rng, draws, batch_size):
        """Plans a pass in random order, as `InMemory.plan` does."""
        del batch_size
        return {"seed": rng.integers(np.iinfo(np.int64).max), **draws}

    def shuffled(self, plan, batch_size):
        """Returns the dataset of batches for `read` that was planned."""
        # A dataset adds the global seed to its own. This function is being traced, and the global
        # seed set here is that of its graph alone: the order depends on the plan's seed only.
        tf.random.set_seed(1)
        seed = plan.pop("seed")
        shuffled = self._references.shuffle(
            self._buffer_size, seed=seed, reshuffle_each_iteration=False
        )
        return self._batches(shuffled, plan).batch(batch_size, drop_remainder=True)

    def labels(self):
        """Returns all labels as an array, in order; reads the data set once."""
        labels = self._references.map(lambda example: example["label"])
        return np.fromiter(labels.as_numpy_iterator(), np.int32, self.size)

    def read(self, batch):
        """Returns the images and labels of a batch."""
        return batch["image"], batch["label"]


def _with_draws(batch, draws):
    """Adds the rows of `draws` that belong to the examples of a batch, or to a single one."""
    draws = draws or {}
    return {**batch, **{name: tf.gather(draw, batch["index"]) for name, draw in draws.items()}}


def training_pipeline(
    examples,
    batch_size,
    seed,
    augmentation,
    encode,
    counter,
    indices=False,
    views=None,
    teacher_outputs=None,
    class_weights=None,
    peer_views=1,
):
    """Builds the pipeline that `fit` reads, one epoch per pass.

    TensorFlow optimizes what is inside of `flat_map` in every pass again, which a small data set
    feels. Hence NumPy makes the random numbers, and the work is done outside.

    Args:
        examples: An `InMemory` or `Streamed`.
        batch_size: Integer, at most `examples.size`.
        seed: Non-negative integer.
        augmentation: An `Augmentation`.
        encode: Function of uint8 images and int32 labels that returns what a model takes.
        counter: An `EpochCounter`, which says which epoch a pass is.
        indices: Whether labels come as `{"label": ..., "index": ...}`, with the positions of the
            examples in the training set.
        views: Integer, how many augmentations every example has, in turn by epoch; None for
            another one in each epoch.
        teacher_outputs: The `TeacherOutputs` that come as `"teacher"` beside the labels; None for
            none.
        class_weights: Array of one number per class, or None.
        peer_views: Integer, how many augmentations of every image there are at a time; those but
            the first come as a tuple, `"peer_images"`, beside the labels.

    Returns:
        A finite `tf.data.Dataset` of `(images, labels)`, with class weights of `(images, labels,
        weights)`; the weight of a mixed image is the mixture of its classes' weights. Each pass is
        a pure function of `seed` and the epoch.
    """
    steps = examples.size // batch_size

    def plan(epoch):
        draws = draws_of(augmentation, examples, seed, epoch, views)
        for peer in range(1, peer_views):
            theirs = draws_of(augmentation, examples, seed, epoch, views, peer)
            draws |= {f"{name}/{peer}": values for name, values in theirs.items()}
        rng = generator(seed, epoch, "order")
        return {"epoch": np.int64(epoch), **examples.plan(rng, draws, batch_size)}

    spec = {name: (np.shape(value), value.dtype) for name, value in plan(0).items()}

    def begin(_):
        """Plans the pass that begins now."""
        values = tf.numpy_function(
            lambda: list(plan(counter.epoch).values()), [], [dtype for _, dtype in spec.values()]
        )
        return {
            name: tf.ensure_shape(value, shape)
            for (name, (shape, _)), value in zip(spec.items(), values)
        }

    def one_pass(planned):
        epoch = tf.data.Dataset.from_tensors(planned.pop("epoch")).repeat()
        return tf.data.Dataset.zip(epoch, examples.shuffled(planned, batch_size))

    def make(epoch, batch):
        pixels, classes = examples.read(batch)

        def seen(pixels, draws=batch):
            """Returns images as a model gets them, and their labels."""
            images, labels = encode(augmentation.move(pixels, draws), classes)
            return augmentation.mix(images, labels, draws)

        images, labels = seen(pixels)
        weighted = ()
        if class_weights is not None:
            weights = tf.constant(class_weights, tf.float32)
            one_hot = len(labels.shape) == 2
            weighted = (
                tf.linalg.matvec(labels, weights) if one_hot else tf.gather(weights, labels),
            )
        named = {"label": labels}
        if indices:
            named["index"] = batch["index"]
        if teacher_outputs is not None:
            named["teacher"] = teacher_outputs.read(epoch % (views or 1), batch["index"])
        if "teacher_image" in batch:
            named["teacher_images"], _ = seen(batch["teacher_image"])
        if peer_views > 1:
            named["peer_images"] = tuple(
                seen(pixels, of_peer(batch, peer))[0] for peer in range(1, peer_views)
            )
        return epoch, (images, named if len(named) > 1 else labels, *weighted)

    def deliver(step, element):
        epoch, batch = element
        noted = tf.numpy_function(counter.deliver, [epoch, step, steps], [])
        with tf.control_dependencies([noted]):
            return tf.nest.map_structure(tf.identity, batch)

    batches = tf.data.Dataset.from_tensors(0).map(begin).flat_map(one_pass)
    batches = batches.map(make, num_parallel_calls=PARALLEL_CALLS).prefetch(PREFETCHED)
    # Prefetched batches are not delivered yet, so the pass is counted behind the buffer.
    delivered = batches.enumerate().map(deliver)
    return _with_options(delivered.apply(tf.data.experimental.assert_cardinality(steps)))


def of_peer(draws, peer):
    """Returns the random numbers of one of several students, by the names of the first one's."""
    ending = f"/{peer}"
    return {
        name.removesuffix(ending): values for name, values in draws.items() if name.endswith(ending)
    }


def draws_of(augmentation, examples, seed, epoch, views, peer=0):
    """Returns the random numbers of an epoch's augmentation, as one of the students sees it.

    Those of views do not depend on the seed, so that runs of all seeds share them.
    """
    if views is not None:
        seed, epoch = 0, epoch % views
    return augmentation.draw(seed, epoch, examples.size, examples.image_shape, peer)


def view_pipeline(examples, batch_size, augmentation, encode, views, view):
    """Builds a pipeline over one view of all training examples, in order.

    Args:
        examples: An `InMemory` or `Streamed`.
        batch_size: Integer. The last batch may be smaller.
        augmentation: An `Augmentation`.
        encode: Function of uint8 images and int32 labels that returns what a model takes.
        views: Integer, the number of views; None where nothing is random.
        view: Integer, which of them.

    Returns:
        A finite `tf.data.Dataset` of images.
    """
    draws = draws_of(augmentation, examples, 0, view, views)
    with tf.device("CPU:0"):
        draws = {name: tf.constant(values) for name, values in draws.items()}

    def make(batch):
        images, labels = examples.read(batch)
        return encode(augmentation.move(images, batch), labels)[0]

    batches = examples.in_order(batch_size, draws).map(make, num_parallel_calls=PARALLEL_CALLS)
    return _with_options(batches.prefetch(PREFETCHED))


def evaluation_pipeline(examples, batch_size, encode):
    """Builds a pipeline over all examples, in order and as they are.

    Args:
        examples: An `InMemory` or `Streamed`.
        batch_size: Integer. The last batch may be smaller.
        encode: Function of uint8 images and int32 labels that returns what a model takes.

    Returns:
        A finite `tf.data.Dataset` of `(images, labels)`.
    """
    batches = examples.in_order(batch_size).map(
        lambda batch: encode(*examples.read(batch)), num_parallel_calls=PARALLEL_CALLS
    )
    steps = -(-examples.size // batch_size)
    batches = batches.prefetch(PREFETCHED)
    return _with_options(batches.apply(tf.data.experimental.assert_cardinality(steps)))


def _with_options(dataset):
    options = tf.data.Options()
    options.deterministic = True
    # TensorFlow 2.21 lets an iterator's end wait until its tuner wakes up, which after an epoch of
    # a minute can take half a minute.
    options.autotune.enabled = False
    # A buffer behind `deliver` would count a pass before its last batch is asked for.
    options.experimental_optimization.inject_prefetch = False
    # Every worker makes the same batches and keeps its part of each. To share out files instead
    # needs as many of them; not to share at all shows every worker the same examples.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
