"""The options of kd: logits that are a yes or no each; standardised logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.errors import UsageError

RANDOM = np.random.default_rng(0)
STUDENT = RANDOM.normal(scale=3, size=(5, 4))
TEACHER = RANDOM.normal(scale=3, size=(5, 4))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(student, teacher, temperature):
    """Per sample, the mean over the classes, in float64."""
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    return np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=-1)


def value_and_gradient(loss, student, teacher, mask=None):
    student, teacher = (tf.constant(logits, "float32") for logits in (student, teacher))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss([student], [teacher], sample_mask=mask)
    return value, tape.gradient(value, student)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("mask", [None, [1.0, 0.0, 1.0, 0.5, 1.0]])
def test_value_and_gradient_of_sigmoids_by_hand(classes, temperature, mask):
    student, teacher = STUDENT[:, :classes], TEACHER[:, :classes]
    loss = losses.get("kd", temperature=temperature, activation="sigmoid")
    given = None if mask is None else tf.constant(mask)
    value, gradient = value_and_gradient(loss, student, teacher, given)
    weights = np.ones(5) if mask is None else np.array(mask)
    expected = temperature**2 * np.mean(weights * by_hand(student, teacher, temperature))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    difference = sigmoid(student / temperature) - sigmoid(teacher / temperature)
    expected = temperature * weights[:, None] * difference / (5 * classes)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_a_certain_teacher_gives_binary_cross_entropy():
    """So the mean over the classes keeps the balance with the loss on the labels."""
    labels = RANDOM.integers(0, 2, (5, 4))
    loss = losses.get("kd", temperature=1.0, activation="sigmoid")
    value, _ = value_and_gradient(loss, STUDENT, 200.0 * labels - 100.0)
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    np.testing.assert_allclose(value, cross_entropy(labels, STUDENT), rtol=1e-5)


def test_large_logits_stay_finite():
    loss = losses.get("kd", temperature=1.0, activation="sigmoid")
    value, gradient = value_and_gradient(loss, [[1e4], [-1e4], [50.0]], [[-1e4], [-1e4], [51.0]])
    np.testing.assert_allclose(value, 1e4 / 3, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[1 / 3], [0], [0]], atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_compared_in_float32(dtype):
    loss = losses.get("kd", activation="sigmoid")
    half = [[tf.cast(tf.constant(logits), dtype)] for logits in (STUDENT, TEACHER)]
    value = loss(*half)
    assert value.dtype == tf.float32
    full = [[tf.cast(logits[0], "float32")] for logits in half]
    np.testing.assert_array_equal(value, loss(*full))


def test_config_keeps_the_activation():
    loss = losses.get("kd", activation="sigmoid")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.activation == "sigmoid"
    with pytest.raises(UsageError, match="Unknown activation 'relu': .*softmax, sigmoid"):
        losses.get("kd", activation="relu")


@pytest.mark.parametrize(
    "label_loss, activation",
    [
        (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid"),
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), "sigmoid"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "softmax"),
        (keras.losses.Hinge(), "softmax"),
    ],
)
def test_the_loss_on_the_labels_chooses_what_nobody_has_chosen(label_loss, activation):
    loss, given = losses.get("kd"), losses.get("kd", activation=activation)
    other = losses.get("kd", activation={"softmax": "sigmoid", "sigmoid": "softmax"}[activation])
    for one in (loss, given, other):
        one.match_labels(label_loss)
    values = [value_and_gradient(one, STUDENT, TEACHER)[0] for one in (loss, given, other)]
    assert values[0] == values[1] != values[2]
    assert loss.get_config()["activation"] is None


def test_a_single_logit_has_no_softmax():
    with pytest.raises(UsageError, match="softmax of a single logit, .* activation='sigmoid'"):
        value_and_gradient(losses.get("kd"), STUDENT[:, :1], TEACHER[:, :1])


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_standardized_logits_have_neither_offset_nor_scale(name):
    extra = {"labels": tf.constant([0, 1, 2, 3, 0])} if name == "dkd" else {}
    loss = losses.get(name, temperature=2.0, standardize=True)
    student, teacher = tf.constant(STUDENT, "float32"), tf.constant(TEACHER, "float32")
    expected = loss([student], [teacher], **extra)
    assert expected > 0.1
    np.testing.assert_allclose(loss([5 * student - 3], [teacher], **extra), expected, rtol=1e-4)
    np.testing.assert_allclose(loss([student], [teacher / 9 + 1], **extra), expected, rtol=1e-4)
    assert abs(loss([teacher], [4 * teacher], **extra) - loss([teacher], [teacher], **extra)) < 1e-5
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.standardize


@pytest.mark.parametrize("constant", [0.0, 0.1, -37.3])
def test_constant_logits_standardize_to_zeros_without_gradient(constant):
    student = np.concatenate([STUDENT[:2], np.full((1, 4), constant)])
    loss = losses.get("kd", temperature=2.0, standardize=True)
    value, gradient = value_and_gradient(loss, student, TEACHER[:3])
    assert np.isfinite(value)
    assert np.abs(gradient[:2]).max() > 1e-3
    np.testing.assert_array_equal(gradient[2], np.zeros(4))
    teacher = np.full((3, 4), constant)
    value, gradient = value_and_gradient(loss, student, teacher)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_yes_or_no_is_not_standardized():
    with pytest.raises(UsageError, match="standardize=True compares the classes of a sample"):
        losses.get("kd", standardize=True, activation="sigmoid")
    loss = losses.get("kd", standardize=True)
    loss.match_labels(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(UsageError, match="each logit is a yes or no of its own: leave it out"):
        loss.match_labels(keras.losses.BinaryCrossentropy(from_logits=True))
