"""Distillation where there is much to learn from the teacher: 10,000 of CIFAR-100's images.

The teacher has seen all training images, and its students a fifth of them; docs/studies.md has the
protocol. Crops and flips are eight fixed views of every image, so that the teacher runs once.

Command:
    python -m tfkd.train --config=configs/studies/cifar100_10k.py:teacher_of_the_study --precision=auto --workdir=runs/cifar100-10k/teacher
    python -m tfkd.compare --config=configs/studies/cifar100_10k.py --methods=alone,kd,ackd --seeds=3 --precision=auto --workdir=runs/cifar100-10k/resnet8
Time and result: not run yet; docs/studies.md will have them.
"""  # noqa: E501

from tfkd import config as tfkd_config


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, teacher_of_the_study, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments,
        tfkd_config.SPOT_ADAPTIVE_STUDY,
        teacher="runs/cifar100-10k/teacher/student.keras",
        student="resnet8",
        teacher_of_the_study=False,
    )
    config.data.name = "cifar100"
    config.data.validation = 5000
    config.data.views = 8
    config.data.train_examples = 10_000
    config.schedule.name = "cosine"
    config.epochs = 30
    config.teacher.cache = True
    if chosen["student"].startswith(("mobilenet", "shufflenet")):
        config.optimizer.learning_rate = 0.01
    if chosen["teacher_of_the_study"]:
        tfkd_config.become_teacher_of_study(config, "resnet20")
    if chosen["runlocal"]:
        config.data.train_examples = 256
        config.epochs = config.teacher.epochs = 1
    return config
