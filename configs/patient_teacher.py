"""A patient and consistent teacher: a recipe for `kd`, on CIFAR-100.

Paper: Knowledge Distillation: A Good Teacher is Patient and Consistent,
https://arxiv.org/abs/2106.05237, and its code, big_vision: no labels, KL at temperature 1, mixup in
every batch, of which teacher and student see the same images, and many epochs. What differs is in
docs/patient_teacher.md.

Teacher: python -m tfkd.train --config=configs/cifar100.py:method=alone,student=wrn_40_2
    --workdir=runs/wrn_40_2
Command: python -m tfkd.train
    --config=configs/patient_teacher.py:teacher=runs/wrn_40_2/student.keras --workdir=runs/patient
Time: made for a GPU.
Result: not run here.
"""

from tfkd import config as tfkd_config

SETTINGS = {"kd": {"temperature": 1.0, "weight": 1.0, "student_loss_weight": 0.0}}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, SETTINGS, teacher="wrn_40_2", student="wrn_16_2"
    )
    config.data.name = "cifar100"
    config.data.mixup = 1.0
    config.data.batch_size = 128
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = config.teacher.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.global_clipnorm = 1.0
    config.schedule.name = "cosine"
    config.schedule.warmup = 0.01
    config.epochs = 1200
    config.teacher.epochs = 240
    if chosen["runlocal"]:
        config.data.train_examples = 256
        config.epochs = config.teacher.epochs = 1
    return config
