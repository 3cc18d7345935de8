import numpy as np
import tensorflow as tf

from tfkd import losses


def test_value_by_hand():
    # Attentions of two positions: mean squares (12.5, 0) and (0, 2), normalised (1, 0) and (0, 1).
    student = tf.constant([[[[3.0, 4.0]], [[0.0, 0.0]]]])
    teacher = tf.constant([[[[0.0, 0.0, 0.0]], [[1.0, 2.0, -1.0]]]])
    np.testing.assert_allclose(losses.AttentionTransfer()([student], [teacher]), 1.0)


def test_scale_and_sign_of_features_do_not_matter():
    student, teacher = tf.random.normal((4, 8, 8, 3)), tf.random.normal((4, 8, 8, 5))
    loss = losses.AttentionTransfer()
    np.testing.assert_allclose(
        loss([-7 * student], [teacher]), loss([student], [teacher]), rtol=1e-5
    )


def test_spots_add_up():
    student, teacher = tf.random.normal((4, 8, 8, 3)), tf.random.normal((4, 4, 4, 5))
    loss = losses.AttentionTransfer()
    once = loss([student], [teacher])
    assert once > 0
    np.testing.assert_allclose(loss([student] * 3, [teacher] * 3), 3 * once, rtol=1e-6)
