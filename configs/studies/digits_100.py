"""Distillation with very few images: 100 handwritten digits, for a teacher that has seen 1,000.

docs/studies.md has the protocol; the images come with scikit-learn. A run takes a minute or two on
one CPU core.

Command:
    python -m tfkd.compare --config=configs/studies/digits_100.py --methods=alone,kd,ackd --seeds=3 --workdir=runs/digits-100
Result: not run yet; docs/studies.md will have it.
"""  # noqa: E501

from tfkd import config as tfkd_config

# The rest are the values for CIFAR-100; not tuned here.
SETTINGS = {
    **tfkd_config.SMALL_MAPS,
    **tfkd_config.SPOT_ADAPTIVE_STUDY,
    **tfkd_config.branches_ramp(epochs=240),
    **tfkd_config.SMALL_ADVERSARY,
}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, SETTINGS, teacher="wrn_16_2", student="resnet8"
    )
    config.data.name = "digits"
    config.data.batch_size = 32
    config.data.validation = 297
    config.data.train_examples = 100
    config.teacher.train_examples = 1000
    config.schedule.name = "cosine"
    config.teacher.epochs = 20
    config.epochs = 240
    if chosen["runlocal"]:
        config.teacher.train_examples = 128
        config.epochs = config.teacher.epochs = 2
    return config
