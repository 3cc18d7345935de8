import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import ImageGenerator


def draw(size=8, channels=3, batch=4, width=None):
    shape = (batch, size, width or size, channels)
    return keras.random.uniform(shape, -1, 1), keras.random.normal((batch, 5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size, width, halvings", [(8, 8, 1), (9, 9, 1), (28, 28, 2), (16, 13, 1), (15, 17, 2)]
)
def test_images_of_any_size_keep_it_and_are_in_range(size, width, halvings, channels):
    images, noise = draw(size, channels, 2, width)
    layer = ImageGenerator(4, 1)
    generated = layer([images, noise])
    assert generated.shape == images.shape
    assert layer.compute_output_shape([images.shape, noise.shape]) == images.shape
    assert layer.halvings == halvings
    assert np.abs(generated).max() < 1 and np.std(generated) > 0.01


def test_its_convolutions_are_those_of_the_description():
    images, noise = draw(28, 1)
    layer = ImageGenerator(4, 2)
    layer([images, noise])
    shapes = {
        name: getattr(layer, name).kernel.shape
        for name in ("first", "down1", "down2", "mix", "block0a", "block1b", "up2", "up1", "last")
    }
    assert shapes == {
        "first": (3, 3, 1, 4),
        "down1": (4, 4, 4, 8),
        "down2": (4, 4, 8, 16),
        "mix": (1, 1, 16 + 5, 16),
        "block0a": (3, 3, 16, 16),
        "block1b": (3, 3, 16, 16),
        # Of a transposed convolution the filters come before its inputs.
        "up2": (4, 4, 8, 16),
        "up1": (4, 4, 4, 8),
        "last": (3, 3, 4, 1),
    }
    normalized = 3 + 2 * 2 + 2
    assert len(layer.trainable_variables) == 3 * normalized + 2 * 2


def test_what_follows_a_convolution_is_instance_normalization():
    images, noise = draw(batch=3)
    layer = ImageGenerator(4, 1)
    layer([images, noise])
    maps = np.array(layer.first(images))
    expected = maps - maps.mean((1, 2), keepdims=True)
    expected /= np.sqrt(maps.var((1, 2), keepdims=True) + layer.first_normalization.epsilon)
    np.testing.assert_allclose(layer.first_normalization(maps), expected, rtol=1e-3, atol=1e-4)


def test_images_of_a_batch_do_not_depend_on_each_other():
    images, noise = draw()
    layer = ImageGenerator(4, 1)
    np.testing.assert_allclose(
        layer([images, noise])[1:2], layer([images[1:2], noise[1:2]]), rtol=1e-4, atol=1e-5
    )


def test_images_and_noise_both_matter():
    (images, noise), layer = draw(), ImageGenerator(4, 1)
    generated = layer([images, noise])
    np.testing.assert_array_equal(generated, layer([images, noise]))
    for other in ([images, -noise], [-images, noise]):
        assert np.abs(generated - layer(other)).max(axis=(1, 2, 3)).min() > 1e-3


def test_every_part_learns():
    (images, noise), layer = draw(), ImageGenerator(4, 1)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer([images, noise]) ** 2)
    gradients = tape.gradient(value, layer.trainable_variables)
    sizes = {v.path: np.abs(g).max() for v, g in zip(layer.trainable_variables, gradients)}
    assert not [path for path, size in sizes.items() if size < 1e-3]


@pytest.mark.parametrize("shape", [(7, 8, 1), (8, 4, 3), (None, 8, 1), (8, 8, None)])
def test_small_or_unknown_sizes_are_refused(shape):
    with pytest.raises(UsageError, match=r"from 8x8 pixels up, of a size that is fixed; received"):
        ImageGenerator(4, 1).build([(None, *shape), (None, 5)])


def test_in_float32_all_of_it_is():
    keras.config.set_dtype_policy("mixed_float16")
    layer = ImageGenerator(4, 1, dtype="float32")
    images, noise = draw()
    generated = layer([tf.cast(images, "float32"), tf.cast(noise, "float32")])
    assert generated.dtype == "float32"
    assert {part.compute_dtype for part in layer._flatten_layers()} == {"float32"}


def test_its_config_makes_an_equal_layer():
    config = ImageGenerator(6, 3, name="artist").get_config()
    again = ImageGenerator.from_config(config)
    assert (again.width, again.blocks) == (6, 3) and again.get_config() == config


def test_a_model_with_it_is_saved_and_loaded(tmp_path):
    inputs = [keras.Input((9, 9, 1)), keras.Input((5,))]
    model = keras.Model(inputs, ImageGenerator(4, 1)(inputs))
    x = draw(9, 1)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
