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
