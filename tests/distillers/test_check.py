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
from tfkd.errors import UsageError
from tfkd.inspection import check
from tfkd.inspection.findings import reordered_accuracy


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


@pytest.fixture(scope="module")
def plain(digits, teacher):
    """The distiller of tests that only look: a check changes nothing."""
    return make(digits, teacher)


def pixels(digits, white):
    """Validation data that nobody has normalised."""
    return digits.validation.map(lambda x, y: (white * (x * digits.std[0] + digits.mean[0]), y))


def test_nothing_is_wrong_with_a_trained_teacher(digits, plain):
    report = plain.check(digits.validation)
    assert report.warnings == []
    assert report.teacher["accuracy"] > 0.7 and report.teacher["outputs"] == "logits"
    assert report.teacher["normalization"]["spread"] == pytest.approx(1, abs=0.3)
    assert report.data["examples"] == digits.sizes["validation"]
    assert report.data["labels"] == (0, 9)


def test_a_teacher_without_its_weights_is_caught(digits):
    report = make(digits, untrained(digits)).check(digits.validation)
    assert any("near chance (10.0%): load its trained weights" in w for w in report.warnings)


@pytest.mark.parametrize("white", [1, 255])
def test_a_teacher_fed_wrongly_normalised_images_is_caught(digits, teacher, plain, white):
    report = plain.check(pixels(digits, white))
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_to_blame(digits, plain, value):
    spoil = digits.validation.map(lambda x, y: (tf.where(y[:, None, None, None] == 3, value, x), y))
    report = plain.check(spoil)
    (warning,) = report.warnings
    threes = sum(int(tf.reduce_sum(tf.cast(y == 3, "int32"))) for _, y in digits.validation)
    assert warning.startswith(f"the inputs of {threes} of {report.data['examples']} examples hold")
    json.loads(json.dumps(report.as_dict(), allow_nan=False))


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


def test_a_student_that_normalises_by_itself_may_get_pixels(digits, teacher):
    inputs = keras.Input(digits.input_shape)
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    student = keras.Model(inputs, layers.Dense(10)(x))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile("sgd")
    report = distiller.check(pixels(digits, 255))
    assert report.student["normalizes"]
    assert not any("raw pixels" in warning for warning in report.warnings)


def test_own_preprocessing_by_operations_is_seen_too(digits, teacher):
    inputs = keras.Input(digits.input_shape)
    student = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(inputs / 255.0)))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile("sgd")
    assert not any(" pixels" in w for w in distiller.check(pixels(digits, 255)).warnings)
    assert any("scales pixels" in w for w in distiller.check(digits.validation).warnings)


def headed(name, *head):
    """A classifier of `tiny.SHAPE` with some layers in front."""
    inputs = keras.Input(tiny.SHAPE)
    x = inputs
    for layer in head:
        x = layer(x)
    x = layers.Conv2D(4, 3, name=f"{name}_conv")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)), name=name)


class SubclassedWithRescaling(tiny.Subclassed):
    """Rescales by a layer that no graph shows."""

    def __init__(self):
        super().__init__(name="own")
        self.rescale = layers.Rescaling(1 / 255)

    def call(self, inputs):
        return super().call(self.rescale(inputs))


def adapted(white):
    return layers.Normalization(mean=0.5 * white, variance=(0.25 * white) ** 2)


OWN_PREPROCESSING = {
    "rescaling": lambda: headed("own", layers.Rescaling(1 / 127.5, -1)),
    "normalization": lambda: headed("own", adapted(255)),
    "nested": lambda: headed("own", keras.Sequential([layers.Rescaling(1 / 255), adapted(1)])),
    "subclassed": SubclassedWithRescaling,
}


@pytest.mark.parametrize("role", ["student", pytest.param("teacher", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", OWN_PREPROCESSING)
def test_images_that_are_normalised_twice_are_caught(kind, role):
    models = {"student": tiny.model(seed=1), "teacher": tiny.model(8, seed=2)}
    x, y = tiny.data(16)
    models[role] = OWN_PREPROCESSING[kind]()
    distiller = tfkd.KnowledgeDistiller(**models, losses=["kd"])
    distiller.compile("sgd")
    distiller(x)
    start = f"{role} 'own' scales pixels from 0 to 255 by itself, and gets images that are"
    found = {}
    forms = {"normalised": x, "0 to 1": np.clip(0.2 * x + 0.5, 0, 1)}
    for values, images in {**forms, "pixels": np.clip(64 * x + 128, 0, 255)}.items():
        warnings = distiller.check(images, y).warnings
        found[values] = any(warning.startswith(start) for warning in warnings)
    assert found == {"normalised": True, "0 to 1": True, "pixels": False}


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("MobileNetV3Small", {}),
        pytest.param("EfficientNetB0", {}, marks=pytest.mark.slow),
        pytest.param("EfficientNetV2B0", {}, marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", {}, marks=pytest.mark.slow),
        ("MobileNetV3Small", {"include_preprocessing": False}),
    ],
)
def test_applications_that_rescale_inside_are_caught(kind, arguments):
    student = getattr(keras.applications, kind)(
        weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None, **arguments
    )
    distiller = tfkd.KnowledgeDistiller(student)
    distiller.compile("sgd")
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    warnings = distiller.check(x, np.arange(8) % 5).warnings
    assert any("scales pixels" in warning for warning in warnings) == (not arguments)


def test_a_layer_that_scales_a_little_is_no_preprocessing_of_pixels():
    student = headed("own", layers.Rescaling(2.0, -1.0))
    distiller = tfkd.KnowledgeDistiller(student, tiny.model(8), losses=["kd"])
    distiller.compile("sgd")
    x, y = tiny.data(16)
    assert not any("scales pixels" in w for w in distiller.check(0.1 * x + 0.5, y).warnings)


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


def briefly_trained(digits, name, steps, momentum=0.99):
    """A teacher whose moving averages are still on the way from 0 and 1 to the data."""
    keras.utils.set_random_seed(0)
    model = tfkd.models.create(name, digits.num_classes, digits.input_shape, seed=1)
    for _, layer in tfkd.taps.of_kind(model, layers.BatchNormalization):
        layer.momentum = momentum
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(digits.train.repeat(), steps_per_epoch=steps, verbose=0, shuffle=False)
    return model


@pytest.fixture(scope="module")
def brief_teacher(digits):
    return briefly_trained(digits, "resnet8", 84)


def test_moving_averages_on_the_way_are_no_other_images(digits, brief_teacher):
    report = make(digits, brief_teacher).check(digits.validation)
    seen = report.teacher["normalization"]
    assert seen["spread"] < 0.5 and seen["on_the_way"]
    assert not any("other images" in warning for warning in report.warnings)


@pytest.mark.parametrize("left", [0.0, 0.2, 0.8])
def test_moving_averages_on_the_way_are_told_from_other_images(left):
    random = np.random.default_rng(0)
    mean, variance = random.normal(size=16), random.uniform(0.01, 0.3, 16)
    moving = (1 - left) * mean, left + (1 - left) * variance
    kernel = random.normal(size=16)
    # Channels of another scale and offset of the images.
    for scale, offset, right in ((1, 0, True), (0.4, 0.3, False), (3, 0, False), (100, 50, False)):
        here = scale * mean + offset * kernel, scale**2 * variance
        assert check._on_the_way(*here, *moving, 1e-3) == right


@pytest.mark.parametrize("white", [1, 255])
def test_other_images_are_caught_in_spite_of_moving_averages_on_the_way(
    digits, brief_teacher, white
):
    report = make(digits, brief_teacher).check(pixels(digits, white))
    (warning,) = [w for w in report.warnings if "other images than in its training" in w]
    seen = report.teacher["normalization"]
    assert f"{report.teacher['accuracy']:.1%} of these examples, and in" in warning
    assert f"in {seen['accuracy']:.1%} with their own statistics" in warning
    assert seen["accuracy"] > report.teacher["accuracy"] + 0.1 and not seen["on_the_way"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet14", "wrn_16_2", "vgg8", "mobilenet_v2"])
@pytest.mark.parametrize("steps", [28, 84])
def test_no_false_alarm_for_any_network_and_short_training(digits, name, steps):
    report = make(digits, briefly_trained(digits, name, steps), losses=["kd"]).check(
        digits.validation
    )
    assert not any("other images" in warning for warning in report.warnings)


@pytest.mark.slow
def test_a_frozen_backbone_of_another_task_is_no_false_alarm(digits, teacher):
    """Its statistics are of other images, and it was trained on these with them."""
    frozen = tfkd.models.create("resnet14", digits.num_classes, digits.input_shape, seed=1)
    frozen.set_weights(teacher.get_weights())
    for _, layer in tfkd.taps.of_kind(frozen, layers.BatchNormalization):
        layer.trainable = False
    first = tfkd.taps.of_kind(frozen, layers.BatchNormalization)[0][1]
    first.moving_variance.assign(first.moving_variance * 16)
    frozen.compile(
        keras.optimizers.Adam(0.003), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    frozen.fit(digits.train, epochs=3, verbose=0, shuffle=False)
    report = make(digits, frozen).check(digits.validation)
    assert report.teacher["normalization"]["spread"] < 0.5 and report.teacher["accuracy"] > 0.7
    assert not any("other images" in warning for warning in report.warnings)


def test_without_an_accuracy_only_images_far_off_are_other_images(digits, teacher):
    """A teacher of other classes: nothing tells whether it is the better for other statistics."""
    body = keras.Model(teacher.input, teacher.get_layer("pooled").output)
    other = keras.Model(teacher.input, layers.Dense(7, name="head")(body(teacher.input)))
    first = tfkd.taps.of_kind(other, layers.BatchNormalization)[0][1]
    start = first.moving_variance.numpy()
    for factor, warned in ((16, False), (1 / 400, True)):
        first.moving_variance.assign(start * factor)
        distiller = make(digits, other, losses=[tfkd.losses.get("pkt", spots=[("pooled", "head")])])
        report = distiller.check(digits.validation)
        assert report.teacher["accuracy"] is None
        assert any("other images" in warning for warning in report.warnings) == warned
    first.moving_variance.assign(start)


def test_a_teacher_that_is_not_finite_is_to_blame(digits, teacher):
    spoilt = untrained(digits)
    spoilt.set_weights([np.nan * weight for weight in teacher.get_weights()])
    found = make(digits, spoilt, losses=["kd"]).check(digits.validation, batches=1).warnings
    assert any("has weights that are NaN or infinite" in warning for warning in found)
    distiller = make(digits, teacher, teacher_preprocessing=lambda x: tf.math.log(x - 100.0))
    found = distiller.check(digits.validation, batches=1).warnings
    assert any("gets images with NaN or infinite values" in warning for warning in found)
    assert not any("other images" in warning for warning in found)


def test_a_first_batch_normalization_of_the_images_themselves():
    """The statistics are those of the data, channel by channel, and its alone."""
    inputs = keras.Input(tiny.SHAPE)
    normalization = layers.BatchNormalization(epsilon=0.5)
    x = layers.Conv2D(4, 3)(normalization(inputs))
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    normalization.moving_mean.assign([1.0, 2.0, 3.0])
    normalization.moving_variance.assign([0.5, 1.5, 3.5])
    x, y = tiny.data(16)
    distiller = tfkd.KnowledgeDistiller(tiny.model(), model, ["kd"])
    distiller.compile("sgd")
    before = [np.array(v) for v in model.variables]
    seen = distiller.check(x, y, batch_size=16).teacher["normalization"]
    deviation = np.sqrt([1.0, 2.0, 4.0])
    shift = (x.mean((0, 1, 2)) - [1, 2, 3]) / deviation
    assert seen["shift"] == pytest.approx(np.sqrt(np.mean(shift**2)), rel=1e-4)
    assert seen["spread"] == pytest.approx(
        np.median(np.sqrt(x.var((0, 1, 2)) + 0.5) / deviation), rel=1e-4
    )
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    normalization.moving_mean.assign(x.mean((0, 1, 2)))
    normalization.moving_variance.assign(x.var((0, 1, 2)))
    expected = np.mean(np.argmax(model(x), -1) == y)
    assert seen["accuracy"] == pytest.approx(expected)


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
    # Arrays are taken as in `fit`, in whatever form.
    for arguments in ((x, y, weights), ((x, y, weights),), ([x, y, weights],)):
        again = distiller.check(*arguments, batch_size=8)
        assert again.losses["student_loss"]["value"] == pytest.approx(found["value"], rel=1e-4)
        assert again.student["accuracy"] == report.student["accuracy"]
    one_hot = tf.data.Dataset.from_tensor_slices((x, np.eye(5)[y].astype("float32"))).batch(8)
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    again = distiller.check(one_hot)
    assert again.student["accuracy"] == report.student["accuracy"]
    assert again.losses["student_loss"]["value"] == pytest.approx(
        float(cross_entropy(y, logits)), rel=1e-4
    )


def test_the_table_shows_every_value(digits, teacher, plain):
    report = plain.check(pixels(digits, 255))
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
    for checks in (False, True):
        distiller, x, labels = contrastive_distiller()
        for _ in range(2):
            distiller.train_on_batch(x, labels)
            if checks:
                distiller.check([(x, labels)])
        found.append(state(distiller)[0])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_replicas_give_what_one_gives():
    x, y = tiny.data(16)
    values = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
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


class Batches(keras.utils.PyDataset):
    """Batches by number, which never end by themselves."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        x, y = tiny.data(8)
        return x, y


@pytest.mark.parametrize(
    "arguments, examples",
    [
        (tiny.data(40), 40),
        ((tiny.data(40),), 40),
        ((tiny.data(40)[0], tiny.data(40)[1].tolist()), 40),
        (tuple(map(tf.constant, tiny.data(40))), 40),
        ((tiny.data(40)[0], {"label": tiny.data(40)[1], "index": np.arange(40)}), 40),
        (([tiny.data(8), tiny.data(8)],), 16),
        ((tuple([tiny.data(8)] * 3),), 24),
        ((Batches(),), 16),
    ],
)
def test_data_comes_in_all_forms_of_fit(arguments, examples):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    assert distiller.check(*arguments).data["examples"] == examples


def test_arrays_sorted_by_class_are_looked_at_in_all_classes():
    x, _ = tiny.data(100)
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    report = distiller.check(x, np.repeat(np.arange(5), 20), batches=2, batch_size=8)
    assert report.data["examples"] == 16 and report.data["labels"] == (0, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((tiny.data(8)[0], np.arange(4)), r"as many labels as inputs; received \{'inputs': 8, 'l"),
        (([np.ones((4, 8, 8, 3)), np.ones((4, 2))], np.arange(4)), "one array of inputs"),
        (({"a": np.ones((4, 2)), "b": np.ones((4, 2))}, np.arange(4)), "one tensor of images"),
        ((tf.data.Dataset.range(3), 5), "y beside an array; .*Dataset brings .* batches=..."),
    ],
)
def test_arrays_that_cannot_be_checked(arguments, message):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    with pytest.raises(UsageError, match=message):
        distiller.check(*arguments)


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
