"""Co-distillation of two equal classifiers on CIFAR-100, in the setting of the survey.

Survey: Knowledge Distillation: A Survey, https://arxiv.org/abs/2006.05525, which reports for ACNs
two ResNet-14: 66.88 % alone, 68.40 % with ACNs. The protocol is not in what could be read of the
paper (https://doi.org/10.1016/j.patcog.2020.107659); this one is the usual one of that time: SGD
with momentum 0.9 and weight decay 5e-4, batch 128, 200 epochs, learning rate 0.1, a tenth of it
after epochs 100 and 150, random crops with 4 pixels of padding and flips.

5,000 images are set aside for validation, and the last epoch is reported.

Command: python -m tfkd.compare --config=configs/cifar100_codistillation.py
    --methods=alone,mutual:temperature=3.0,acn --workdir=runs/cifar100-codistillation
Time: made for a GPU.
Result: not run here.
"""

from tfkd import config as tfkd_config


def get_config(arguments=""):
    """Returns the config; arguments: method, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, method="acn", teacher="resnet14", student="resnet14"
    )
    config.data.name = "cifar100"
    config.data.batch_size = 128
    config.epochs = 200
    config.optimizer.learning_rate = 0.1
    config.schedule.milestones = (100 / 200, 150 / 200)
    if chosen["runlocal"]:
        config.data.train_examples = 256
        config.epochs = 2
    return config
