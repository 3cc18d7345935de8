"""How many images a second the input pipeline delivers, and how many a training step takes.

    python benchmarks/input_pipeline.py [--data=cifar100] [--student=wrn_16_2]

The pipelines and the training step run in one process, in turn, so that whatever else the machine
does slows them alike; what is printed are medians and ratios of medians. The pipeline has the
machine to itself while it is measured: a ratio of 10 says that feeding the step costs about a
tenth of the machine's time. A data set that cannot be prepared here is replaced by `digits`.

    python benchmarks/input_pipeline.py --data=photographs

compares a folder of JPEG files of 500x375 pixels, cut and resized to 224x224, with the same done by
`keras.utils.image_dataset_from_directory` and `tf.image`.
"""

import pathlib
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from sklearn.datasets import load_sample_images

import tfkd
from tfkd.data.pipeline import PREFETCHED
from tfkd.errors import UsageError

flags.DEFINE_string("data", "cifar100", "Name of the data set, or photographs.")
flags.DEFINE_string("student", "wrn_16_2", "Id of the model that is trained.")
flags.DEFINE_integer("batch_size", 64, "Images per step.", 1)
flags.DEFINE_integer("rounds", 9, "How often each of them is measured.", 3)
flags.DEFINE_integer("batches", 150, "Batches of the pipeline per measurement.", 1)
flags.DEFINE_integer("steps", 5, "Training steps per measurement.", 1)

FLAGS = flags.FLAGS

# What a pipeline has prefetched while something else was measured: not timed.
BUFFERED = 30

PIPELINES = {
    "nothing": {"augment": ()},
    "crop+flip": {},
    "crop+flip, mixup": {"mixup": 0.2},
    "crop+flip, cutmix": {"cutmix": 1.0},
    "crop+flip, mixup or cutmix": {"mixup": 0.2, "cutmix": 1.0},
}


def load(**settings):
    """Loads the data, with crop and flip unless `settings` say otherwise."""
    settings = {"augment": ("crop", "flip"), "batch_size": FLAGS.batch_size, **settings}
    return tfkd.data.load(**settings)


def endless(dataset):
    """Yields batches, pass after pass."""
    while True:
        yield from dataset


def load_all():
    """Returns `{row: Data}`, of the data set asked for or else of digits."""
    name = FLAGS.data
    try:
        load(name=name)
    except UsageError as error:
        print(f"{error} Measuring digits instead.", file=sys.stderr)
        name = "digits"
    return {row: load(name=name, **settings) for row, settings in PIPELINES.items()}


def training_step(data):
    """Returns a function that trains on one and the same batch."""
    model = tfkd.models.create(FLAGS.student, data.num_classes, data.input_shape)
    model.compile(
        tfkd.optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=tfkd.runtime.jit_compile(),
    )
    batch = next(iter(data.train))
    return lambda: model.train_on_batch(*batch)


def images_per_second(action, untimed, timed):
    """Runs an action, which handles one batch, and times the later runs."""
    for _ in range(untimed):
        action()
    start = time.perf_counter()
    for _ in range(timed):
        action()
    return timed * FLAGS.batch_size / (time.perf_counter() - start)


def write_photographs(root, count=512):
    """Writes a folder of JPEG files: parts of the two photographs of scikit-learn."""
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = load_sample_images().images[number % 2]
        top, left = (random.integers(size + 1) for size in (427 - 375, 640 - 500))
        part = tf.constant(photograph[top : top + 375, left : left + 500])
        path = pathlib.Path(root, "train", "ab"[number % 2], f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(part, quality=90).numpy())


def with_keras(root):
    """Returns the training batches of a folder as users of Keras write them."""

    def augment(image, label):
        seed = tf.random.uniform((2,), maxval=2**31 - 1, dtype=tf.int32)
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((0, 0, 4)),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.ensure_shape(tf.slice(image, begin, size), (None, None, 3))
        image = tf.image.resize(image, (224, 224), antialias=True)
        return tf.image.random_flip_left_right(image) / 127.5 - 1, label

    images = keras.utils.image_dataset_from_directory(
        pathlib.Path(root, "train"), image_size=(375, 500), batch_size=None, verbose=False
    )
    images = images.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(FLAGS.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def measure(actions, beside, title):
    """Times actions in turn, and prints the medians and their ratios to that of one of them.

    Args:
        actions: `{row: (action, untimed, timed)}`.
        beside: String, the row that the others are compared with.
        title: String, what the ratios are.
    """
    rates = {row: [] for row in actions}
    for measured in range(FLAGS.rounds + 1):
        for row, action in actions.items():
            rate = images_per_second(*action)
            if measured:  # The first round traces and compiles.
                rates[row].append(rate)
    medians = {row: np.median(values) for row, values in rates.items()}
    print(f"{'':30} images/s  {title}")
    for row, median in medians.items():
        print(f"{row:30} {median:8.0f}  {median / medians[beside]:6.2f}")


def main(_):
    """Measures and prints."""
    logging.set_verbosity(logging.ERROR)  # TFDS tells every file it opens.
    if FLAGS.data == "photographs":
        with tempfile.TemporaryDirectory() as root:
            write_photographs(root)
            data = load(
                name=root, image_size=224, augment=("resized_crop", "flip"), validation=0, test=8
            )
            of_keras = "Keras and tf.image"
            pipelines = {"tfkd": data.train, of_keras: with_keras(root)}
            actions = {
                row: (endless(pipeline).__next__, PREFETCHED, data.steps_per_epoch)
                for row, pipeline in pipelines.items()
            }
            print(f"{data!r}, {FLAGS.rounds} rounds")
            measure(actions, of_keras, "times Keras")
        return
    loaded = load_all()
    actions = {
        row: (endless(each.train).__next__, BUFFERED, FLAGS.batches) for row, each in loaded.items()
    }
    data, step = loaded["crop+flip"], f"training step of {FLAGS.student}"
    actions[step] = (training_step(data), 0, FLAGS.steps)
    print(f"{data!r}, {FLAGS.rounds} rounds")
    measure(actions, step, "times the step")


if __name__ == "__main__":
    try:
        app.run(main)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
