"""How many images a second the input pipeline delivers, and how many a training step takes.

    python benchmarks/input_pipeline.py [--data=cifar100] [--student=wrn_16_2]

The pipelines and the training step run in one process, in turn, so that whatever else the machine
does slows them alike; what is printed are medians and ratios of medians. The pipeline has the
machine to itself while it is measured: a ratio of 10 says that feeding the step costs about a
tenth of the machine's time. A data set that cannot be prepared here is replaced by `digits`.
"""

import sys
import time

import keras
import numpy as np
from absl import app, flags, logging

import tfkd
from tfkd.errors import UsageError

flags.DEFINE_string("data", "cifar100", "Name of the data set.")
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


def main(_):
    """Measures and prints."""
    logging.set_verbosity(logging.ERROR)  # TFDS tells every file it opens.
    loaded = load_all()
    data = loaded["crop+flip"]
    actions = {
        row: (endless(each.train).__next__, BUFFERED, FLAGS.batches) for row, each in loaded.items()
    }
    step = f"training step of {FLAGS.student}"
    actions[step] = (training_step(data), 0, FLAGS.steps)
    rates = {row: [] for row in actions}
    for measured in range(FLAGS.rounds + 1):
        for row, action in actions.items():
            rate = images_per_second(*action)
            if measured:  # The first round traces and compiles.
                rates[row].append(rate)

    medians = {row: np.median(values) for row, values in rates.items()}
    print(f"{data!r}, {FLAGS.rounds} rounds")
    print(f"{'':30} images/s  times the step")
    for row, median in medians.items():
        print(f"{row:30} {median:8.0f}  {median / medians[step]:6.1f}")


if __name__ == "__main__":
    try:
        app.run(main)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
