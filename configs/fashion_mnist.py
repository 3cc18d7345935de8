"""Distillation on Fashion-MNIST (60,000 training images of 28x28, 10 classes)."""

from tfkd import config as tfkd_config


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    chosen = tfkd_config.parse_arguments(
        arguments, method="kd", teacher="resnet20", student="resnet8", runlocal=False
    )
    config = tfkd_config.default_config(chosen["method"], chosen["teacher"], chosen["student"])
    config.data.name = "fashion_mnist"
    config.data.batch_size = 128
    if chosen["runlocal"]:
        config.data.train_examples = 512
        config.epochs = config.teacher.epochs = 1
    return config
