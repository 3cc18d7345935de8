import numpy as np
import tensorflow as tf

from tfkd import losses


def test_value_by_hand():
    # Cosines: 0.6 between the student's samples, 0 between the teacher's.
    student = tf.constant([[2.0, 0.0], [3.0, 4.0]])
    teacher = tf.constant([[1.0, 0.0], [0.0, 3.0]])
    student_rows, teacher_rows = np.array([1, 0.8]) / 1.8, np.array([1, 0.5]) / 1.5
    divergence = teacher_rows * np.log((teacher_rows + 1e-7) / (student_rows + 1e-7))
    value = losses.ProbabilisticKnowledgeTransfer()([student], [teacher])
    np.testing.assert_allclose(value, 2 * divergence.sum() / 4, rtol=1e-5)


def test_length_of_features_does_not_matter():
    student, teacher = tf.random.normal((6, 4)), tf.random.normal((6, 5))
    lengths = tf.random.uniform((6, 1), 0.5, 5.0)
    loss = losses.ProbabilisticKnowledgeTransfer()
    np.testing.assert_allclose(
        loss([lengths * student], [teacher]), loss([student], [teacher]), rtol=1e-3
    )
