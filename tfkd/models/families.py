"""The families of the zoo: each declares its ids, its builder and its PyTorch names."""

from tfkd.models import (
    convnext,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    resnet50,
    resnet_imagenet,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    vit,
    wide_resnet,
)

#: In the order of `tfkd.models.available()`.
FAMILIES = (
    resnet,
    resnet50,
    resnet_imagenet,
    wide_resnet,
    vgg,
    mobilenet_v1,
    mobilenet_v2,
    shufflenet_v1,
    shufflenet_v2,
    vit,
    convnext,
)
