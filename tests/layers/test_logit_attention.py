import numpy as np
import tensorflow as tf

from tfkd.layers import LogitAttention


def test_by_hand():
    vectors, logits = tf.random.normal((4, 3, 16)), tf.random.normal((4, 3, 5))
    layer = LogitAttention()
    mixed, attention = layer([vectors, logits])
    query, key = (vectors @ part.kernel for part in (layer.query, layer.key))
    assert query.shape == (4, 3, 2)
    scores = np.exp(query @ tf.transpose(key, (0, 2, 1)))
    expected = scores / scores.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(attention, expected, rtol=1e-4)
    np.testing.assert_allclose(mixed, expected @ logits.numpy(), rtol=1e-4, atol=1e-5)
    assert layer.compute_output_shape([(4, 3, 16), (4, 3, 5)]) == ((4, 3, 5), (4, 3, 3))
    again = LogitAttention.from_config(LogitAttention(reduction=2).get_config())
    again.build([(None, 3, 16), (None, 3, 5)])
    assert again.query.units == 8
