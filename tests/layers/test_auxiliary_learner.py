import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import AuxiliaryLearner


def depthwise(x, kernel, strides):
    return tf.nn.depthwise_conv2d(x, kernel, (1, strides, strides, 1), "SAME")


@pytest.mark.parametrize("design", ["separable", "bottleneck"])
@pytest.mark.parametrize(
    "source, stages",
    [
        ((16, 16, 3), [(8, 8, 6), (4, 4, 8)]),
        ((7, 7, 3), [(4, 4, 6), (2, 2, 8)]),
        ((8, 8, 3), [(8, 8, 8)]),
        ((9, 9, 4), [(4, 4, 8)]),
        ((8, 4, 3), [(4, 2, 8)]),
    ],
)
def test_maps_reach_the_shape_of_the_last_stage(design, source, stages):
    learner = AuxiliaryLearner(stages, classes=5, design=design)
    features, logits = learner(tf.random.normal((2, *source)), training=True)
    assert features.shape == (2, *stages[-1]) and logits.shape == (2, 5)
    expected = learner.compute_output_shape((2, *source))
    assert expected == ((2, *stages[-1]), (2, 5))


def test_a_separable_block_is_what_it_says():
    learner = AuxiliaryLearner([(4, 4, 6)], classes=5)
    x = tf.random.normal((2, 8, 8, 3))
    found, logits = learner(x, training=False)
    first, _, _, second, _, _ = learner.body
    # Batch norm starts as the division by sqrt(1 + epsilon).
    scale = 1 / np.sqrt(1 + 1e-5)
    hidden = depthwise(x, first.depthwise_kernel, 2)
    hidden = tf.nn.relu(scale * tf.nn.conv2d(hidden, first.pointwise_kernel, 1, "SAME"))
    hidden = depthwise(hidden, second.depthwise_kernel, 1)
    expected = tf.nn.relu(scale * tf.nn.conv2d(hidden, second.pointwise_kernel, 1, "SAME"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Only the second pointwise convolution changes the width.
    assert first.pointwise_kernel.shape == (1, 1, 3, 3)
    assert second.pointwise_kernel.shape == (1, 1, 3, 6)
    pooled = np.mean(expected, axis=(1, 2))
    np.testing.assert_allclose(logits, pooled @ learner.classifier.kernel.numpy(), atol=1e-4)


def test_a_bottleneck_narrows_to_a_quarter():
    learner = AuxiliaryLearner([(8, 8, 8), (4, 4, 16)], classes=5, design="bottleneck")
    learner.build((None, 16, 16, 3))
    kernels = [tuple(layer.kernel.shape) for layer in learner.body if hasattr(layer, "kernel")]
    assert kernels == [(1, 1, 3, 4), (4, 4, 4, 4), (1, 1, 4, 16)]


def test_config_round_trip_and_wrong_use():
    learner = AuxiliaryLearner([(4, 4, 6)], classes=5, design="bottleneck")
    config = keras.saving.serialize_keras_object(learner)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == learner.get_config()
    with pytest.raises(UsageError, match="must be one of separable, bottleneck"):
        AuxiliaryLearner([(4, 4, 6)], 5, design="dense")
    with pytest.raises(UsageError, match="needs the stages that follow"):
        AuxiliaryLearner([], 5)
    with pytest.raises(UsageError, match="needs a stage that is a map .* networks of tokens have"):
        learner.build((None, 65, 16))
