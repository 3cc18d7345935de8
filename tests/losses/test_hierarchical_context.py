import numpy as np
import tensorflow as tf

from tfkd import losses


def test_value_by_hand():
    # Differences 1, 1, 1, 5 on 2x2: mean square 7; pooled to 1x1: 2, square 4, half the weight.
    difference = tf.reshape(tf.constant([1.0, 1.0, 1.0, 5.0]), (1, 2, 2, 1))
    value = losses.hierarchical_context_loss([difference], [tf.zeros((1, 2, 2, 1))])
    np.testing.assert_allclose(value, (7 + 0.5 * 4) / 1.5, rtol=1e-6)


def test_masked_samples_count_as_zero():
    student, teacher = tf.random.normal((4, 8, 8, 2)), tf.random.normal((4, 8, 8, 2))
    masked = losses.hierarchical_context_loss([student], [teacher], tf.constant([1, 0, 1, 0]))
    selected = losses.hierarchical_context_loss([student[::2]], [teacher[::2]])
    np.testing.assert_allclose(masked, selected / 2, rtol=1e-5)


def test_sizes_that_do_not_divide_are_pooled_from_the_map_itself():
    difference = tf.random.normal((2, 7, 7, 3))
    weight = {7: 1.0, 4: 0.5, 2: 0.25, 1: 0.125}
    expected = 0.0
    for size, part in weight.items():
        starts = [index * 7 // size for index in range(size)]
        ends = [-(-(index + 1) * 7 // size) for index in range(size)]
        for top, bottom in zip(starts, ends):
            for left, right in zip(starts, ends):
                cell = tf.reduce_mean(difference[:, top:bottom, left:right], (1, 2))
                expected += part / 1.875 * tf.reduce_mean(cell**2) / size**2
    value = losses.hierarchical_context_loss([difference], [tf.zeros_like(difference)])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
