import numpy as np
import pytest
import tensorflow as tf
from loss_samples import Sample

from tfkd import losses


def test_attention_of_a_sample_adds_up_to_one():
    sample = Sample("semckd")
    attention = sample.loss.attention(sample.student, sample.teacher, tf.ones((6,)))
    assert attention.shape == (6, 2, 2)
    np.testing.assert_allclose(tf.reduce_sum(attention, -1), np.ones((6, 2)), rtol=1e-6)
    # Embeddings have norm 1, so that no weight is more than e² times another.
    assert np.max(attention) <= np.exp(1.0) / (np.exp(1.0) + np.exp(-1.0)) + 1e-6


def test_similarities_are_those_to_the_first_selected_samples():
    loss = losses.get("semckd", batch_size=4)
    features = tf.random.normal((6, 2, 3))
    flat = features.numpy().reshape(6, 6)
    products = flat @ flat.T
    found = loss.similarities(features, tf.ones((6,)))
    np.testing.assert_allclose(found, products[:, :4], rtol=1e-4, atol=1e-5)
    found = loss.similarities(features, tf.constant([0.0, 1.0, 0.0, 0.0, 1.0, 1.0]))
    expected = np.pad(products[[1, 4, 5]][:, [1, 4, 5]], ((0, 0), (0, 1)))
    np.testing.assert_allclose(found.numpy()[[1, 4, 5]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 6, 64])
def test_any_batch_size_gives_a_finite_loss(batch_size):
    sample = Sample("semckd", build=False)
    loss = losses.get("semckd", batch_size=batch_size)
    assert np.isfinite(loss(sample.student, sample.teacher, training=True))


def test_value_by_definition():
    sample = Sample("semckd")
    attention = sample.loss.attention(sample.student, sample.teacher, tf.ones((6,))).numpy()
    expected = 0.0
    for i, student in enumerate(sample.student):
        for j, teacher in enumerate(sample.teacher):
            size = min(student.shape[1], teacher.shape[1])
            pooled = [
                tf.nn.avg_pool2d(x, x.shape[1] // size, x.shape[1] // size, "VALID")
                for x in (student, teacher)
            ]
            projected = pooled[0]
            for step in sample.loss.projections[i][j]:
                projected = step(projected)
            errors = np.mean((projected - pooled[1]) ** 2, axis=(1, 2, 3))
            expected += np.sum(attention[:, i, j] * errors) / (6 * 2)
    np.testing.assert_allclose(sample.value(), expected, rtol=1e-5)


def test_masks_of_spots_count_the_samples_that_all_select():
    sample = Sample("semckd")
    masks = [tf.constant(mask, "float32") for mask in ([1, 1, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1])]
    both = sample.value(mask=masks[0] * masks[1])
    np.testing.assert_allclose(sample.value(mask=masks), both, rtol=1e-6)
