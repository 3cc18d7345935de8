"""The families of the zoo: each declares its ids, its builder and its PyTorch names."""

from tfkd.models import (
    convnext,
    mobilenet_v2,
    resnet,
    resnet50,
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
    wide_resnet,
    vgg,
    mobilenet_v2,
    shufflenet_v1,
    shufflenet_v2,
    vit,
    convnext,
)
