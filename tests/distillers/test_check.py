"""What `check` finds before training, and that looking changes nothing."""

import json
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers, ops

import tfkd
from tfkd.distillers.diagnosis import reordered_accuracy
from tfkd.errors import UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    return tfkd.data.load("digits", batch_size=32, validation=0.3, augment=(), data_dir=directory)


def untrained(digits, seed=1):
    return tfkd.models.create("resnet14", digits.num_classes, digits.input_shape, seed=seed)


@pytest.fixture(scope="module")
def teacher(digits):
    """A teacher of real digits, trained for a few seconds."""
    keras.utils.set_random_seed(0)
    model = untrained(digits)
    trainer = tfkd.KnowledgeDistiller(model)
    trainer.compile(tfkd.optimizers.SGD(0.05))
    trainer.fit(digits.train, epochs=3, verbose=0)
    return model


def make(digits, teacher, **arguments):
    student = tfkd.models.create("resnet8", digits.num_classes, digits.input_shape, seed=2)
    arguments = {"losses": ["kd", "at"], **arguments}
    distiller = tfkd.KnowledgeDistiller(student, teacher, **arguments)
    distiller.compile("sgd")
    return distiller


def pixels(digits, white):
    """Validation data that nobody has normalised."""
    return digits.validation.map(lambda x, y: (white * (x * digits.std[0] + digits.mean[0]), y))


def test_nothing_is_wrong_with_a_trained_teacher(digits, teacher):
    report = make(digits, teacher).check(digits.validation)
    assert report.warnings == []
    assert report.teacher["accuracy"] > 0.7 and report.teacher["outputs"] == "logits"
    assert report.teacher["normalization"]["spread"] == pytest.approx(1, abs=0.3)
    assert report.data["examples"] == digits.sizes["validation"]
    assert report.data["labels"] == (0, 9)


def test_a_teacher_without_its_weights_is_caught(digits):
    report = make(digits, untrained(digits)).check(digits.validation)
    assert any("near chance (10.0%): load its trained weights" in w for w in report.warnings)


@pytest.mark.parametrize("white", [1, 255])
def test_a_teacher_fed_wrongly_normalised_images_is_caught(digits, teacher, white):
    report = make(digits, teacher).check(pixels(digits, white))
    assert any("other images than in its training" in warning for warning in report.warnings)
    raw = [warning for warning in report.warnings if "look like raw pixels" in warning]
    assert len(raw) == (white == 255)
    # What the warning asks for puts it right.
    mean, std = (tuple(white * value for value in values) for values in (digits.mean, digits.std))
    preprocessing = tfkd.layers.TeacherPreprocessing(mean=mean, std=std)
    right = make(digits, teacher, teacher_preprocessing=preprocessing).check(pixels(digits, white))
    assert right.teacher["accuracy"] > report.teacher["accuracy"] + 0.2
    assert [warning for warning in right.warnings if "raw pixels" not in warning] == []


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


def test_another_order_of_classes_is_caught(digits, teacher):
    order = tf.constant([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    data = digits.validation.map(lambda x, y: (x, tf.gather(order, y)))
    (warning,) = make(digits, teacher).check(data).warnings
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
    data = digits.validation.map(lambda x, y: (x * float("nan"), y))
    report = make(digits, teacher).check(data)
    assert any("student_loss, kd_loss, at_loss is not a finite" in w for w in report.warnings)
    json.loads(json.dumps(report.as_dict(), allow_nan=False))


def test_a_student_that_normalises_by_itself_may_get_pixels(digits, teacher):
    inputs = keras.Input(digits.input_shape)
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    student = keras.Model(inputs, layers.Dense(10)(x))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile("sgd")
    report = distiller.check(pixels(digits, 255))
    assert report.student["normalizes"]
    assert not any("raw pixels" in warning for warning in report.warnings)


def test_values_are_those_of_the_losses():
    """The mean over unequal batches, with sample weights, in inference mode."""
    x, y = tiny.data(20)
    weights = np.linspace(0, 1, 20).astype("float32")
    student, teacher = tiny.model(seed=1, dropout=0.5), tiny.model(8, seed=2)
    loss = tfkd.losses.get("kd", weight=0.5)
    distiller = tfkd.KnowledgeDistiller(student, teacher, [loss, tiny.Hint(weight=0.0)], 0.25)
    distiller.compile("sgd")
    report = distiller.check(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8))
    logits = student(x)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = report.losses["student_loss"]
    assert found["value"] == pytest.approx(float(cross_entropy(y, logits, weights)), rel=1e-4)
    assert found["weighted"] == pytest.approx(0.25 * found["value"])
    expected = float(loss([logits], [teacher(x)], sample_mask=weights))
    assert report.losses["kd_loss"]["value"] == pytest.approx(expected, rel=1e-4)
    assert report.losses["kd_loss"]["weight"] == 0.5
    assert report.losses["hint_for_tests_loss"]["spots"] == [
        ("stage2", (4, 4, 8), "stage2", (4, 4, 16))
    ]
    assert report.student["accuracy"] == np.mean(np.argmax(logits, -1) == y)
    assert report.student["parameters"] == student.count_params()
    one_hot = tf.data.Dataset.from_tensor_slices((x, np.eye(5)[y].astype("float32"))).batch(8)
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    again = distiller.check(one_hot)
    assert again.student["accuracy"] == report.student["accuracy"]
    assert again.losses["student_loss"]["value"] == pytest.approx(
        float(cross_entropy(y, logits)), rel=1e-4
    )


def test_the_table_shows_every_value(digits, teacher):
    report = make(digits, teacher).check(pixels(digits, 255))
    text = str(report)
    for line in (
        f"teacher  resnet14  {teacher.count_params():,}",
        f"{report.student['accuracy']:.2%}",
        "stage3 2x2x64 -> stage3 2x2x64",
        f"{report.losses['kd_loss']['value']:.4g}",
        *(f"\nwarning: {warning}" for warning in report.warnings),
    ):
        assert line in text
    assert max(map(len, text.split("\nwarning")[0].splitlines())) <= 100


def state(distiller):
    """Every number that a distiller holds, and every random state."""
    optimizer_variables = [v for o, _ in distiller.optimizers().values() for v in o.variables]
    variables = [*distiller.variables, *distiller.teacher.variables, *optimizer_variables]
    generator = keras.src.random.seed_generator.global_seed_generator()
    return [np.array(v) for v in (*variables, generator.state)], random.getstate()


def contrastive_distiller(*more):
    """One whose losses remember examples and draw others."""
    keras.utils.set_random_seed(0)
    x, y = tiny.data(16)
    contrastive = tfkd.losses.get("crd", negatives=4)
    contrastive.set_examples(y)
    student, teacher = tiny.model(seed=1, dropout=0.5), tiny.model(8, seed=2)
    distiller = tfkd.KnowledgeDistiller(student, teacher, ["kd", contrastive, *more])
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.build_optimizers()
    return distiller, x, {"label": y, "index": np.arange(16)}


@pytest.mark.parametrize("indices", [True, False])
def test_nothing_changes(indices):
    """Not even memory and draws of crd; ft is checked as it is before its preparation."""
    distiller, x, labels = contrastive_distiller("ft")
    distiller.test_on_batch(x, labels)
    before, python = state(distiller)
    labels = labels if indices else labels["label"]
    report = distiller.check(tf.data.Dataset.from_tensor_slices((x, labels)).batch(8))
    assert (report.losses["crd_loss"]["value"] is None) == (not indices)
    assert ("needs indices" in str(report)) == (not indices)
    after, python_after = state(distiller)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert python == python_after
    assert len(distiller.preparations()) == 1


def test_training_goes_on_as_if_nothing_had_been_looked_at():
    found = []
    for check in (False, True):
        distiller, x, labels = contrastive_distiller()
        for _ in range(2):
            distiller.train_on_batch(x, labels)
            if check:
                distiller.check([(x, labels)])
        found.append(state(distiller)[0])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_replicas_give_what_one_gives():
    x, y = tiny.data(16)
    values = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("mirrored", replicas).scope():
            distiller = tfkd.KnowledgeDistiller(
                tiny.model(seed=1), tiny.model(8, seed=2), ["kd", "rkd"]
            )
            distiller.compile("sgd")
            report = distiller.check(tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
        values.append([loss["value"] for loss in report.losses.values()])
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_a_distiller_without_a_teacher_is_checked_too():
    distiller = tfkd.KnowledgeDistiller(tiny.model())
    distiller.compile("sgd")
    x, y = tiny.data(8)
    report = distiller.check([(x, y)])
    assert report.teacher is None and list(report.losses) == ["student_loss"]


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "at least one batch; the data set has none"),
        ([({"a": np.ones(4), "b": np.ones(4)}, np.arange(4))], "one tensor of images per batch"),
        ([tiny.data(4)[0]], r"check needs batches \(inputs, labels\)"),
        ([(tiny.data(4)[0], np.array([0, 1, 2, 5]))], "label 5, and student 'tiny' has 5 classes"),
        ([(tiny.data(4)[0], np.array([0, 1, -1, 4]))], "label -1, and student"),
    ],
)
def test_data_that_cannot_be_checked(data, message):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    with pytest.raises(UsageError, match=message):
        distiller.check(data)


def test_a_distiller_that_is_not_ready():
    x, y = tiny.data(4)
    with pytest.raises(UsageError, match="Compile the distiller first"):
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1)).check([(x, y)])
    loss = tfkd.losses.get("fitnet", spots=[("body", "stage1")])
    distiller = tfkd.KnowledgeDistiller(tiny.Subclassed(), tiny.model(8, seed=1), [loss])
    distiller.compile("sgd")
    with pytest.raises(UsageError, match="call the distiller on a batch first"):
        distiller.check([(x, y)])
    distiller(x)
    spots = distiller.check([(x, y)]).losses["fitnet_loss"]["spots"]
    assert spots == [("body", (8, 8, 4), "stage1", (8, 8, 8))]
