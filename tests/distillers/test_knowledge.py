import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.errors import UsageError


def test_a_step_equals_one_written_by_hand():
    """0.1 · cross-entropy + 0.9 · 16 · KL, one step of SGD, computed with plain TensorFlow."""
    x, y = tiny.data()
    student, teacher = tiny.model(seed=1), tiny.model(width=8, seed=2)
    variables = student.trainable_variables
    with tf.GradientTape() as tape:
        logits = student(x, training=True)
        cross_entropy = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        )
        p = tf.nn.softmax(teacher(x, training=False) / 4.0)
        q = tf.nn.softmax(logits / 4.0)
        divergence = tf.reduce_mean(tf.reduce_sum(p * tf.math.log(p / q), axis=-1))
        loss = 0.1 * cross_entropy + 0.9 * 16.0 * divergence
    gradients = tape.gradient(loss, variables)
    expected = [v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, gradients)]

    student = tiny.model(seed=1)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile(keras.optimizers.SGD(0.1), **tiny.EAGER)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    for variable, value in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-5)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_without_losses_it_trains_the_student_alone():
    x, y = tiny.data()
    alone, distilled = tiny.model(seed=1), tiny.model(seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    alone.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=False)
    alone.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    with pytest.warns(UserWarning, match="has a teacher and no loss that distils") as warned:
        distiller = tfkd.KnowledgeDistiller(distilled, tiny.model(seed=2), losses=[])
    assert [warning.filename for warning in warned] == [__file__]
    distiller.compile(keras.optimizers.SGD(0.1), loss=loss)
    distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(alone.get_weights(), distilled.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_default_weights_are_the_benchmarks():
    student, teacher = tiny.model(), tiny.model(seed=1)
    assert tfkd.KnowledgeDistiller(student, teacher).student_loss_weight == 0.1
    named = tfkd.losses.KnowledgeDistillation(name="softened")
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd", named])
    assert distiller.student_loss_weight == 1.0


def test_two_losses_of_one_name_are_an_error():
    with pytest.raises(UsageError, match="different names"):
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses=["kd", "kd"])


def test_spots_that_do_not_pair_say_what_each_model_has():
    teacher = tfkd.models.create("resnet8", tiny.CLASSES, tiny.SHAPE)
    with pytest.raises(UsageError, match=r"student has 2 \(stage1, stage2\), the teacher 3"):
        tfkd.KnowledgeDistiller(tiny.model(), teacher, losses=[tiny.Hint(spots="stages")])
    with pytest.raises(UsageError, match="no tap 'stage7'"):
        tfkd.KnowledgeDistiller(
            tiny.model(), teacher, losses=[tiny.Hint(spots=[("stage7", "stage1")])]
        )


def test_a_loss_that_does_not_exist():
    with pytest.raises(UsageError, match="Unknown loss 'kdd': it must be one of .*kd"):
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses=["kdd"])


@pytest.mark.parametrize("weight", [-1, "high", keras.Variable(0.5)])
def test_a_weight_that_is_no_number(weight):
    with pytest.raises(UsageError, match="student_loss_weight must be a number of at least 0"):
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), student_loss_weight=weight)


def test_labels_in_a_column_are_labels():
    x, y = tiny.data()
    logs = []
    for labels in (y, y[:, None]):
        distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2), losses=["dkd"])
        distiller.compile("sgd", **tiny.EAGER)
        logs.append(distiller.train_on_batch(x, labels, return_dict=True))
    assert logs[0] == pytest.approx(logs[1])


def test_a_loss_of_class_numbers_refuses_mixtures():
    x, y = tiny.data()
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2), losses=["dkd"])
    distiller.compile("sgd", loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(UsageError, match="'dkd' needs the number .* without one-hot labels"):
        distiller.fit(x, np.eye(tiny.CLASSES)[y], verbose=0)


def test_a_single_loss_needs_no_list():
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses="kd")
    assert [loss.id for loss in distiller.distillation_losses] == ["kd"]


@pytest.mark.parametrize("losses", [None, ["kd"], ["ab"]])
def test_nothing_is_said_where_a_loss_distils(losses, recwarn):
    tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses=losses)
    tfkd.KnowledgeDistiller(tiny.model(), losses=[])
    assert not [warning for warning in recwarn if "no loss that distils" in str(warning.message)]


def test_a_loss_of_weight_0_does_not_distil():
    with pytest.warns(UserWarning, match="no loss that distils"):
        weightless = tfkd.losses.get("kd", weight=0.0)
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses=[weightless])


class PassesOn(tfkd.KnowledgeDistiller):
    """A method of a user's own."""

    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        (
            tfkd.KnowledgeDistiller,
            {"temperature": 3},
            r'"?losses=\[tfkd.losses.get\("kd", temperature=3\)\]',
        ),
        (
            tfkd.KnowledgeDistiller,
            {"losses": ["dkd"], "temperature": 3},
            r'losses.get\("dkd", temperature=3\)',
        ),
        (tfkd.KnowledgeDistiller, {"alpha": 0.1}, "student_loss_weight=0.1, .*weight=0.9"),
        (tfkd.KnowledgeDistiller, {"losses": "dkd", "alpha": 2}, r'get\("dkd", alpha=2\)'),
        (tfkd.KnowledgeDistiller, {"loses": ["kd"]}, "'loses'.*student_loss_weight"),
        (tfkd.SAKD, {"temperature": 3}, r'losses.get\("kd", temperature=3\)'),
        (tfkd.ACKD, {"alpha": 3}, "Unknown argument of ACKD 'alpha'.*kd_weight"),
        (tfkd.IAKD, {"alpha": 3}, "Unknown argument of IAKD 'alpha'.*kd_weight"),
        (PassesOn, {"extra": 2, "temperature": 3}, r'losses.get\("kd", temperature=3\)'),
    ],
)
def test_an_argument_that_a_distiller_does_not_have(method, arguments, message):
    student, teacher = tiny.model(), tiny.model(8, seed=1)
    with pytest.raises(UsageError, match=message):
        method(student, teacher, **arguments)


@pytest.mark.parametrize("method", [tfkd.MutualDistiller, tfkd.ACN])
def test_an_argument_that_mutual_learning_does_not_have(method):
    with pytest.raises(UsageError, match="Unknown argument of .* 'alpha'.*mutual_weight"):
        method([tiny.model(), tiny.model(seed=1)], alpha=0.1)


@pytest.mark.parametrize(
    "argument, message",
    [("temperature", r'losses.get\("kd", temperature=3\)'), ("alpha", "student_loss_weight=0.1")],
)
def test_an_argument_of_the_keras_example_that_compile_does_not_have(argument, message):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    with pytest.raises(UsageError, match=message):
        distiller.compile("sgd", **{argument: 3})


def test_a_teacher_of_other_classes_teaches_features():
    x, y = tiny.data()
    teacher = tiny.model(8, seed=2, classes=9, name="teacher")
    losses = ["fitnet", "ft"]
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), teacher, losses=losses)
    distiller.compile("sgd", metrics=["accuracy"])
    report = distiller.check([(x, y)])
    assert report.teacher["accuracy"] is report.teacher["reordered_accuracy"] is None
    assert report.teacher["classes"] == 9 and report.student["accuracy"] is not None
    assert "9 logits" in str(report)
    assert not any("chance" in w or "order of classes" in w for w in report.warnings)
    distiller.prepare(x, y, epochs=1, verbose=0)
    look = tfkd.callbacks.Diagnostics([(x, y)], gradient_examples=8)
    history = distiller.fit(x, y, verbose=0, callbacks=[look]).history
    assert not {"agreement_top1", "teacher_kl", "teacher_calibration_error"} & history.keys()
    assert {"entropy", "calibration_error", "cka/logits", "fitnet_loss"} <= history.keys()


@pytest.mark.parametrize("losses", ["kd", "dkd", [tfkd.losses.get("kd", spots=[("logits",) * 2])]])
def test_a_teacher_of_other_classes_cannot_be_compared_class_by_class(losses):
    teacher = tiny.model(8, seed=2, classes=9)
    with pytest.raises(UsageError, match="class by class, .*None, 5.*None, 9.*such as 'fitnet'"):
        tfkd.KnowledgeDistiller(tiny.model(), teacher, losses=losses).compile()


@pytest.mark.parametrize("method", [tfkd.SAKD, tfkd.ACKD, tfkd.IAKD])
def test_methods_that_compare_logits_want_the_same_classes(method):
    with pytest.raises(UsageError, match="5 classes and teacher .* 9: both .*KnowledgeDistiller"):
        method(tiny.model(), tiny.model(8, seed=2, classes=9))
