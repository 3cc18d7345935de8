import numpy as np
import tensorflow as tf
from loss_samples import Sample

from tfkd.losses.instance_relationship_graph import edges, transformations


def test_edges_by_hand():
    # Squared distances 1, 9 and 16 of three numbers on a line.
    found = edges(tf.constant([[1.0], [0.0], [-3.0]]), tf.ones((3,)))
    np.testing.assert_allclose(found, np.array([[0, 1, 16], [1, 0, 9], [16, 9, 0]]) / 16, rtol=1e-5)


def test_edges_of_close_samples_far_from_the_origin():
    features = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    everyone = tf.ones((5,))
    expected = edges(tf.constant(features), everyone)
    np.testing.assert_allclose(edges(features + 1000.0, everyone), expected, atol=1e-3)


def test_transformations_by_hand():
    first = tf.constant([1.0, 3.0], shape=(2, 1, 1, 1)) * tf.ones((2, 2, 2, 1))
    second = tf.constant([[0.0, 4.0], [2.0, 2.0]])[:, None, None, :]
    # Pooled to one position 1 and 3; the second's two channels averaged 2 and 2.
    np.testing.assert_allclose(transformations(first, second, tf.ones((2,))), [1, 1])
    np.testing.assert_allclose(
        transformations(first, 2.0 * second, tf.ones((2,))), [1.0, 1.0 / 9.0], rtol=1e-6
    )


def test_spots_with_their_own_masks():
    sample = Sample("irg")
    masks = [tf.constant(mask, "float32") for mask in np.eye(6)[:4] + np.eye(6)[4]]
    value = sample.value(mask=masks)
    # Each edge has the two samples of its mask, the transformation the one of both.
    both = Sample("irg").rows([3, 4])
    of_logits = tf.reduce_mean((both["student"][3] - both["teacher"][3]) ** 2)
    np.testing.assert_allclose(value, 0.1 * of_logits * 2 / 6, rtol=1e-5)
