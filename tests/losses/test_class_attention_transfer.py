import numpy as np
import tensorflow as tf
import tiny
from loss_samples import Sample

import tfkd
from tfkd import losses
from tfkd.losses.class_attention_transfer import class_maps


def test_class_maps_by_hand():
    features = tf.reshape(tf.range(8.0), (1, 2, 2, 2))
    kernel = tf.constant([[1.0], [10.0]])
    np.testing.assert_allclose(class_maps(features, kernel, 2)[0, :, :, 0], [[10, 32], [54, 76]])
    np.testing.assert_allclose(class_maps(features, kernel, 1)[0, 0, 0], [43])
    maps = class_maps(features, kernel, 2, normalized=True)
    np.testing.assert_allclose(tf.reduce_sum(maps**2), 1.0, rtol=1e-6)


def test_what_is_not_selected_may_be_infinite():
    sample = Sample("cat_kd")
    kernel = sample.loss.student_classifier.kernel
    student = tf.concat([sample.student[0][:4], tf.fill((2, 4, 4, 6), np.nan)], axis=0)
    mask = tf.constant([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch([student, kernel])
        value = sample.loss([student], sample.teacher, sample_mask=mask)
    gradients = tape.gradient(value, [student, kernel])
    expected = sample.value(**sample.rows([0, 1, 2, 3])) * 4 / 6
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_gradients_reach_the_students_classifier_and_not_the_teachers():
    teacher, student = tiny.model(6, "teacher", seed=1), tiny.model(4, "student")
    distiller = tfkd.KnowledgeDistiller(
        student, teacher, losses=["cat_kd"], student_loss_weight=0.0
    )
    distiller.compile(tfkd.optimizers.SGD(0.1))
    kernels = [model.get_layer("logits").kernel for model in (student, teacher)]
    assert not distiller.distillation_losses[0].variables
    before = tiny.values(kernels)
    images, labels = tiny.data(8)
    distiller.fit(images, labels, verbose=0)
    assert np.all(np.array(kernels[0]) != before[0])
    np.testing.assert_array_equal(kernels[1], before[1])


def test_keras_distiller_lets_it_read_the_models():
    loss = losses.get("cat_kd", spots=[("stage2", "stage2")])
    teacher, student = tiny.model(6, "teacher", seed=1), tiny.model(4, "student")
    loss.validate_model_compatibility(teacher, student)
    assert loss.built
    assert loss.student_classifier.kernel is student.get_layer("logits").kernel
