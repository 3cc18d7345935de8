"""What golden numbers do not show of the further losses of logits."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.losses.multi_level_logit_distillation import at_most_the_median
from tfkd.losses.numerics import correlation
from tfkd.losses.weighted_soft_labels import soft_label_weights

RANDOM = np.random.default_rng(0)
STUDENT = RANDOM.normal(scale=2, size=(6, 4))
TEACHER = RANDOM.normal(scale=2, size=(6, 4))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def scaled(logits, standardize):
    if not standardize:
        return logits
    return (logits - logits.mean(-1, keepdims=True)) / logits.std(-1, ddof=1, keepdims=True)


def value(loss, student, teacher, **given):
    return loss(
        *([tf.constant(logits, "float32")] for logits in (student, teacher)),
        **given,
    )


def test_correlation_is_pearsons_over_what_counts():
    left, right = RANDOM.normal(size=(2, 3, 8))
    counted = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
    for mask in (None, counted):
        rows = slice(None) if mask is None else mask
        expected = [np.corrcoef(a[rows], b[rows])[0, 1] for a, b in zip(left, right)]
        given = None if mask is None else tf.constant(mask, "float32")
        found = correlation(tf.constant(left, "float32"), tf.constant(right, "float32"), given)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3])
def test_a_constant_vector_correlates_with_nothing(constant):
    vectors = tf.fill((2, 1000), constant)
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        found = correlation(vectors, tf.random.normal((2, 1000), seed=1))
    np.testing.assert_array_equal(found, [0, 0])
    np.testing.assert_array_equal(tape.gradient(found, vectors), np.zeros((2, 1000)))


def test_dist_asks_for_the_relation_and_not_for_the_size():
    """Probabilities that are a linear function of the teacher's in each row cost no inter."""
    teacher = softmax(TEACHER)
    student = 0.2 * teacher + 0.8 / 4
    loss = losses.get("dist", temperature=1.0, gamma=0.0)
    assert abs(value(loss, np.log(student), np.log(teacher))) < 1e-5
    loss = losses.get("dist", temperature=1.0)
    assert abs(value(loss, np.log(student), np.log(teacher))) < 1e-5
    assert value(losses.get("kd", temperature=1.0), np.log(student), np.log(teacher)) > 0.05


def test_soft_labels_count_less_where_the_student_knows_better():
    labels = tf.constant([0, 0, 0])
    student = tf.constant([[9.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    teacher = tf.constant([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        weights = soft_label_weights(student, teacher, labels)
    np.testing.assert_allclose(weights[1], 1 - np.exp(-1), rtol=1e-5)
    assert weights[0] < 1e-3 and weights[2] > 0.999
    assert tape.gradient(weights, student) is None


@pytest.mark.parametrize("power", [0.1, 0.5])
def test_uncertain_teachers_weigh_up_to_the_number_of_classes(power):
    for logits, expected in ([[0.0] * 4], 4 ** (1 - power)), ([[400.0, 0, 0, 0]], 1.0):
        student = [[1.0, 0.0, 2.0, -1.0]]
        plain = value(losses.get("ttm", power=power), student, logits)
        weighted = value(losses.get("wttm", power=power), student, logits)
        np.testing.assert_allclose(weighted / plain, expected, rtol=1e-5)


@pytest.mark.parametrize("counted", [(1, 1, 1, 1, 1), (1, 0, 1, 1, 1), (0, 0, 0, 1, 0), (0,) * 5])
def test_at_most_the_median(counted):
    values, rows = np.array([3.0, -9.0, 1.0, 2.0, 8.0]), np.array(counted, bool)
    expected = rows & (values <= np.median(values[rows])) if rows.any() else rows
    found = at_most_the_median(tf.constant(values, "float32"), tf.constant(counted, "float32"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("select", [False, True])
def test_masks_of_mlkd_by_hand(select, standardize):
    """As published they are factors; mended, they select samples and classes."""
    confidence = softmax(TEACHER)
    samples = confidence.max(-1) <= np.median(confidence.max(-1))
    classes = confidence.sum(0) <= np.median(confidence.sum(0))
    assert samples.sum() == 3 and classes.sum() == 2
    if not select:
        samples, classes = samples.mean() * np.ones(6), classes.mean() * np.ones(4)
    expected = 0.0
    for temperature in (1.0, 3.0):
        s, t = (softmax(scaled(z, standardize) / temperature) for z in (STUDENT, TEACHER))
        expected += temperature**2 * np.mean(samples * np.sum(t * np.log(t / s), -1))
        s, t = softmax(STUDENT / temperature), softmax(TEACHER / temperature)
        expected += np.mean(classes * np.sum((s.T @ s - t.T @ t) ** 2, -1))
        expected += np.mean(samples * np.sum((s @ s.T - t @ t.T) ** 2, -1))
    loss = losses.get("mlkd", temperatures=(1.0, 3.0), select=select, standardize=standardize)
    np.testing.assert_allclose(value(loss, STUDENT, TEACHER), expected, rtol=1e-5)


def test_nkd_of_a_teacher_certain_of_the_label_is_cross_entropy():
    labels = tf.constant([0, 1, 2, 3, 0, 1])
    teacher = 100.0 * np.eye(4)[labels]
    found = value(losses.get("nkd", gamma=0.0), STUDENT, teacher, labels=labels)
    expected = -np.mean(np.log(softmax(STUDENT))[np.arange(6), labels])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
