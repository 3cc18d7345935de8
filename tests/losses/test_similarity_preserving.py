import numpy as np
import tensorflow as tf

from tfkd import losses


def test_value_by_hand():
    # Gram matrices [[1, 1], [1, 2]] and the identity, rows divided by their norms.
    student, teacher = tf.constant([[1.0, 0.0], [1.0, 1.0]]), tf.constant([[1.0, 0.0], [0.0, 1.0]])
    rows = np.array([[1, 1], [1, 2]]) / np.sqrt([[2], [5]])
    expected = np.square(rows - np.eye(2)).sum() / 4
    value = losses.SimilarityPreserving()([student], [teacher])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_rotating_the_features_does_not_matter():
    student, teacher = tf.random.normal((5, 4)), tf.random.normal((5, 2, 2, 3))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    loss = losses.SimilarityPreserving()
    rotated = loss([student @ rotation.astype("float32")], [teacher])
    np.testing.assert_allclose(rotated, loss([student], [teacher]), rtol=1e-4)
