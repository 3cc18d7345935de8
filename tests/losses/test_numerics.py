import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.losses import numerics


def test_normalize_divides_by_the_norm_and_keeps_zeros():
    vectors = tf.constant([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-13]])
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        normalized = numerics.normalize(vectors)
    # The norm is clamped at 1e-12, so that the last vector has norm 0.1.
    np.testing.assert_allclose(normalized, [[0.6, 0.8], [0, 0], [0, 0.1]], rtol=1e-6)
    gradient = tape.gradient(normalized, vectors)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() <= 1


def test_normalize_along_another_axis():
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    norms = np.linalg.norm(numerics.normalize(tf.constant(vectors), axis=1), axis=1)
    np.testing.assert_allclose(norms, np.ones((2, 4)), rtol=1e-6)


def test_smooth_l1():
    difference = tf.constant([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(difference)
        value = numerics.smooth_l1(difference)
    np.testing.assert_allclose(value, [2.5, 0.5, 0.125, 0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(tape.gradient(value, difference), [-1, -1, -0.5, 0, 0.5, 1, 1])


@pytest.mark.parametrize("size, target", [(4, 2), (5, 3), (7, 4), (8, 3), (6, 6), (3, 1)])
def test_adaptive_pooling_averages_pytorchs_windows(size, target):
    features = np.random.default_rng(0).normal(size=(2, size, size + 1, 3)).astype("float32")
    expected = np.zeros((2, target, 2, 3))
    for row in range(target):
        rows = slice(row * size // target, int(np.ceil((row + 1) * size / target)))
        for column in range(2):
            width = size + 1
            columns = slice(column * width // 2, int(np.ceil((column + 1) * width / 2)))
            expected[:, row, column] = features[:, rows, columns].mean(axis=(1, 2))
    pooled = numerics.adaptive_average_pool(tf.constant(features), (target, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_of_five_to_three():
    # PyTorch's windows of 5 -> 3 are [0, 2), [1, 4), [3, 5).
    features = tf.reshape(tf.range(5.0), (1, 5, 1, 1))
    pooled = numerics.adaptive_average_pool(features, (3, 1))
    np.testing.assert_allclose(pooled[0, :, 0, 0], [0.5, 2.0, 3.5], rtol=1e-6)


def test_adaptive_pooling_does_not_enlarge():
    with pytest.raises(UsageError, match="from 4 to 5"):
        numerics.adaptive_average_pool(tf.zeros((1, 4, 4, 2)), (5, 4))


def test_match_sizes_pools_the_larger_along_each_axis():
    student, teacher = numerics.match_sizes(tf.ones((2, 8, 4, 3)), tf.ones((2, 4, 6, 5)))
    assert student.shape == (2, 4, 4, 3)
    assert teacher.shape == (2, 4, 4, 5)


def test_channel_products():
    left, right = tf.random.normal((2, 3, 4, 5)), tf.random.normal((2, 3, 4, 6))
    expected = np.einsum("bhwc,bhwd->bcd", left, right)
    np.testing.assert_allclose(numerics.channel_products(left, right), expected, atol=1e-5)


def test_keep_selected_stops_what_is_not_finite():
    features = tf.constant([[1.0, np.inf], [2.0, 3.0], [np.nan, 0.0]])
    selected = numerics.selection(tf.constant([0, 1, 0]), features)
    np.testing.assert_array_equal(
        numerics.keep_selected(features, selected), [[0, 0], [2, 3], [0, 0]]
    )


@pytest.mark.parametrize("mask, expected", [([1, 1, 1, 0], 8 / 9 * 3 / 4), ([1, 0, 0, 0], 0)])
def test_scale_to_batch(mask, expected):
    selected = numerics.selection(tf.constant(mask), tf.zeros((4, 1)))
    np.testing.assert_allclose(numerics.scale_to_batch(8.0, selected, 2), expected, rtol=1e-6)
