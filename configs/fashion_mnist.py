"""Distillation on Fashion-MNIST (60,000 training images of 28x28, 10 classes).

No paper's protocol: batch 128, 30 epochs, a tenth of the learning rate after 62.5, 75 and 87.5 %.

Command: python -m tfkd.train --config=configs/fashion_mnist.py --workdir=runs/fashion-kd
Result: not run in full here; docs/results.md has small runs.
"""

from tfkd import config as tfkd_config

# The first are the values for CIFAR-100; not tuned here.
SETTINGS = {
    **tfkd_config.SPOT_ADAPTIVE_STUDY,
    **tfkd_config.SMALL_ADVERSARY,
    **tfkd_config.branches_ramp(epochs=30),
}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, SETTINGS, teacher="resnet20", student="resnet8"
    )
    config.data.name = "fashion_mnist"
    config.data.batch_size = 128
    if chosen["runlocal"]:
        config.data.train_examples = 512
        config.epochs = config.teacher.epochs = 1
    return config
