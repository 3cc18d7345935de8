import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd import losses, taps
from tfkd.errors import UsageError


def made(*shapes, kernel=None):
    loss = losses.get("srrl")
    kernel = np.ones((3, 2), "float32") if kernel is None else kernel
    loss.set_classifiers(teacher=taps.Classifier(kernel))
    loss.build(*([shape] for shape in shapes))
    return loss


def test_value_by_hand():
    loss = made((2, 1, 1, 3), (2, 1, 1, 3), kernel=np.array([[2.0], [1.0], [0.0]], "float32"))
    loss.connectors[0].convolution.kernel.assign(np.eye(3)[None, None])
    student = tf.constant([[1.0, 0.0, 2.0], [-1.0, 0.0, 0.0]])[:, None, None]
    value = loss([student], [tf.zeros_like(student)])
    # The batch normalization at its start divides by sqrt(1 + 1e-5); the ReLU drops the -1.
    features, logits = (1.0 + 4.0) / 6.0, 2.0**2 / 2.0
    np.testing.assert_allclose(value, (features + logits) / (1 + 1e-5), rtol=1e-5)


def test_maps_tokens_and_vectors_of_the_same_mean_are_the_same():
    vectors = [tf.random.normal((4, 3)) for _ in range(2)]
    repeated = [tf.repeat(x[:, None], 4, axis=1) for x in vectors]
    as_maps = [tf.reshape(x, (4, 2, 2, 3)) for x in repeated]
    loss = made((4, 3), (4, 3))
    values = [loss([s], [t]) for s, t in (vectors, repeated, as_maps)]
    np.testing.assert_allclose(values, values[0] * np.ones(3), rtol=1e-5)


def test_distiller_reads_the_teachers_classifier_and_keeps_it_out_of_the_loss(tmp_path):
    teacher, student = tiny.model(6, "teacher", seed=1), tiny.model(4, "student", dropout=0.5)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["srrl"])
    distiller.compile(tfkd.optimizers.SGD(0.1))
    (loss,) = distiller.distillation_losses
    kernel = teacher.get_layer("logits").kernel
    assert loss.teacher_classifier.kernel is kernel and loss.student_classifier is None
    own = {id(variable) for variable in loss.variables}
    assert len(own) == 5 and not own & {id(v) for v in (*teacher.variables, *student.variables)}
    images, labels = tiny.data(8)
    before = np.array(kernel)
    distiller.fit(images, labels, verbose=0)
    np.testing.assert_array_equal(kernel, before)
    # Saved weights are restored in a new distiller.
    distiller.save_weights(tmp_path / "state.weights.h5")
    again = tfkd.KnowledgeDistiller(tiny.model(4, "student"), teacher, losses=["srrl"])
    again.compile(tfkd.optimizers.SGD(0.1))
    again.load_weights(tmp_path / "state.weights.h5")
    found = again.distillation_losses[0]
    tiny.assert_equal(tiny.values(found.weights), tiny.values(loss.weights))


def test_the_teachers_own_features_through_an_identity_cost_nothing():
    """The regression is on the teacher's own logits: what it compares is what the teacher says."""
    teacher = tiny.model(6, "teacher", seed=1)
    read = taps.extractor(teacher, taps.at_spots(teacher, "before_pooling"))
    images, _ = tiny.data(8)
    seen = read(images)
    classifier = taps.classifier(teacher)
    pooled = tf.reduce_mean(seen["stage2"], (1, 2))
    logits = tf.matmul(pooled, classifier.kernel.value) + classifier.bias.value
    np.testing.assert_allclose(logits, seen["logits"], rtol=1e-4, atol=1e-5)


def test_models_without_a_classifier_are_refused():
    inputs = keras.Input(tiny.SHAPE)
    x = keras.layers.Conv2D(4, 3, name="map")(inputs)
    flat = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)), name="flat")
    pairs = [("stage2", "map")]
    with pytest.raises(UsageError, match="Loss 'srrl' needs a classifier. Model 'flat' has no"):
        tfkd.KnowledgeDistiller(tiny.model(), flat, losses=[losses.get("srrl", spots=pairs)])
    with pytest.raises(UsageError, match=r"set_classifiers\(teacher=tfkd.taps.classifier"):
        losses.get("srrl").build([(2, 3)], [(2, 3)])
    # The student's is not needed.
    pairs = [("map", "stage2")]
    loss = losses.get("srrl", spots=pairs)
    tfkd.KnowledgeDistiller(flat, tiny.model(), losses=[loss]).compile("sgd")
