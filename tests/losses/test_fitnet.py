import keras
import numpy as np
import tensorflow as tf

from tfkd import losses


def test_value_by_hand():
    loss = losses.FitNet()
    loss.build([(2, 2)], [(2, 1)])
    loss.adapters[0].transformation.set_weights([np.array([[1.0], [2.0]]), np.array([0.5])])
    # Adapted 5.5 and 0.5, against 5 and 2.
    student, teacher = tf.constant([[1.0, 2.0], [0.0, 0.0]]), tf.constant([[5.0], [2.0]])
    np.testing.assert_allclose(loss([student], [teacher]), (0.25 + 2.25) / 2)


def test_adapter_is_trained_and_its_statistics_move_in_training_only():
    loss = losses.FitNet()
    student, teacher = tf.random.normal((4, 8, 8, 3)), tf.random.normal((4, 4, 4, 5))
    loss([student], [teacher], training=False)
    normalization = loss.adapters[0].normalization
    np.testing.assert_array_equal(normalization.moving_mean, np.zeros(5))
    with tf.GradientTape() as tape:
        value = loss([student], [teacher], training=True)
    assert np.abs(normalization.moving_mean).max() > 0
    variables = [variable.value for variable in loss.trainable_variables]
    assert len(variables) == 4
    assert all(np.any(gradient) for gradient in tape.gradient(value, variables))


def test_training_reaches_the_teacher():
    # The hint can be met by the adapter alone: a dense layer fits a linear teacher.
    loss = losses.FitNet()
    student = tf.random.normal((16, 3))
    teacher = student @ tf.random.normal((3, 2))
    first = loss([student], [teacher])
    optimizer = keras.optimizers.SGD(0.3)
    for _ in range(100):
        with tf.GradientTape() as tape:
            value = loss([student], [teacher])
        variables = loss.trainable_variables
        gradients = tape.gradient(value, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
    assert value < 1e-3 * first
