import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfkd.layers import SpectralConvolution


def largest(kernel):
    """The largest singular value of a kernel as a matrix (everything else, filters)."""
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def settled(layer, x, calls=300):
    """Lets the estimate of the singular vector settle."""
    step = tf.function(lambda: layer(x, training=True))
    for _ in range(calls):
        step()
    return layer


def test_the_largest_singular_value_of_what_it_convolves_by_is_one():
    x = tf.random.normal((2, 6, 6, 3))
    layer = SpectralConvolution(5, 3)
    layer.build(x.shape)
    layer.kernel.assign(7 * layer.kernel)
    layer.bias.assign(np.arange(5.0))
    settled(layer, x)
    # Impulses read the kernel that acts, which is flipped in the outputs.
    impulses = np.zeros((3, 5, 5, 3), "float32")
    impulses[range(3), 2, 2, range(3)] = 1
    outputs = np.array(layer(impulses)) - np.arange(5.0)
    effective = np.moveaxis(outputs[:, 3:0:-1, 3:0:-1], 0, 2)
    assert largest(layer.kernel.numpy()) > 2
    assert largest(effective) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(
        effective, layer.kernel.numpy() / largest(layer.kernel.numpy()), atol=1e-4
    )


def test_every_call_in_training_mode_is_one_step_of_power_iteration():
    x = tf.random.normal((2, 4, 4, 2))
    layer = SpectralConvolution(3, 2)
    layer.build(x.shape)
    matrix = layer.kernel.numpy().reshape(-1, 3)
    vector = layer.singular_vector.numpy()
    for _ in range(2):
        left = matrix @ vector
        left /= np.linalg.norm(left)
        vector = left @ matrix
        vector /= np.linalg.norm(vector)
        layer(x, training=True)
        np.testing.assert_allclose(layer.singular_vector, vector, rtol=1e-4, atol=1e-6)


def test_inference_changes_nothing_and_sees_what_the_next_training_call_sees():
    x = tf.random.normal((2, 4, 4, 2))
    layer = SpectralConvolution(3, 2)
    layer.build(x.shape)
    before = [variable.numpy() for variable in layer.variables]
    inferred = layer(x, training=False)
    for a, variable in zip(before, layer.variables, strict=True):
        np.testing.assert_array_equal(a, variable)
    np.testing.assert_array_equal(inferred, layer(x, training=True))
    assert not np.array_equal(before[-1], layer.singular_vector)


def test_the_gradient_flows_through_the_division():
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(4, 2, 2, 3)), random.normal(size=(4, 5))
    images = tf.constant(x, "float32")
    layer = settled(SpectralConvolution(5, 2, strides=2), images)

    def value(kernel):
        """One position alone, so that the convolution is a product of matrices."""
        matrix = kernel.reshape(-1, 5)
        return np.sum(weights * (x.reshape(4, -1) @ matrix / largest(kernel)))

    kernel = layer.kernel.numpy().astype("float64")
    expected = np.zeros_like(kernel)
    for index in np.ndindex(*kernel.shape):
        moved = kernel.copy()
        moved[index] += 1e-6
        back = kernel.copy()
        back[index] -= 1e-6
        expected[index] = (value(moved) - value(back)) / 2e-6
    with tf.GradientTape() as tape:
        outputs = ops.sum(weights.astype("float32") * layer(images)[:, 0, 0])
    assert float(outputs) == pytest.approx(value(kernel), rel=1e-4)
    found = tape.gradient(outputs, layer.trainable_variables)
    assert len(found) == 2
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)
    # With the singular value held constant it would be another.
    through = (x.reshape(4, -1).T @ weights).reshape(kernel.shape) / largest(kernel)
    assert np.abs(expected - through).max() > 0.1


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_the_shape_is_as_computed(strides, size):
    layer = SpectralConvolution(4, 3, strides)
    outputs = layer(tf.zeros((2, *size, 3)))
    assert outputs.shape == layer.compute_output_shape((2, *size, 3))
    assert outputs.shape[1:3] == tuple(-(-length // strides) for length in size)
    assert layer.compute_output_shape((None, None, 8, 3)) == (None, None, -(-8 // strides), 4)


def test_its_config_makes_an_equal_layer():
    config = SpectralConvolution(4, 3, strides=2, name="verdict", dtype="float32").get_config()
    again = SpectralConvolution.from_config(config)
    assert (again.filters, again.kernel_size, again.strides) == (4, 3, 2)
    assert again.get_config() == config


def test_a_model_with_it_is_saved_and_loaded(tmp_path):
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, SpectralConvolution(3, 3, 2)(inputs))
    x = tf.random.normal((2, 6, 6, 2))
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
