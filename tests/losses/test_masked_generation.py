import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_samples import Sample

import tfkd
from tfkd import losses


def test_channels_are_dropped_in_training_only():
    sample = Sample("mgd")
    draws = [np.array(sample.loss.draw_kept((1000, 4, 4, 8))) for _ in range(2)]
    assert draws[0].shape == (1000, 1, 1, 8) and set(np.unique(draws[0])) == {0.0, 1.0}
    assert np.mean(draws[0]) == pytest.approx(0.85, abs=0.02)
    assert np.any(draws[0] != draws[1])
    values = {float(sample.value(training=True)) for _ in range(4)}
    assert len(values) == 4
    assert float(sample.value()) == float(sample.value())


def test_the_same_seed_draws_the_same():
    shape = (5, 2, 2, 3)
    draws = [np.array(losses.get("mgd", seed=7).draw_kept(shape)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_draw_what_one_device_draws(replicas):
    with tfkd.runtime.strategy("auto", replicas).scope() as strategy:
        strategy = tf.distribute.get_strategy()
        loss = losses.get("mgd", seed=7)
        parts = strategy.run(lambda: loss.draw_kept((tf.constant(2), 1, 1, 3)))
        found = tf.concat(strategy.experimental_local_results(parts), axis=0)
    expected = losses.get("mgd", seed=7).draw_kept((2 * replicas, 1, 1, 3))
    np.testing.assert_array_equal(found, expected)


def test_value_of_convolutions_that_copy():
    loss = losses.get("mgd")
    loss.build([(2, 3, 3, 1)], [(2, 3, 3, 1)])
    assert isinstance(loss.aligners[0], keras.layers.Identity)
    centre = np.zeros((3, 3, 1, 1))
    centre[1, 1] = 1.0
    for layer in loss.generators[0]:
        layer.kernel.assign(centre)
        layer.bias.assign([0.0])
    student, teacher = tf.random.normal((2, 3, 3, 1)), tf.random.normal((2, 3, 3, 1))
    expected = tf.reduce_sum((tf.nn.relu(student) - teacher) ** 2) / 2
    np.testing.assert_allclose(loss([student], [teacher]), expected, rtol=1e-5)
    loss.draw_kept = lambda shape: tf.zeros((2, 1, 1, 1))
    nothing = tf.reduce_sum(teacher**2) / 2
    np.testing.assert_allclose(loss([student], [teacher], training=True), nothing, rtol=1e-5)
