"""Whether several replicas give the update of one device, for every method and loss.

    python benchmarks/replicas.py [--losses=all] [--methods=kd,ackd] [--output=FILE.json]

Trains each method from the same weights on 1, 2 and 4 logical CPUs, for a few steps on digits
whose last batch divides unequally. Prints how far the
networks are from those of one device then, the student and all that is trained with it: per
variable the largest difference over the largest value, and of these the largest. `--output` keeps
them as data, from which `tfkd studies` writes the page's table.
"""

import os

# The update is compared, not the speed; and sums then come out in one order.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import tfkd
from tfkd import config as tfkd_config
from tfkd import methods
from tfkd.errors import UsageError
from tfkd.runs import assemble, measurements

#: Every distiller, by the methods that the command line knows.
METHODS = {
    "kd": {},
    "ackd": {},
    "sakd+at": {},
    "iakd": {},
    "mutual": {},
    # Both parts in every step, from the first one on, with small adversaries.
    "acn": {
        "warm_up": 0,
        "generator_width": 8,
        "generator_blocks": 1,
        "discriminator_width": 8,
    },
}
#: The weights of configs/digits.py: as published, they are for maps with 16 times the positions.
WEIGHTS = {"at": {"weight": 1000 / 16}, "ft": {"weight": 200 / 4}}
#: 16, 16 and 7: on four replicas the last batch is shared out as 2, 2, 2 and 1.
EXAMPLES, BATCH_SIZE = 39, 16
REPLICAS = (1, 2, 4)

flags.DEFINE_list("methods", list(METHODS), "Methods, as in configs.")
flags.DEFINE_enum("losses", "kd", ["kd", "all"], "all: every loss by itself too.")
flags.DEFINE_string(
    "output", None, "JSON file for the results, such as docs/results/replicas.json."
)
flags.DEFINE_float("learning_rate", 0.01, "Of every optimizer of a student.")

FLAGS = flags.FLAGS


def train(method, replicas, learning_rate=0.01, **compile_arguments):
    """Trains a method for an epoch of three batches.

    Args:
        method: String, as in configs.
        replicas: Integer.
        learning_rate: Number.
        **compile_arguments: Arguments of the distiller's `compile`.

    Returns:
        The tuple `(weights, logs)`: a list of arrays of everything that was trained, moving
        statistics included, and a dictionary.
    """
    data = tfkd.data.load("digits", batch_size=EXAMPLES, seed=0)
    images, labels = next(iter(data.validation))
    settings = {**WEIGHTS, method.split("+")[0]: METHODS.get(method) or WEIGHTS.get(method, {})}
    config = tfkd_config.default_config(method, "resnet14", "resnet8", settings)
    with tfkd.runtime.strategy("mirrored", replicas).scope():
        keras.utils.set_random_seed(0)

        def create(name, seed):
            return tfkd.models.create(name, data.num_classes, data.input_shape, seed=seed)

        others = [create(name, 2 + i) for i, name in enumerate(methods.peers(config))]
        teacher = create("resnet14", 1) if methods.needs_teacher(config.method) else None
        if methods.weighs_teachers(config):
            teacher = tfkd.models.ensemble([teacher, create("resnet14", 9)])
        distiller = assemble.make_distiller(config, data, create("resnet8", 0), teacher, others)
        for loss in getattr(distiller, "distillation_losses", ()):
            # The step is compared; factors and boundaries need no training for that.
            loss.preparation = None
        distiller.compile(
            tfkd.optimizers.SGD(learning_rate, momentum=0.9, weight_decay=5e-4),
            metrics=["accuracy"],
            **compile_arguments,
        )
        if methods.needs_indices(config):
            labels = {"label": labels, "index": tf.range(EXAMPLES)}
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH_SIZE)
        logs = distiller.fit(batches, verbose=0).history
    kinds = (v for v in distiller.variables if keras.backend.is_float_dtype(v.dtype))
    metrics = {id(variable) for variable in distiller.metrics_variables}
    weights = [variable.numpy() for variable in kinds if id(variable) not in metrics]
    return weights, {name: values[0] for name, values in logs.items()}


def largest_difference(expected, found):
    """The largest difference of two lists of arrays, relative to the largest value of each."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-8))
        for a, b in zip(expected, found, strict=True)
    )


def main(arguments):
    """Trains and prints the table."""
    del arguments
    tfkd.runtime.strategy("mirrored", max(REPLICAS))
    # TensorFlow tells every exchange between replicas, TFDS every file.
    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    methods = [*FLAGS.methods]
    if FLAGS.losses == "all":
        methods += [name for name in tfkd.losses.available() if name not in methods]
    columns = " | ".join(f"{replicas} replicas" for replicas in REPLICAS[1:])
    print(f"| method | {columns} |\n| --- |{' --- |' * (len(REPLICAS) - 1)}")
    worst, rows = 0.0, []
    for method in methods:
        expected, _ = train(method, REPLICAS[0], FLAGS.learning_rate)
        found = [
            largest_difference(expected, train(method, replicas, FLAGS.learning_rate)[0])
            for replicas in REPLICAS[1:]
        ]
        worst = max(worst, *found)
        rows.append([method, *found])
        print(f"| `{method}` | {' | '.join(f'{value:.1e}' for value in found)} |", flush=True)
    print(f"\nlargest: {worst:.1e}")
    if FLAGS.output:
        title = (
            f"An epoch on {EXAMPLES} digits in batches of {BATCH_SIZE}, learning rate "
            f"{FLAGS.learning_rate}: largest difference from one device, of the largest value of "
            "a variable"
        )
        numbers = {f"{replicas} replicas": ".1e" for replicas in REPLICAS[1:]}
        measurements.write(FLAGS.output, title, {"method": "", **numbers}, rows)


if __name__ == "__main__":
    try:
        app.run(main)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
