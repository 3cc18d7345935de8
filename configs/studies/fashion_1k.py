"""Distillation with few images: 1,000 of Fashion-MNIST's, for a teacher that has seen all.

docs/studies.md has the protocol. Crops and flips are eight fixed views of every image, so that the
teacher runs once. A run takes a few minutes on one CPU core.

Command:
    python -m tfkd.train --config=configs/studies/fashion_1k.py:teacher_of_the_study --workdir=runs/fashion-1k/teacher
    python -m tfkd.compare --config=configs/studies/fashion_1k.py --methods=alone,kd,ackd --seeds=3 --workdir=runs/fashion-1k/resnet8
Result: not run yet; docs/studies.md will have it.
"""  # noqa: E501

from tfkd import config as tfkd_config

# The values for CIFAR-100; not tuned here.
SETTINGS = {
    **tfkd_config.SPOT_ADAPTIVE_STUDY,
    **tfkd_config.SMALL_ADVERSARY,
    **tfkd_config.branches_ramp(epochs=40),
}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, teacher_of_the_study, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments,
        SETTINGS,
        teacher="runs/fashion-1k/teacher/student.keras",
        student="resnet8",
        teacher_of_the_study=False,
    )
    config.data.name = "fashion_mnist"
    config.data.validation = 2000
    config.data.views = 8
    config.data.train_examples = 1000
    config.data.batch_size = 32
    config.schedule.name = "cosine"
    config.epochs = 40
    config.teacher.cache = True
    if chosen["teacher_of_the_study"]:
        tfkd_config.become_teacher_of_study(config, "resnet20")
        config.data.batch_size = 64
        config.epochs = 6
    if chosen["runlocal"]:
        config.data.train_examples = 256
        config.epochs = config.teacher.epochs = 1
    return config
