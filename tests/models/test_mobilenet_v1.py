"""MobileNetV1: outputs, step by step in the names of its PyTorch code."""

import numpy as np
import tensorflow as tf
import zoo
from published import Published, signed

from tfkd import models

#: The positions in the list of units that halve the map.
HALVING = (2, 4, 6, 12)


def published(state, x):
    net = Published(state)
    x = tf.nn.relu(net.normalization(net.convolution(x, "model.0.0", 2), "model.0.1"))
    for position in range(1, 14):
        stride, unit = 2 if position in HALVING else 1, f"model.{position}"
        x = tf.nn.relu(net.normalization(net.convolution(x, f"{unit}.0", stride), f"{unit}.1"))
        x = tf.nn.relu(net.normalization(net.convolution(x, f"{unit}.3"), f"{unit}.4"))
    return net.classified(x)


def test_outputs_are_those_of_the_published_code():
    model = models.create("mobilenet_v1", num_classes=7, input_shape=(45, 70, 3))
    state = signed(zoo.torch_state(model))
    models.load_torch_weights(model, state)
    image = zoo.images((45, 70, 3))
    expected = published(state, image)
    assert np.std(expected) > 0
    np.testing.assert_allclose(model(image, training=False), expected, rtol=1e-3)
