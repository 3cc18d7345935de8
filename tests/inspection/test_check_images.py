"""What `check` finds in the images that the models see, before training."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from checking import headed, make, pixels
from keras import layers

import tfkd
from tfkd.inspection import check


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_to_blame(digits, plain, value):
    spoil = digits.validation.map(lambda x, y: (tf.where(y[:, None, None, None] == 3, value, x), y))
    report = plain.check(spoil)
    (warning,) = report.warnings
    threes = sum(int(tf.reduce_sum(tf.cast(y == 3, "int32"))) for _, y in digits.validation)
    assert warning.startswith(f"the inputs of {threes} of {report.data['examples']} examples hold")
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
