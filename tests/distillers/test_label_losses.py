"""Labels that are not one class: binary, multi-label and regression, from compile to check."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.errors import UsageError

BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
#: Shapes of labels for 32 images, and the number of logits.
LABELS = {"column": ((32, 1), 1), "row": ((32,), 1), "multi-label": ((32, 4), 4)}


def make(
    outputs,
    losses=("kd",),
    loss=BINARY,
    method=tfkd.KnowledgeDistiller,
    run_eagerly=True,
    **arguments,
):
    student = tiny.model(seed=1, classes=outputs)
    teacher = tiny.model(8, seed=2, classes=outputs, name="teacher")
    if method is tfkd.KnowledgeDistiller:
        arguments["losses"] = list(losses)
    distiller = method(student, teacher, **arguments)
    distiller.compile(
        keras.optimizers.SGD(0.1),
        loss,
        metrics=["accuracy", keras.metrics.BinaryAccuracy(name="binary", threshold=0.0)],
        run_eagerly=run_eagerly,
    )
    return distiller


def data(shape):
    return tiny.data()[0], np.random.default_rng(5).integers(0, 2, shape)


def weights(model):
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.mark.parametrize("kind", LABELS)
def test_a_step_on_binary_labels_equals_one_written_by_hand(kind):
    """0.1 · binary cross-entropy + 0.9 · 16 · KL of Bernoulli variables, with sample weights."""
    shape, outputs = LABELS[kind]
    x, y = data(shape)
    sample_weight = np.linspace(0, 2, 32).astype("float32")
    truth = y.reshape(32, outputs).astype("float32")
    distiller = make(outputs)
    student, teacher = tiny.model(seed=1, classes=outputs), distiller.teacher
    with tf.GradientTape() as tape:
        logits = student(x, training=True)
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(truth, logits)
        p, q = tf.sigmoid(teacher(x, training=False) / 4), tf.sigmoid(logits / 4)
        divergence = p * tf.math.log(p / q) + (1 - p) * tf.math.log((1 - p) / (1 - q))
        both = tf.reduce_mean(0.1 * cross_entropy + 0.9 * 16.0 * divergence, axis=-1)
        loss = tf.reduce_mean(sample_weight * both)
    gradients = tape.gradient(loss, student.trainable_variables)
    expected = [v.numpy() - 0.1 * g.numpy() for v, g in zip(student.trainable_variables, gradients)]
    logs = distiller.train_on_batch(x, y, sample_weight, return_dict=True)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert logs["kd_loss"] > 1e-3
    for value, right in zip(weights(distiller.student), expected, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", LABELS)
def test_fit_evaluate_and_check_of_binary_labels(kind):
    shape, outputs = LABELS[kind]
    x, y = data(shape)
    distiller = make(outputs)
    history = distiller.fit(x, y, validation_data=(x, y), epochs=2, batch_size=16, verbose=0)
    logits = np.array(distiller.student(x, training=False))
    accuracy = np.mean((logits > 0) == (y.reshape(logits.shape) > 0))
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert history.history["val_accuracy"][-1] == pytest.approx(accuracy)
    assert logs["accuracy"] == logs["binary"] == pytest.approx(accuracy)
    assert logs["loss"] == pytest.approx(float(BINARY(y.reshape(logits.shape), logits)), rel=1e-4)
    report = distiller.check([(x, y)])
    assert report.student["accuracy"] == pytest.approx(accuracy)
    assert report.data["labels"] == (0, 1) and report.data["decisions"] == y.size
    assert not any("order" in w and "another" in w for w in report.warnings)


@pytest.mark.parametrize("outputs", [1, 4])
def test_check_tells_a_teacher_that_knows_from_one_that_guesses(outputs):
    x, _ = tiny.data(128)
    distiller = make(outputs)
    logits = np.array(distiller.teacher(x, training=False))
    # Where half of the images are a yes.
    bias = distiller.teacher.get_layer("logits").bias
    bias.assign_sub(np.median(logits, axis=0))
    right = (np.array(distiller.teacher(x, training=False)) > 0).astype("int32")
    wrong = np.random.default_rng(1).permutation(right)
    report = distiller.check([(x, right)])
    assert report.teacher["accuracy"] == 1 and report.teacher["chance"] == pytest.approx(0.5)
    assert report.teacher["reordered_accuracy"] is None
    assert not any("chance" in warning for warning in report.warnings)
    assert any("near chance" in w for w in distiller.check([(x, wrong)]).warnings)


def test_check_catches_a_hidden_sigmoid():
    class Sigmoid(tiny.Subclassed):
        def call(self, inputs):
            return keras.ops.sigmoid(super().call(inputs))

    distiller = tfkd.KnowledgeDistiller(tiny.model(), Sigmoid())
    distiller.compile("sgd", BINARY)
    x, y = data((32, 5))
    distiller(x)
    report = distiller.check([(x, y)])
    assert report.teacher["outputs"] == "probabilities" and report.student["outputs"] == "logits"


@pytest.mark.parametrize("kind", ["column", "multi-label"])
def test_two_replicas_give_what_one_gives(kind):
    shape, outputs = LABELS[kind]
    x, y = data(shape)
    results = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
            student = tiny.model(seed=1, classes=outputs, normalized=False)
            teacher = tiny.model(8, seed=2, classes=outputs)
            distiller = tfkd.KnowledgeDistiller(student, teacher)
            distiller.compile(keras.optimizers.SGD(0.1), BINARY, metrics=["accuracy"])
        logs = distiller.fit(x, y, batch_size=32, verbose=0).history
        results.append((weights(student), {name: values[0] for name, values in logs.items()}))
    (one, logs), (two, others) = results
    assert logs == pytest.approx(others, rel=1e-4)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_ackd_counts_what_its_learners_get_right():
    x, y = data((32, 4))
    distiller = make(4, method=tfkd.ACKD, adversarial_weight=0.0)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    main = tfkd.KnowledgeDistiller(tiny.model(seed=1, classes=4))
    main.compile("sgd", BINARY, metrics=["accuracy"], **tiny.EAGER)
    expected = main.train_on_batch(x, y, return_dict=True)["accuracy"]
    assert logs["accuracy"] == pytest.approx(expected)
    assert logs["kd_loss"] > 1e-3
    evaluated = distiller.test_on_batch(x, y, return_dict=True)["fused_accuracy"]
    fused = np.array(distiller.fused_student()(x, training=False)) > 0
    assert evaluated == pytest.approx(np.mean(fused == y))


def test_the_loss_of_a_method_follows_the_labels_too():
    x, y = data((32, 1))
    logs = [
        make(1, method=tfkd.IAKD, start=1.0, kd_weight=weight).train_on_batch(
            x, y, return_dict=True
        )
        for weight in (0.0, 1.0)
    ]
    assert "kd_loss" not in logs[0] and logs[1]["kd_loss"] > 1e-3


@pytest.mark.parametrize(
    "loss",
    ["mse", "huber", keras.losses.MeanAbsoluteError(), keras.losses.Huber(), "log_cosh"],
)
def test_kd_of_regression_is_refused(loss):
    with pytest.raises(UsageError, match="'kd' compares class prob.*no logits: .*fitnet"):
        make(1, loss=loss)
    make(1, [tfkd.losses.get("kd", activation="sigmoid")], loss)  # Who says so, means it.
    make(1, [tfkd.losses.get("kd", weight=0.0), "fitnet"], loss)


@pytest.mark.parametrize("shape, outputs", [((32,), 1), ((32, 3), 3)])
def test_regression_learns_from_features(shape, outputs):
    x, y = tiny.data()[0], np.random.default_rng(0).normal(size=shape)
    distiller = make(outputs, ["fitnet"], keras.losses.MeanSquaredError())
    report = distiller.check([(x, y)])
    assert report.student["accuracy"] is report.teacher["accuracy"] is None
    assert report.data["labels"] == pytest.approx((y.min(), y.max()))
    assert not any("order" in w or "chance" in w for w in report.warnings)
    assert "teacher" in str(report)
    before = distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    distiller.fit(x, y, epochs=3, verbose=0)
    assert distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"] < before


@pytest.mark.parametrize("loss", [BINARY, keras.losses.MeanSquaredError()])
def test_what_needs_classes_is_refused_beside_other_labels(loss):
    with pytest.raises(UsageError, match="'dkd' needs the one class of each sample"):
        make(4, ["dkd"], loss)
    with pytest.raises(UsageError, match="SAKD needs images of one class each"):
        make(4, method=tfkd.SAKD, loss=loss)
    mutual = tfkd.MutualDistiller([tiny.model(classes=4), tiny.model(classes=4, seed=1)])
    with pytest.raises(UsageError, match="MutualDistiller needs images of one class each"):
        mutual.compile("sgd", loss)


def focal(y, p):
    return keras.losses.binary_focal_crossentropy(y, p, from_logits=True)


@pytest.mark.parametrize("loss", [focal, keras.losses.Hinge()])
def test_a_loss_that_is_not_known_is_allowed(loss):
    distiller = make(4, loss=loss)
    assert distiller.train_on_batch(*data((32, 4)), return_dict=True)["kd_loss"] > 1e-3


@pytest.mark.parametrize(
    "loss, outputs, labels, message",
    [
        (None, 1, (32,), "softmax of a single logit"),
        (BINARY, 5, (32,), r"BinaryCrossentropy does not fit labels of shape .* and 5 outputs"),
        (keras.losses.MeanSquaredError(), 5, (32, 1), "does not fit labels of shape"),
    ],
)
def test_labels_that_do_not_fit(loss, outputs, labels, message):
    kd = tfkd.losses.get("kd", activation="softmax")
    distiller = make(outputs, [kd], loss, run_eagerly=False)
    x, y = data(labels)
    for call in (lambda: distiller.fit(x, y, verbose=0), lambda: distiller.check([(x, y)])):
        with pytest.raises(UsageError, match=message):
            call()


def test_labels_that_binary_cross_entropy_does_not_take():
    x, y = data((32, 4))
    with pytest.raises(UsageError, match="label 3, and BinaryCrossentropy takes labels from 0"):
        make(4).check([(x, 3 * y)])
    single = tfkd.KnowledgeDistiller(tiny.model(classes=1))
    single.compile("sgd")
    with pytest.raises(UsageError, match="has a single logit: compile with .*BinaryCross"):
        single.check([(x, y[:, 0])])
    # Labels need not be certain.
    make(4).fit(x, 0.8 * y + 0.1, verbose=0)


@pytest.mark.parametrize(
    "loss, name",
    [
        (keras.losses.BinaryCrossentropy(), "BinaryCrossentropy"),
        ("binary_crossentropy", "BinaryCrossentropy"),
        (keras.losses.CategoricalFocalCrossentropy(), "CategoricalFocalCrossentropy"),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
    ],
)
def test_a_loss_of_probabilities_is_told_how_to_take_logits(loss, name):
    with pytest.raises(UsageError, match=rf"use keras.losses.{name}\(from_logits=True\)"):
        make(4, loss=loss)


@pytest.mark.parametrize("losses, loss, outputs", [(["kd"], BINARY, 1), (["fitnet"], "mse", 3)])
def test_diagnostics_leave_out_what_a_softmax_would_say(losses, loss, outputs):
    x, y = data((32, outputs))
    look = tfkd.callbacks.Diagnostics([(x, y)], gradient_examples=8)
    history = make(outputs, losses, loss).fit(x, y, verbose=0, callbacks=[look]).history
    assert not {"entropy", "calibration_error", "agreement_top1", "teacher_kl"} & history.keys()
    assert {"cka/logits", "gradient_norm"} <= history.keys()
