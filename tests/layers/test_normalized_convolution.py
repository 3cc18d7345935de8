import keras
import numpy as np
import tensorflow as tf

from tfkd.layers import NormalizedConvolution


def test_it_is_a_convolution_then_normalization_then_activation():
    inputs = tf.random.normal((16, 5, 5, 3))
    layer = NormalizedConvolution(4, 3, activation="relu")
    found = layer(inputs, training=True)
    assert found.shape == layer.compute_output_shape(inputs.shape) == (16, 5, 5, 4)
    linear = tf.nn.conv2d(inputs, layer.convolution.kernel.value, 1, "SAME")
    mean, variance = tf.nn.moments(linear, (0, 1, 2))
    expected = tf.nn.relu((linear - mean) / tf.sqrt(variance + 1e-5))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert layer.normalization.momentum == 0.9
    assert len(layer.trainable_variables) == 3
    assert 0 < np.abs(layer.convolution.kernel).max() <= 1 / np.sqrt(27)


def test_the_statistics_are_those_of_the_selected():
    inputs = tf.random.normal((6, 5, 5, 3))
    layer = NormalizedConvolution(4)
    layer.build(inputs.shape)
    selected = tf.constant([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    spoilt = tf.where(selected[:, None, None, None] > 0, inputs, np.nan)
    found = layer(spoilt, training=True, selected=selected).numpy()
    expected = layer(inputs.numpy()[[0, 2, 3]], training=True)
    np.testing.assert_allclose(found[[0, 2, 3]], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(layer(spoilt, training=True, selected=tf.zeros(6))).all()


def test_config_makes_an_equal_layer():
    start = keras.initializers.RandomNormal(stddev=5.0)
    layer = NormalizedConvolution(4, 1, "relu", start, dtype="float32", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    copy.build((None, 2, 2, 100))
    assert np.abs(copy.convolution.kernel).max() > 5
