import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.losses.correlation_congruence import correlation_distance

DIFFERENCES = tf.constant([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0], [2.0, 2.0]])


@pytest.mark.parametrize(
    "mask, expected",
    [
        (None, (3 + 3 + 4) / 3),  # neighbours 0-1, 1-2, 2-3
        ([1, 0, 1, 1], (3 + 4) / 2 * 3 / 4),  # 0-2, 2-3
        ([0, 1, 0, 1], 6 / 1 * 2 / 4),  # 1-3
        ([0, 0, 1, 0], 0),
    ],
)
def test_value_by_hand(mask, expected):
    mask = None if mask is None else tf.constant(mask)
    value = correlation_distance(DIFFERENCES, tf.zeros((4, 2)), mask)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_embeddings_of_both_networks_are_trained():
    loss = losses.CorrelationCongruence()
    student, teacher = tf.random.normal((4, 5)), tf.random.normal((4, 2, 2, 3))
    with tf.GradientTape() as tape:
        value = loss([student], [teacher])
    variables = loss.trainable_variables
    assert [tuple(variable.shape) for variable in variables] == [
        (5, 128),
        (128,),
        (12, 128),
        (128,),
    ]
    gradients = tape.gradient(value, [variable.value for variable in variables])
    assert all(np.any(gradient) for gradient in gradients)
