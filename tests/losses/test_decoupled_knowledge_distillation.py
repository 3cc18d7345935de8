import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.errors import UsageError

STUDENT = tf.math.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
TEACHER = tf.math.log([[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
LABELS = tf.constant([0, 2])


def kl(teacher, student):
    teacher, student = np.array(teacher), np.array(student)
    return np.sum(teacher * np.log(teacher / student))


def test_value_by_hand():
    loss = losses.DecoupledKnowledgeDistillation(alpha=2.0, beta=3.0, temperature=1.0)
    target = kl([0.2, 0.8], [0.5, 0.5]), kl([0.4, 0.6], [0.8, 0.2])
    others = kl([0.25, 0.75], [0.6, 0.4]), kl([0.5, 0.5], [0.5, 0.5])
    expected = np.mean([2 * t + 3 * o for t, o in zip(target, others)])
    np.testing.assert_allclose(loss([STUDENT], [TEACHER], labels=LABELS), expected, rtol=1e-5)


def test_parts_add_up_to_kd():
    # KL = KL(target) + (1 - p_label) KL(others): the paper's decomposition.
    temperature = 2.0
    arguments = {"temperature": temperature}
    target = losses.get("dkd", alpha=1.0, beta=0.0, **arguments)
    others = losses.get("dkd", alpha=0.0, beta=1.0, **arguments)
    kd = losses.get("kd", **arguments)
    for row in range(2):
        student, teacher = [STUDENT[row : row + 1]], [TEACHER[row : row + 1]]
        labels = LABELS[row : row + 1]
        not_label = 1 - tf.nn.softmax(teacher[0] / temperature)[0, labels[0]]
        total = target(student, teacher, labels) + not_label * others(student, teacher, labels)
        np.testing.assert_allclose(total, kd(student, teacher), rtol=1e-5)


def test_two_classes_have_no_others():
    loss = losses.get("dkd", alpha=0.0)
    logits = tf.random.normal((4, 2))
    assert loss([logits], [tf.random.normal((4, 2))], labels=[0, 1, 0, 1]) == 0


def test_certain_predictions_stay_finite():
    student = tf.Variable([[200.0, 0.0, 0.0], [0.0, 0.0, 200.0]])
    with tf.GradientTape() as tape:
        value = losses.get("dkd", temperature=1.0)([student], [-student], labels=LABELS)
    assert np.isfinite(value)
    assert np.isfinite(tape.gradient(value, student)).all()


def test_labels_are_needed():
    with pytest.raises(UsageError, match="needs the labels"):
        losses.get("dkd")([STUDENT], [TEACHER])
