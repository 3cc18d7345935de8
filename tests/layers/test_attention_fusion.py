import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import AttentionFusion


def maps(learners, channels=6):
    return [tf.random.normal((4, 3, 3, channels)) for _ in range(learners)]


def test_attention_adds_up_to_one_in_every_channel():
    inputs = maps(3)
    fused, attention = AttentionFusion()(inputs, training=True)
    assert fused.shape == (4, 3, 3, 6) and attention.shape == (4, 3, 6)
    np.testing.assert_allclose(np.sum(attention, axis=1), np.ones((4, 6)), rtol=1e-6)
    assert np.std(attention) > 0.01
    expected = sum(a[:, None, None, :] * m for a, m in zip(np.moveaxis(attention, 1, 0), inputs))
    np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-6)


def test_one_learner_is_what_it_was():
    (only,) = inputs = maps(1)
    fused, attention = AttentionFusion()(inputs)
    np.testing.assert_allclose(attention, np.ones((4, 1, 6)), rtol=1e-6)
    np.testing.assert_allclose(fused, only, rtol=1e-6)


def test_uniform_is_the_mean_and_has_no_weights():
    inputs = maps(3)
    layer = AttentionFusion(uniform=True)
    fused, _ = layer(inputs)
    np.testing.assert_allclose(fused, np.mean(inputs, axis=0), rtol=1e-5, atol=1e-6)
    assert not layer.weights


def test_by_hand():
    layer = AttentionFusion()
    inputs = maps(2, channels=64)
    fused, attention = layer(inputs, training=False)
    pooled = np.mean(np.sum(inputs, axis=0), axis=(1, 2))
    hidden = np.maximum(pooled @ layer.squeeze.kernel.numpy() / np.sqrt(1 + 1e-5), 0)
    # max(64 / 16, 32) units.
    assert hidden.shape == (4, 32)
    scores = np.exp(hidden @ layer.scores.kernel.numpy()).reshape(4, 2, 64)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(attention, expected, rtol=1e-4, atol=1e-6)


def test_gradient_is_that_of_differences():
    keras.config.set_floatx("float64")
    try:
        layer = AttentionFusion(dtype="float64")
        inputs = [tf.cast(tensor, "float64") for tensor in maps(2, channels=2)]
        layer(inputs)
        # The attention itself is float32, so the step must not be too small.
        theory, numeric = tf.test.compute_gradient(
            lambda *tensors: layer(list(tensors), training=False)[0], inputs, delta=1e-2
        )
    finally:
        keras.config.set_floatx("float32")
    for a, b in zip(theory, numeric):
        np.testing.assert_allclose(a, b, atol=2e-3)
        assert np.abs(a).max() > 0.1


def test_half_precision_and_wrong_use():
    layer = AttentionFusion(dtype="mixed_float16")
    fused, attention = layer([tf.cast(tensor, "float16") for tensor in maps(2)])
    assert fused.dtype == "float16" and attention.dtype == "float32"
    with pytest.raises(UsageError, match="reduction must be a number greater than 0"):
        AttentionFusion(reduction=0)
