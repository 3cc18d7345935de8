"""What `check` finds in models, labels and losses, before training."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from checking import headed, make, untrained
from keras import layers, ops

import tfkd
from tfkd.inspection.findings import reordered_accuracy


def test_a_teacher_without_its_weights_is_caught(digits):
    report = make(digits, untrained(digits)).check(digits.validation)
    assert any("near chance (10.0%): load its trained weights" in w for w in report.warnings)


class Softmaxed(keras.Model):
    """A model that ends in a softmax which cannot be seen from outside."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return ops.softmax(self.model(inputs))


def test_a_softmax_teacher_is_caught(digits, teacher):
    distiller = make(digits, Softmaxed(teacher), losses=["kd"])
    report = distiller.check(digits.validation)
    assert report.teacher["outputs"] == "probabilities"
    assert report.student["outputs"] == "logits"
    assert any("outputs probabilities, not logits" in warning for warning in report.warnings)
    assert not any("near chance" in warning for warning in report.warnings)


def test_another_order_of_classes_is_caught(digits, plain):
    order = tf.constant([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    data = digits.validation.map(lambda x, y: (x, tf.gather(order, y)))
    (warning,) = plain.check(data).warnings
    assert "with its classes in another order" in warning


def test_many_classes_do_not_make_an_order_by_chance():
    """With few examples of a class, some order always fits the very examples it is chosen from."""
    generator = np.random.default_rng(0)
    labels, guesses = generator.integers(0, 100, (2, 400))
    assert reordered_accuracy(labels, guesses, 100) < 0.05
    assert reordered_accuracy(labels, (labels + 7) % 100, 100) > 0.9


def test_a_loss_that_drowns_the_others_is_caught(digits, teacher):
    loss = tfkd.losses.get("at", weight=1e6)
    report = make(digits, teacher, losses=["kd", loss]).check(digits.validation)
    (warning,) = report.warnings
    assert warning.startswith("at_loss, weighted, is ") and "times kd_loss" in warning
    asked = float(warning.split("down to about ")[1].rstrip("."))
    assert asked * report.losses["at_loss"]["value"] == pytest.approx(
        report.losses["kd_loss"]["weighted"], rel=0.1
    )


def test_exchanged_models_are_caught(digits, teacher):
    small = tfkd.models.create("resnet8", digits.num_classes, digits.input_shape, seed=2)
    distiller = tfkd.KnowledgeDistiller(untrained(digits), small)
    distiller.compile("sgd")
    report = distiller.check(digits.validation, batches=2)
    assert any("check that the two are not exchanged" in warning for warning in report.warnings)
    assert report.data["examples"] == 64


def test_losses_that_are_no_numbers_are_caught(digits, teacher):
    distiller = make(digits, teacher)
    kernel = distiller.student.trainable_variables[0]
    kernel.assign(kernel * np.nan)
    report = distiller.check(digits.validation, batches=1)
    assert any("has weights that are NaN or infinite" in w for w in report.warnings)
    # Of the last layer they reach the losses.
    for variable in distiller.student.trainable_variables:
        variable.assign(tf.fill(variable.shape, np.nan))
    report = distiller.check(digits.validation, batches=1)
    assert any("student_loss, kd_loss, at_loss is not a finite" in w for w in report.warnings)
    json.loads(json.dumps(report.as_dict(), allow_nan=False))


class OwnStep(keras.Model):
    """A functional model with a training of its own."""

    def train_step(self, data):
        raise AssertionError("never called")


def test_a_train_step_of_the_students_own_is_no_secret():
    model = tiny.model(seed=1)
    mine = OwnStep(model.input, model.output, name="mine")
    for student, told in ((mine, True), (model, False), (tiny.Subclassed(), False)):
        distiller = tfkd.KnowledgeDistiller(student, tiny.model(8, seed=2), ["kd"])
        distiller.compile("sgd")
        distiller(tiny.data(8)[0])
        warnings = distiller.check(*tiny.data(8)).warnings
        line = "student 'mine' (OwnStep.train_step) brings code for its own training that is not"
        assert [w.startswith(line) for w in warnings if "train_step" in w] == [True] * told


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.RandomFlip(name="alters"),
        lambda: layers.RandAugment(name="alters"),
        lambda: keras.Sequential([layers.RandomTranslation(0.1, 0.1, name="alters")]),
    ],
)
def test_augmentation_inside_of_the_student_is_caught(layer):
    student, teacher = headed("own", layer()), tiny.model(8)
    x, y = tiny.data(8)
    line = "student 'own' (alters) alters its images at random, and no other model sees them"
    for other, told in ((teacher, True), (None, False)):
        distiller = tfkd.KnowledgeDistiller(student, other)
        distiller.compile("sgd")
        assert any(w.startswith(line) for w in distiller.check(x, y).warnings) == told


def test_augmentation_inside_of_a_peer_is_caught():
    peers = [tiny.model(name="plain"), headed("own", layers.RandomFlip(name="flip"))]
    distiller = tfkd.MutualDistiller(peers)
    distiller.compile("sgd")
    assert any("'own' (flip)" in w for w in distiller.check(*tiny.data(8)).warnings)


def test_layers_that_alter_nothing_at_random_are_no_augmentation():
    student = headed("own", layers.CenterCrop(8, 8), layers.Dropout(0.1), layers.Resizing(8, 8))
    distiller = tfkd.KnowledgeDistiller(student, tiny.model(8))
    distiller.compile("sgd")
    assert not any("at random" in w for w in distiller.check(*tiny.data(8)).warnings)


def test_a_teacher_that_is_not_finite_is_to_blame(digits, teacher):
    spoilt = untrained(digits)
    spoilt.set_weights([np.nan * weight for weight in teacher.get_weights()])
    found = make(digits, spoilt, losses=["kd"]).check(digits.validation, batches=1).warnings
    assert any("has weights that are NaN or infinite" in warning for warning in found)
    distiller = make(digits, teacher, teacher_preprocessing=lambda x: tf.math.log(x - 100.0))
    found = distiller.check(digits.validation, batches=1).warnings
    assert any("gets images with NaN or infinite values" in warning for warning in found)
    assert not any("other images" in warning for warning in found)
