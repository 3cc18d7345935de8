import numpy as np
import tensorflow as tf

from tfkd import losses
from tfkd.losses.activation_boundary import boundary_distance


def test_distance_by_hand():
    student = tf.constant([[2.0, 0.5, -3.0, -2.0, -0.5, 3.0]])
    teacher = tf.constant([[1.0, 0.1, 5.0, -1.0, 0.0, -0.1]])
    expected = 0 + 0.5**2 + 4**2 + 0 + 0.5**2 + 4**2
    np.testing.assert_allclose(boundary_distance(student, teacher), [expected], rtol=1e-6)


def test_later_spots_count_twice_as_much_as_those_before():
    student, teacher = tf.zeros((2, 4)), tf.ones((2, 4))
    # Every activation misses by the margin: 4 per sample and spot.
    value = losses.ActivationBoundary()([student] * 3, [teacher] * 3)
    np.testing.assert_allclose(value, 0.003 * (0.25 + 0.5 + 1) * 4, rtol=1e-6)


def test_connector_only_where_shapes_differ():
    loss = losses.ActivationBoundary()
    loss.build([(2, 8, 8, 3), (2, 4, 4, 3)], [(2, 8, 8, 3), (2, 4, 4, 5)])
    assert loss.connectors[0].weights == []
    assert len(loss.connectors[1].trainable_weights) == 4
    # It reaches below zero: no ReLU.
    assert np.min(loss.connectors[1](tf.random.normal((2, 4, 4, 3)))) < 0


def test_preparation_trains_the_student_and_the_main_stage_leaves_it_alone():
    loss = losses.ActivationBoundary()
    assert loss.preparation["epochs"] == 30
    assert loss.prepares_student
    assert loss.weight == 0
    student, teacher = tf.random.normal((2, 4, 4, 3)), tf.random.normal((2, 4, 4, 5))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss.preparation_loss([student], [teacher], training=True)
    variables = [variable.value for variable in loss.preparation_variables]
    assert len(variables) == 4
    gradients = tape.gradient(value, [student, *variables])
    assert np.any(gradients[0])
    assert all(gradient is not None for gradient in gradients)
