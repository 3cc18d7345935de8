"""Distillation on CIFAR-100 by the protocol of the CRD benchmark.

Paper: Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699, section 4: SGD
with momentum 0.9 and weight decay 5e-4, batch 64, 240 epochs, learning rate 0.05 (0.01 for
MobileNetV2 and the ShuffleNets), a tenth of it after epochs 150, 180 and 210, random crops with
4 pixels of padding and flips. kd: 0.1 · cross-entropy + 0.9 · KL at temperature 4.

The benchmark trains on all 50,000 images and reports the best epoch on the test set. Here 5,000
images are set aside for validation, and the last epoch is reported; `--config.data.validation=0`
trains on all of them.

sakd: the spot-adaptive study, https://arxiv.org/abs/2205.02399, and its code, which keep this
protocol and the losses' weights: routing_scale 2 with at, rkd and vid, otherwise 1. Where several
losses are named, which the study does not do, it is 2 as soon as it is for one of them. As there,
mobilenet_v2 is of full width, and the batch is 32 for nst in two pairs.

Command: python -m tfkd.train --config=configs/cifar100.py --workdir=runs/cifar100-kd
Time: made for a GPU; on 2 CPU cores one epoch of the default pair takes about six minutes.
Result: not run in full here; the benchmark reports 74.92 % for wrn_40_2 -> wrn_16_2 with kd.
"""

from tfkd import config as tfkd_config

#: Pairs whose features are too many for nst on batches of 64.
LARGE_FOR_NST = (("resnet50", "mobilenet_v2"), ("wrn_40_2", "shufflenet_v1"))


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments, tfkd_config.SPOT_ADAPTIVE_STUDY, teacher="wrn_40_2", student="wrn_16_2"
    )
    config.data.name = "cifar100"
    config.epochs = config.teacher.epochs = 240
    light = ("mobilenet", "shufflenet")
    config.optimizer.learning_rate = 0.01 if chosen["student"].startswith(light) else 0.05
    config.teacher.learning_rate = 0.01 if chosen["teacher"].startswith(light) else 0.05
    if config.method.distiller == "sakd":
        if chosen["student"] == "mobilenet_v2":
            config.student.arguments.width = 1.0
        pair = (chosen["teacher"], chosen["student"])
        if "nst" in config.method.losses and pair in LARGE_FOR_NST:
            config.data.batch_size = 32
    if chosen["runlocal"]:
        config.data.train_examples = 256
        config.epochs = config.teacher.epochs = 1
    return config
