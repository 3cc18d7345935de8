import numpy as np
import tensorflow as tf

from tfkd.layers import Discriminator


def test_by_hand():
    x = tf.random.normal((6, 16))
    layer = Discriminator()
    found = layer(x)
    hidden = x.numpy()
    for dense in layer.dense[:-1]:
        hidden = hidden @ dense.kernel.numpy() + dense.bias.numpy()
        hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    assert hidden.shape == (6, 4)
    expected = (hidden @ layer.dense[-1].kernel.numpy())[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert [dense.units for dense in layer.dense] == [8, 4, 1]


def test_it_starts_undecided_and_judges_in_float32():
    verdict = Discriminator(dtype="mixed_float16")(tf.random.normal((256, 128)))
    assert verdict.dtype == "float32" and verdict.shape == (256,)
    loss = np.mean(np.logaddexp(0, -verdict)) + np.mean(np.logaddexp(0, verdict))
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=0.02)
