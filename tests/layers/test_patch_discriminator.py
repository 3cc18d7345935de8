import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfkd.layers import PatchDiscriminator


def test_by_hand():
    x = tf.random.normal((3, 16, 16, 3))
    layer = PatchDiscriminator(4)
    found = layer(x)
    hidden = x
    for convolution in layer.convolutions:
        kernel = convolution.kernel.numpy()
        matrix = kernel.reshape(-1, kernel.shape[-1])
        left = matrix @ convolution.singular_vector.numpy()
        # The length of left @ matrix, where left has length 1, is the estimate.
        value = np.linalg.norm(left / np.linalg.norm(left) @ matrix)
        hidden = ops.conv(hidden, kernel / value, convolution.strides, "same")
        hidden = np.where(hidden > 0, hidden, 0.2 * np.array(hidden))
    expected = np.array(layer.verdict(hidden)).mean((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert [convolution.filters for convolution in layer.convolutions] == [4, 8, 16]
    assert layer.verdict.filters == 1 and expected.std() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size, strides", [(8, [2, 1, 1]), (9, [2, 1, 1]), (28, [2, 2, 1]), (32, [2, 2, 2])]
)
def test_maps_are_halved_as_long_as_4x4_is_left(size, strides, channels):
    layer = PatchDiscriminator(2)
    verdicts = layer(tf.random.normal((5, size, size, channels)))
    assert [convolution.strides for convolution in layer.convolutions] == strides
    assert verdicts.shape == (5,) == layer.compute_output_shape((5, size, size, channels))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_ties_the_images_of_a_batch_to_each_other(training):
    x = tf.random.normal((4, 8, 8, 1))
    layer = PatchDiscriminator(4)
    alone = layer(x[:1])
    np.testing.assert_allclose(layer(x, training=training)[:1], alone, rtol=1e-5)


def test_training_mode_reaches_every_convolution():
    x = tf.random.normal((2, 8, 8, 1))
    layer = PatchDiscriminator(2)
    layer(x)
    vectors = layer.non_trainable_variables
    before = [vector.numpy() for vector in vectors]
    layer(x)
    assert all(np.array_equal(a, b) for a, b in zip(before, vectors))
    layer(x, training=True)
    # The last one has one filter, whose singular vector is the number 1 or -1.
    assert len(vectors) == 4
    assert not any(np.array_equal(a, b) for a, b in zip(before, vectors))


def test_it_judges_in_float32():
    verdict = PatchDiscriminator(2, dtype="mixed_float16")(tf.random.normal((2, 8, 8, 1)))
    assert verdict.dtype == "float32"
    keras.config.set_dtype_policy("mixed_float16")
    layer = PatchDiscriminator(2, dtype="float32")
    layer(tf.random.normal((2, 8, 8, 1)))
    assert {part.compute_dtype for part in layer._flatten_layers()} == {"float32"}


def test_its_config_makes_an_equal_layer():
    config = PatchDiscriminator(7, name="judge").get_config()
    again = PatchDiscriminator.from_config(config)
    assert again.width == 7 and again.get_config() == config
