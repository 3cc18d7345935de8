import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import SpotPolicy
from tfkd.layers.spot_policy import choose_straight_through, gumbel_noise


def test_a_choice_is_a_draw_from_the_softmax():
    logits = np.array([1.0, 0.0, -1.0], "float32")
    noise = gumbel_noise((20_000, 3), keras.random.SeedGenerator(0))
    chosen = choose_straight_through(np.tile(logits, (20_000, 1)), noise, temperature=5.0)
    assert set(np.unique(chosen)) == {0.0, 1.0} and np.all(np.sum(chosen, axis=1) == 1)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.mean(chosen, axis=0), expected, atol=0.015)


def test_the_temperature_scales_the_gradient_and_not_the_choice():
    logits = tf.random.stateless_normal((8, 2), (0, 0))
    noise = gumbel_noise((8, 2), keras.random.SeedGenerator(0))
    found = {}
    for temperature in (1.0, 5.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            chosen = choose_straight_through(logits, noise, temperature)[:, 0]
        p = tf.nn.softmax((logits + noise) / temperature)[:, 0]
        gradient = tape.gradient(chosen, logits)[:, 0]
        np.testing.assert_allclose(gradient, p * (1 - p) / temperature, rtol=1e-4, atol=1e-6)
        found[temperature] = chosen.numpy()
    np.testing.assert_array_equal(found[1.0], found[5.0])


@pytest.mark.parametrize("bias, least, most", [(10.0, 0.99, 1.0), (0.0, 0.2, 0.8)])
def test_where_it_starts(bias, least, most):
    policy = SpotPolicy(decisions=3, initial_bias=bias)
    decisions = policy(keras.random.normal((500, 16)))
    assert decisions.shape == (500, 3) and least <= np.mean(decisions) <= most
    kernel, biases = policy.get_weights()
    assert kernel.shape == (16, 6) and np.all(np.abs(kernel) <= 0.25)
    assert np.all(np.abs(biases - np.tile([bias, 0.0], 3)) <= 0.25)


def test_it_draws_others_and_the_same_from_the_same_seed():
    inputs = keras.random.normal((100, 4))
    policies = [SpotPolicy(2, seed=1), SpotPolicy(2, seed=1)]
    for policy in policies:
        policy.build(inputs.shape)
    policies[1].set_weights(policies[0].get_weights())
    first, same = (policy(inputs).numpy() for policy in policies)
    np.testing.assert_array_equal(first, same)
    assert np.any(policies[0](inputs).numpy() != first)


def test_its_config_makes_an_equal_one():
    policy = SpotPolicy(2, initial_bias=3.0, temperature=2.0, seed=4)
    assert SpotPolicy.from_config(policy.get_config()).get_config() == policy.get_config()


def test_wrong_arguments():
    with pytest.raises(UsageError, match="decisions must be a positive integer"):
        SpotPolicy(0)
    with pytest.raises(UsageError, match="temperature must be a number greater than 0"):
        SpotPolicy(2, temperature=0)
