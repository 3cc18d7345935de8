"""Distillation on ImageNet by the protocol of the published tables.

Paper: Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699; the values are
those of the code of Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679: SGD with
momentum 0.9 and weight decay 1e-4, learning rate 0.1 for batches of 256 (0.2 for 512), 100 epochs,
a tenth of the rate after epochs 30, 60 and 90; random resized crops to 224 pixels and flips;
evaluation of the central 224 pixels of images whose shorter side is 256. kd: 0.5 · cross-entropy +
0.5 · KL at temperature 1. dkd: temperature 1, beta 0.5, for mobilenet_v1 2. reviewkd: weight 1,
for mobilenet_v1 8. Neither grows at first. Other losses have their weights for CIFAR-100.

The tables train on all training images, and report the best epoch on the validation images, which
are the test images here. Here a hundredth of the training images is set aside for validation, and
the last epoch is reported; `--config.data.validation=0` trains on all of them.

The teachers of the tables have the weights of torchvision:

    python -m tfkd.models.torch_weights --model=resnet34_imagenet --num_classes=1000
        --input_shape=224,224,3 --source=resnet34.pth --output=resnet34.keras

makes teacher=resnet34.keras of them. A teacher that is named by its id is trained first, by the
protocol of the student; torchvision's has 90 epochs (recalled).

TFDS makes imagenet2012 of the archives of image-net.org, which are not downloaded by it; it says
where they belong. data=imagenette is a download, ten of the classes. ImageNet in folders is
`--config.data.name=./imagenet`: mean and standard deviation are then those of its own images, and
a teacher with the weights of torchvision needs `--config.teacher.mean="(0.485,0.456,0.406)"
--config.teacher.std="(0.229,0.224,0.225)"`.

Command: python -m tfkd.train --config=configs/imagenet.py --workdir=runs/imagenet-kd
    configs/imagenet.py:teacher=resnet50_imagenet,student=mobilenet_v1 is the other pair.
Time: made for several GPUs.
Result: not run here; the tables report 71.03 % for resnet34 -> resnet18 with kd, where resnet18
    alone reaches 69.76 %, and 70.50 % for resnet50 -> mobilenet_v1.
"""

from tfkd import config as tfkd_config

SETTINGS = {
    "kd": {"temperature": 1.0, "weight": 0.5, "student_loss_weight": 0.5},
    "dkd": {"temperature": 1.0, "beta": 0.5},
    "reviewkd": {"weight": 1.0, "warm_up_epochs": 0},
}

#: What differs for mobilenet_v1.
OF_MOBILENET = {
    "dkd": {"temperature": 1.0, "beta": 2.0},
    "reviewkd": {"weight": 8.0, "warm_up_epochs": 0},
}


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, data, runlocal."""
    defaults = {"teacher": "resnet34_imagenet", "student": "resnet18_imagenet"}
    defaults["data"] = "imagenet2012"
    mobile = "student=mobilenet_v1" in arguments.split(",")
    settings = {**SETTINGS, **(OF_MOBILENET if mobile else {})}
    config, chosen = tfkd_config.from_arguments(arguments, settings, **defaults)
    config.data.name = chosen["data"]
    config.data.image_size = 224
    config.data.augment = ("resized_crop", "flip")
    config.data.validation = 0.01
    config.data.batch_size = 256
    config.optimizer.learning_rate = config.teacher.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.milestones = (0.3, 0.6, 0.9)
    config.epochs = config.teacher.epochs = 100
    if chosen["runlocal"]:
        config.data.image_size = 64
        config.data.validation = 0.1
        config.data.train_examples = 256
        config.data.batch_size = 8
        config.epochs = config.teacher.epochs = 1
    return config
