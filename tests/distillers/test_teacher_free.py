import keras
import numpy as np
import pytest
import tiny

import tfkd
from tfkd.distillers.teacher_free import virtual_teacher
from tfkd.errors import UsageError


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_the_virtual_teacher_is_right_by_its_confidence():
    predictions = np.array(virtual_teacher(np.array([2, 0]), 5, confidence=0.9))
    expected = np.full((2, 5), 0.025)
    expected[[0, 1], [2, 0]] = 0.9
    np.testing.assert_allclose(predictions, expected, rtol=1e-6)


@pytest.mark.parametrize("one_hot", [False, True])
def test_losses_by_hand(one_hot):
    student = tiny.model()
    distiller = tfkd.TeacherFree(
        student, alpha=0.25, temperature=2.0, confidence=0.8, multiplier=3.0
    )
    kinds = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
    distiller.compile("sgd", loss=kinds[one_hot](from_logits=True), run_eagerly=True)
    x, y = tiny.data(8)
    probabilities = softmax(np.array(student(x, training=True)))
    right = np.eye(tiny.CLASSES)[y]
    q = softmax((0.05 + 0.75 * right) / 2)
    virtual = np.mean(np.sum(q * np.log(q / probabilities), -1))
    cross_entropy = -np.mean(np.log(np.sum(right * probabilities, -1)))
    labels = right.astype("float32") if one_hot else y
    logs = distiller.fit(x, labels, batch_size=8, verbose=0).history
    assert logs["virtual_teacher_loss"][0] == pytest.approx(virtual, rel=1e-4)
    assert logs["student_loss"][0] == pytest.approx(cross_entropy, rel=1e-4)
    expected = 0.75 * cross_entropy + 0.25 * 3 * virtual
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_alpha_0_is_training_alone():
    found = []
    for make in (lambda student: tfkd.TeacherFree(student, alpha=0.0), tfkd.KnowledgeDistiller):
        distiller = make(tiny.model(seed=1))
        distiller.compile(tfkd.optimizers.SGD(0.1), run_eagerly=True)
        distiller.fit(*tiny.data(), shuffle=False, verbose=0)
        found.append(tiny.values(distiller.student.weights))
    tiny.assert_equal(*found)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alpha": 1.5}, "alpha must be"),
        ({"temperature": 0}, "temperature must be a number greater than 0"),
        ({"confidence": -0.1}, "confidence must be"),
        ({"multiplier": -1}, "multiplier must be a number of at least 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        tfkd.TeacherFree(tiny.model(), **arguments)
    assert "\n" not in str(error.value)


def test_a_teacher_is_refused():
    with pytest.raises(UsageError, match="TeacherFree takes no teacher: leave it out"):
        tfkd.TeacherFree(tiny.model(), tiny.model(seed=1))


def test_labels_must_be_classes():
    distiller = tfkd.TeacherFree(tiny.model())
    with pytest.raises(UsageError, match="TeacherFree needs images of one class each"):
        distiller.compile("sgd", loss="mse")


def test_a_single_logit_leaves_no_other_class():
    with pytest.raises(UsageError, match="at least two classes"):
        tfkd.TeacherFree(tiny.model(classes=1)).compile("sgd")
