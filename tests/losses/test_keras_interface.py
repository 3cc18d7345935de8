import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import CLASSES, SHAPE, model

from tfkd import losses
from tfkd.errors import UsageError

#: What `keras.distillation.Distiller` cannot give, by loss.
NEEDS = {
    "dkd": "labels",
    "crd": "sample indices",
    "ft": "a preparation stage",
    "ab": "a preparation stage",
}
LAYERS = {"last_map": "stage2", "pooled": "pooled", "hint": "stage1", "stages": "stage2"}


def loss_for_keras(name):
    spots = losses.available()[name].spots
    return losses.get(name, spots=[(LAYERS[spots],) * 2] if spots in LAYERS else None)


def distiller(*distillation_losses):
    return keras.distillation.Distiller(
        teacher=model(width=6, seed=1),
        student=model(width=4),
        distillation_losses=list(distillation_losses),
    )


def tap(network, layer):
    return keras.Model(network.inputs, network.get_layer(layer or "logits").output)


@pytest.mark.parametrize(
    "name", ["at", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kd", "fitnet", "cc"))]
)
def test_keras_distiller_computes_our_loss(name):
    loss = loss_for_keras(name)
    distilling = distiller(loss)
    assert loss.built
    known = {id(variable) for variable in distilling.trainable_variables}
    assert all(id(variable) in known for variable in loss.trainable_variables)
    distilling.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(True))
    images, labels = tf.random.normal((4, *SHAPE)), tf.constant([0, 1, 2, 3])
    logs = distilling.train_on_batch(images, labels, return_dict=True)
    expected = loss.compute_loss(
        tap(distilling.teacher, loss.teacher_layer_name)(images, training=False),
        tap(distilling.student, loss.student_layer_name)(images, training=True),
    )
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-3, atol=1e-6)


def test_keras_distiller_trains_our_connectors():
    loss = loss_for_keras("cc")
    distilling = distiller(loss, losses.KnowledgeDistillation())
    before = [np.array(variable) for variable in loss.trainable_variables]
    distilling.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    labels = np.arange(8) % CLASSES
    distilling.fit(np.random.default_rng(0).normal(size=(8, *SHAPE)), labels, verbose=0)
    after = [np.array(variable) for variable in loss.trainable_variables]
    assert len(before) == 4
    assert all(np.any(old != new) for old, new in zip(before, after))


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_what_keras_distiller_cannot_give_is_refused(name):
    with pytest.raises(UsageError, match=f"{name!r}, which needs {NEEDS[name]}"):
        distiller(losses.get(name))


@pytest.mark.parametrize(
    "spots, message",
    [
        ("stages", "does not know the spots 'stages'"),
        ([("stage1", "stage1"), ("stage2", "stage2")], "needs several spots"),
        ([("stage1", "stage9")], "In the teacher model: No such layer: stage9"),
    ],
)
def test_spots_that_keras_distiller_does_not_have(spots, message):
    with pytest.raises(UsageError, match=message):
        distiller(losses.get("at", spots=spots))
