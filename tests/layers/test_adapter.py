import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import Adapter


@pytest.mark.parametrize(
    "source, target, kind, kernel",
    [
        ((16, 16, 3), (8, 8, 5), keras.layers.Conv2D, (3, 3, 3, 5)),
        ((8, 8, 3), (16, 16, 5), keras.layers.Conv2DTranspose, (4, 4, 5, 3)),
        ((8, 8, 3), (8, 8, 5), keras.layers.Conv2D, (1, 1, 3, 5)),
        ((7, 9, 3), (4, 4, 5), keras.layers.Conv2D, (4, 6, 3, 5)),
        ((8, 6, 3), (4, 4, 5), keras.layers.Conv2D, (5, 3, 3, 5)),
        ((4, 4, 3), (7, 9, 5), keras.layers.Conv2DTranspose, (4, 3, 5, 3)),
        ((2, 2, 3), (8, 8, 5), keras.layers.Conv2DTranspose, (4, 4, 5, 3)),
        ((1, 1, 3), (4, 4, 5), keras.layers.Conv2DTranspose, (4, 4, 5, 3)),
        ((6,), (4,), keras.layers.Dense, (6, 4)),
    ],
)
def test_convolution_follows_from_the_sizes(source, target, kind, kernel):
    adapter = Adapter(target)
    outputs = adapter(tf.random.normal((2, *source)), training=True)
    assert outputs.shape == (2, *target)
    assert adapter.compute_output_shape((2, *source)) == (2, *target)
    assert type(adapter.transformation) is kind
    assert tuple(adapter.transformation.kernel.shape) == kernel
    fan_in = {4: np.prod(kernel[:3]), 2: kernel[0]}[len(kernel)]
    for weight in adapter.transformation.weights:
        assert 0 < np.abs(weight).max() <= 1 / np.sqrt(fan_in)


def test_map_is_normalised_and_rectified():
    adapter = Adapter((4, 4, 5))
    inputs = 10 + tf.random.normal((16, 8, 8, 3))
    outputs = np.array(adapter(inputs, training=True))
    assert outputs.min() == 0
    assert 0.3 < np.mean(outputs > 0) < 0.7
    linear = np.array(Adapter((4, 4, 5), activation=None)(inputs, training=True))
    np.testing.assert_allclose(linear.mean(axis=(0, 1, 2)), np.zeros(5), atol=1e-4)
    # PyTorch's momentum 0.1: one step moves a tenth of the way.
    assert adapter.normalization.momentum == 0.9
    assert adapter.normalization.epsilon == 1e-5


def test_vector_is_only_mapped():
    adapter = Adapter((4,))
    outputs = adapter(tf.random.normal((32, 6)))
    assert np.min(outputs) < 0
    assert len(adapter.weights) == 2


@pytest.mark.parametrize(
    "source, target, message",
    [
        ((8, 8, 3), (4,), "both vectors"),
        ((6,), (4, 4, 2), "both must be maps"),
        ((8, 4, 3), (4, 8, 3), "smaller along the other"),
        ((3, 3), (3, 3), "both must be maps"),
    ],
)
def test_shapes_it_cannot_bring_together(source, target, message):
    with pytest.raises(UsageError, match=message) as error:
        Adapter(target).build((2, *source))
    assert "\n" not in str(error.value)


def test_saved_model_gives_the_same_outputs(tmp_path):
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, Adapter((8, 8, 5), activation="sigmoid")(inputs))
    images = tf.random.normal((2, 16, 16, 3))
    model(images, training=True)
    model.save(tmp_path / "adapter.keras")
    copy = keras.saving.load_model(tmp_path / "adapter.keras")
    np.testing.assert_allclose(copy(images), model(images), rtol=1e-6)


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        adapter = Adapter((8, 8, 5))
        adapter.build((None, 16, 16, 3))
        weights.append([np.array(weight) for weight in adapter.weights])
    for one, other in zip(*weights):
        np.testing.assert_array_equal(one, other)


def test_mixed_precision_computes_in_half():
    adapter = Adapter((8, 8, 5), dtype="mixed_bfloat16")
    outputs = adapter(tf.random.normal((2, 16, 16, 3)), training=True)
    assert outputs.dtype == tf.bfloat16
    assert {weight.dtype for weight in adapter.weights} == {"float32"}


def test_the_bias_can_be_left_out():
    adapter = Adapter((4, 4, 5), use_bias=False)
    adapter.build((None, 4, 4, 3))
    assert not adapter.transformation.use_bias
    assert not Adapter.from_config(adapter.get_config()).use_bias
