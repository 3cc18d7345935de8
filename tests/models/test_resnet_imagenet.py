"""ResNets of torchvision: outputs, step by step in its names."""

import numpy as np
import pytest
import tensorflow as tf
import zoo
from published import Published, signed

from tfkd import models

UNITS = {"resnet18_imagenet": (2, 2, 2, 2), "resnet50_imagenet": (3, 4, 6, 3)}


def torchvision(state, units, x):
    net = Published(state)

    def normalized(x, unit, number, stride=1):
        x = net.convolution(x, f"{unit}.conv{number}", stride)
        return net.normalization(x, f"{unit}.bn{number}")

    x = tf.nn.relu(net.normalization(net.convolution(x, "conv1", 2), "bn1"))
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    for stage, count in enumerate(units, start=1):
        for position in range(count):
            unit, stride = f"layer{stage}.{position}", 2 if stage > 1 and position == 0 else 1
            passing = x
            if f"{unit}.downsample.0.weight" in state:
                passing = net.convolution(x, f"{unit}.downsample.0", stride)
                passing = net.normalization(passing, f"{unit}.downsample.1")
            if f"{unit}.conv3.weight" in state:
                x = tf.nn.relu(normalized(x, unit, 1))
                x = tf.nn.relu(normalized(x, unit, 2, stride))
                x = normalized(x, unit, 3)
            else:
                x = normalized(tf.nn.relu(normalized(x, unit, 1, stride)), unit, 2)
            x = tf.nn.relu(x + passing)
    return net.classified(x)


@pytest.mark.parametrize(
    "identifier", ["resnet18_imagenet", pytest.param("resnet50_imagenet", marks=pytest.mark.slow)]
)
def test_outputs_are_those_of_torchvision(identifier):
    model = models.create(identifier, num_classes=7, input_shape=(45, 70, 3))
    state = signed(zoo.torch_state(model))
    models.load_torch_weights(model, state)
    image = zoo.images((45, 70, 3))
    expected = torchvision(state, UNITS[identifier], image)
    assert np.std(expected) > 0
    np.testing.assert_allclose(model(image, training=False), expected, rtol=1e-3)
