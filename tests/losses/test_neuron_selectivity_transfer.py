import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.losses.neuron_selectivity_transfer import mean_discrepancy


def test_value_by_hand():
    # Channels as vectors over two positions: student (1, 0) and (0, 1), teacher (1, 1) / sqrt(2).
    student = tf.constant([[[[2.0, 0.0]], [[0.0, 3.0]]]])
    teacher = tf.constant([[[[5.0]], [[5.0]]]])
    # mean k(t, t) = 1, mean k(s, s) = 1/2, mean k(s, t) = 1/2.
    value = losses.NeuronSelectivityTransfer()([student], [teacher])
    np.testing.assert_allclose(value, 1 + 0.5 - 2 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("side", [2, 4])  # fewer and more positions than channels
def test_value_by_definition_on_either_way_of_computing_it(side):
    student, teacher = tf.random.normal((3, side, side, 5)), tf.random.normal((3, side, side, 7))

    def vectors(features):
        flat = np.reshape(features, (3, side * side, -1)).astype("float64")
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def kernel(left, right):
        return np.mean(np.square(np.einsum("bpc,bpd->bcd", left, right)), axis=(1, 2))

    s, t = vectors(student), vectors(teacher)
    expected = kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    np.testing.assert_allclose(mean_discrepancy(student, teacher), expected, rtol=1e-4)


def test_order_and_scale_of_channels_do_not_matter():
    student, teacher = tf.random.normal((3, 4, 4, 5)), tf.random.normal((3, 4, 4, 7))
    changed = tf.gather(student, [4, 2, 0, 1, 3], axis=-1) * tf.constant([1.0, 2.0, 3.0, 4.0, 5.0])
    loss = losses.NeuronSelectivityTransfer()
    np.testing.assert_allclose(loss([changed], [teacher]), loss([student], [teacher]), rtol=1e-4)
