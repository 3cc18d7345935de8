"""What several tests of the zoo share."""

import functools
import json

import numpy as np
from golden_numbers import FOLDER, files, load

from tfkd import models
from tfkd.models import torch_checkpoint

#: The published names that differ from our ids.
IDS = {
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenet_v2",
    "ShuffleV1": "shufflenet_v1",
    "ShuffleV2": "shufflenet_v2",
}

#: The smallest model of each family.
FAMILY_IDS = (
    "resnet8",
    "resnet50",
    "resnet18_imagenet",
    "wrn_16_1",
    "vgg8",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
    "vit_mini",
    "convnext_mini",
)

#: Those of which there is no PyTorch network that is equal to the last parameter.
WITHOUT_PYTORCH = ("vit_mini", "vit_tiny", "convnext_mini")

FORWARD_FILES = files("forward_*.npz")


def published():
    """Returns the published networks' sizes as `{id: record}`."""
    records = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))
    return {IDS.get(name, name): record for name, record in records.items()}


def forward_case(file):
    """Returns `(id, state dict, arrays)` of one golden forward pass."""
    name = file.removeprefix("forward_").removesuffix(".npz")
    arrays = load(file)
    state = {key.removeprefix("weights/"): arrays[key] for key in arrays if "weights/" in key}
    return IDS.get(name, name), state, arrays


def torch_state(model, seed=0):
    """Returns random weights in PyTorch's names and layout that fit a model, all in [0, 1)."""
    generator = np.random.default_rng(seed)
    wanted = torch_checkpoint._wanted(model)
    return {
        name: generator.random(torch_checkpoint._torch_shape(axes, variable.shape), dtype="float32")
        for name, (axes, variable) in wanted.items()
    }


def tap_names(stages):
    """Returns the taps f0 … fJ of a network of so many stages."""
    return ["stem", *(f"stage{stage}" for stage in range(1, stages + 1)), "pooled"]


@functools.cache
def model(identifier):
    """Returns a model of 16x16 images, made once: tests must leave its variables as they are."""
    return models.create(identifier, num_classes=100, input_shape=(16, 16, 3), seed=0)


def images(shape, batch=2, seed=0):
    """Returns a float32 batch of noise."""
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype("float32")


def weights(model):
    """Returns copies of a model's weights as NumPy arrays, by path inside the model."""
    return {weight.path: np.array(weight) for weight in model.weights}
