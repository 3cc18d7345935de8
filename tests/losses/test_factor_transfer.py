import keras
import numpy as np
import tensorflow as tf

from tfkd import losses
from tfkd.losses.factor_transfer import factor_distance


def test_value_by_hand():
    # The factors' attentions are (0.6, 0.8) and (1, 0).
    student = tf.sqrt(tf.constant([[[[3.0]], [[4.0]]]]))
    teacher = tf.constant([[[[2.0, 1.0]], [[0.0, 0.0]]]])
    np.testing.assert_allclose(factor_distance(student, teacher), [(0.4 + 0.8) / 2], rtol=1e-6)


def test_connectors_have_the_published_widths():
    loss = losses.FactorTransfer()
    loss.build([(4, 8, 8, 6)], [(4, 4, 4, 10)])

    def kernels(model):
        return [tuple(weight.shape) for weight in model.weights if len(weight.shape) == 4]

    assert kernels(loss.paraphrasers[0]) == [(3, 3, 10, 10), (3, 3, 10, 5), (3, 3, 5, 5)]
    # Transposed: (height, width, out, in).
    assert kernels(loss.decoders[0]) == [(3, 3, 5, 5), (3, 3, 10, 5), (3, 3, 10, 10)]
    assert kernels(loss.translators[0]) == [(3, 3, 6, 6), (3, 3, 6, 5), (3, 3, 5, 5)]


def test_paraphraser_learns_in_the_preparation_and_is_frozen_after():
    loss = losses.FactorTransfer()
    student, teacher = tf.random.normal((4, 4, 4, 6)), tf.random.normal((4, 4, 4, 8))
    first = loss.preparation_loss([student], [teacher], training=True)
    prepared = loss.preparation_variables
    main = {id(variable) for variable in loss.trainable_variables}
    assert len(prepared) == len(main) == 12
    assert not any(id(variable) in main for variable in prepared)

    frozen = [np.array(variable) for variable in loss.trainable_variables]
    optimizer = keras.optimizers.SGD(0.3, momentum=0.9)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss.preparation_loss([student], [teacher], training=True)
        gradients = tape.gradient(value, [variable.value for variable in prepared])
        optimizer.apply(gradients, prepared)
        return value

    optimizer.build(prepared)
    for _ in range(30):
        last = step()
    assert last < 0.99 * first
    for before, variable in zip(frozen, loss.trainable_variables):
        np.testing.assert_array_equal(before, variable)

    with tf.GradientTape() as tape:
        value = loss([student], [teacher], training=True)
    gradients = tape.gradient(value, [variable.value for variable in prepared])
    assert gradients == [None] * len(prepared)


def test_preparation_in_half_precision():
    loss = losses.FactorTransfer()
    taps = [tf.random.normal((2, 4, 4, 6))]
    expected = loss.preparation_loss(taps, taps)
    halves = [tf.cast(taps[0], "bfloat16")]
    value = loss.preparation_loss(halves, halves)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, expected, rtol=0.05)
