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
    distiller.compile(keras.optimizers.SGD(0.1))
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
    distiller = tfkd.KnowledgeDistiller(distilled, tiny.model(seed=2), losses=[])
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
        distiller.compile("sgd")
        logs.append(distiller.train_on_batch(x, labels, return_dict=True))
    assert logs[0] == pytest.approx(logs[1])


def test_a_loss_of_class_numbers_refuses_mixtures():
    x, y = tiny.data()
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2), losses=["dkd"])
    distiller.compile("sgd", loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(UsageError, match="'dkd' needs the number .* without one-hot, mixup"):
        distiller.fit(x, np.eye(tiny.CLASSES)[y], verbose=0)


def test_a_single_loss_needs_no_list():
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses="kd")
    assert [loss.id for loss in distiller.distillation_losses] == ["kd"]
