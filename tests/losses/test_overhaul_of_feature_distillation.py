import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers

import tfkd
from tfkd import losses, taps
from tfkd.errors import UsageError
from tfkd.losses.overhaul_of_feature_distillation import (
    expected_margin,
    observed_margin,
    partial_distance,
)


def test_margin_is_the_mean_of_what_is_negative():
    gamma, beta = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, -3.0])
    drawn = beta + gamma * np.random.default_rng(0).normal(size=(400_000, 3))
    expected = [column[column < 0].mean() for column in drawn.T]
    margin = expected_margin(*(tf.constant(x, "float32") for x in (gamma, beta)))
    np.testing.assert_allclose(margin, expected, rtol=5e-3)
    maps = tf.constant(drawn[:4000].reshape(10, 20, 20, 3), "float32")
    np.testing.assert_allclose(observed_margin(maps, tf.ones((10,))), expected, rtol=5e-2)


def test_margins_of_channels_that_are_hardly_negative_or_constant():
    gamma, beta = tf.constant([1.0, 0.0, 0.0]), tf.constant([4.0, 2.0, -2.0])
    np.testing.assert_allclose(expected_margin(gamma, beta), [-3.0, 0.0, -2.0])
    np.testing.assert_array_equal(observed_margin(tf.ones((2, 1, 1, 2)), tf.ones((2,))), [0, 0])


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        (3.0, 2.0, 1.0),  # above zero both sides count
        (1.0, 2.0, 1.0),
        (-0.5, -1.0, 0.25),  # below zero the student must be as low
        (-1.5, -1.0, 0.0),
        (-1.5, -9.0, 0.25),  # but not lower than the margin
        (-2.5, -9.0, 0.0),
    ],
)
def test_distance_by_hand(student, teacher, expected):
    maps = [tf.fill((1, 1, 1, 1), value) for value in (student, teacher)]
    value = partial_distance(*maps, tf.constant([-2.0]), tf.ones((1,)))
    np.testing.assert_allclose(value, [expected])


def test_distiller_reads_the_normalization_in_front_of_the_relu():
    teacher = tfkd.models.create("wrn_16_1", 5, (16, 16, 3))
    student = tfkd.models.create("resnet8", 5, (16, 16, 3))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["ofd"])
    (loss,) = distiller.distillation_losses
    assert [there for _, there in distiller.distillation_parts()[0][1]] == [
        "stage2_unit1_norm1",
        "stage3_unit1_norm1",
        "final_norm",
    ]
    distiller.compile("sgd")
    assert not loss.relational
    assert loss.normalizations[2].beta is teacher.get_layer("final_norm").beta
    before = np.array(loss.margin(2, tf.zeros((1, 4, 4, 64)), tf.ones((1,))))
    # Weights that are loaded later count.
    teacher.get_layer("final_norm").beta.assign(tf.ones((64,)))
    after = loss.margin(2, tf.zeros((1, 4, 4, 64)), tf.ones((1,)))
    assert np.all(np.abs(after - before) > 0.01)
    known = {id(variable) for variable in distiller.variables}
    assert not known & {id(variable) for variable in teacher.variables}


@pytest.mark.slow
def test_without_a_normalization_margins_come_from_the_global_batch():
    def model(width, name):
        inputs = keras.Input(tiny.SHAPE)
        x = inputs
        for stage in (1, 2):
            x = layers.Conv2D(width, 3, stage, padding="same")(x)
            x = layers.ReLU(name=f"relu{stage}")(x)
        return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)), name=name)

    images, labels = tiny.data(8)
    found = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
            keras.utils.set_random_seed(1)
            distiller = tfkd.KnowledgeDistiller(model(3, "one"), model(4, "two"), losses=["ofd"])
            distiller.compile(tfkd.optimizers.SGD(0.1))
            logs = distiller.fit(images, labels, batch_size=8, shuffle=False, verbose=0).history
        assert distiller.distillation_losses[0].relational
        found.append((logs["ofd_loss"], tiny.values(distiller.trainable_variables)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for one, other in zip(found[0][1], found[1][1]):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_as_many_normalizations_as_spots():
    loss = losses.get("ofd")
    loss.set_normalizations([taps.Normalization()])
    with pytest.raises(UsageError, match="1 normalizations for 2 spots"):
        loss.build([(2, 4, 4, 3)] * 2, [(2, 4, 4, 3)] * 2)
