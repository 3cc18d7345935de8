"""Distillation on handwritten digits (8x8, 10 classes), the data set that needs no download.

500 of the training images, so that there is room between a student and its teacher.

Command: make demo, that is
    python -m tfkd.compare --config=configs/digits.py --methods=alone,kd,ackd --workdir=runs/demo
Time: about three minutes on 2 CPU cores, for the teacher and three students with three seeds.
Result: README.md has the table.
"""

from tfkd import config as tfkd_config

# With the published weights of at and ft the students end at 45 % and 72 %.
# The learning rate falls along a cosine here, without drops at which iakd would review.
# A run of 10 epochs leaves no time for a ramp of 10 (ackd) or 80 (one, okddip, pcl).
SETTINGS = {
    **tfkd_config.SMALL_MAPS,
    "ackd": {"adversarial_ramp": 3.0},
    # The values for CIFAR-100; not tuned here.
    **tfkd_config.SPOT_ADAPTIVE_STUDY,
    "iakd": {"milestones": (0.5, 0.75)},
    **tfkd_config.branches_ramp(epochs=10),
    **tfkd_config.SMALL_ADVERSARY,
}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, SETTINGS, teacher="wrn_16_2", student="resnet8"
    )
    config.data.name = "digits"
    config.data.batch_size = 32
    config.data.train_examples = 500
    config.schedule.name = "cosine"
    config.teacher.epochs = 20
    config.epochs = 10
    if chosen["runlocal"]:
        config.data.train_examples = 128
        config.epochs = config.teacher.epochs = 2
    return config
