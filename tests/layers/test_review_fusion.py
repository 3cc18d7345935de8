import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.layers import ReviewFusion
from tfkd.layers.review_fusion import resize_nearest


@pytest.mark.parametrize(
    "here, wanted, rows",
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 6, [0, 0, 0, 1, 1, 1]),
        (4, 2, [0, 2]),
        (3, 5, [0, 0, 1, 1, 2]),
        (7, 4, [0, 1, 3, 5]),
    ],
)
def test_nearest_neighbours_are_those_of_torch(here, wanted, rows):
    features = tf.random.normal((2, here, here, 3))
    found = resize_nearest(features, (wanted, wanted))
    np.testing.assert_array_equal(found, features.numpy()[:, rows][:, :, rows])


def test_shapes_and_weights():
    early, late = tf.random.normal((2, 8, 8, 3)), tf.random.normal((2, 4, 4, 6))
    last = ReviewFusion(5, (4, 4, 10))
    output, fused = last([late])
    assert (output.shape, fused.shape) == ((2, 4, 4, 10), (2, 4, 4, 5))
    assert len(last.trainable_variables) == 6
    first = ReviewFusion(5, (16, 16, 7))
    shapes = [x.shape for x in first([early, fused])]
    assert shapes == [(2, 16, 16, 7), (2, 16, 16, 5)]
    assert list(first.compute_output_shape([early.shape, fused.shape])) == shapes
    assert len(first.trainable_variables) == 8
    limit = np.sqrt(3 / 3)
    assert 0.5 * limit < np.abs(first.entry.convolution.kernel).max() <= limit


def test_attention_adds_both_maps_by_position():
    layer = ReviewFusion(2, (2, 2, 3))
    here, deeper = tf.random.normal((1, 2, 2, 4)), tf.random.normal((1, 1, 1, 2))
    layer([here, deeper])
    layer.attention.kernel.assign(tf.zeros((1, 1, 4, 2)))
    layer.attention.bias.assign([np.log(3.0), -np.log(3.0)])  # sigmoids 3/4 and 1/4
    _, fused = layer([here, deeper])
    expected = 0.75 * layer.entry(here) + 0.25 * deeper
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-6)


def test_config_makes_an_equal_layer():
    layer = ReviewFusion(4, (2, 2, 3), name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
