import numpy as np
import tensorflow as tf

from tfkd import losses
from tfkd.losses.variational_information_distillation import negative_log_likelihood


def test_value_by_hand():
    # Variances softplus(0) and softplus(log(e - 1)) = 1, each plus 1e-5.
    mean, teacher = tf.constant([[[[1.0, 2.0]]]]), tf.constant([[[[0.0, 5.0]]]])
    log_scale = tf.constant([0.0, np.log(np.e - 1)], "float32")
    variance = np.log(2) + 1e-5, 1 + 1e-5
    expected = np.mean([0.5 * (d**2 / v + np.log(v)) for d, v in zip((1, -3), variance)])
    value = negative_log_likelihood(mean, log_scale, teacher)
    np.testing.assert_allclose(value, [expected], rtol=1e-5)


def test_variance_starts_at_five_and_everything_is_trained():
    loss = losses.VariationalInformationDistillation()
    student, teacher = tf.random.normal((4, 8, 8, 3)), tf.random.normal((4, 4, 4, 6))
    with tf.GradientTape() as tape:
        value = loss([student], [teacher])
    np.testing.assert_allclose(tf.nn.softplus(loss.log_scales[0]) + 1e-5, [5.0] * 6, rtol=1e-5)
    variables = [variable.value for variable in loss.trainable_variables]
    assert len(variables) == 4
    assert all(np.any(gradient) for gradient in tape.gradient(value, variables))


def test_best_variance_is_the_mean_squared_error():
    mean, teacher = tf.zeros((1, 1, 1, 1)), tf.fill((1, 1, 1, 1), 2.0)

    def at(variance):
        log_scale = tf.constant([np.log(np.expm1(variance))], tf.float32)
        return negative_log_likelihood(mean, log_scale, teacher)[0]

    assert at(4.0) < at(3.5)
    assert at(4.0) < at(4.5)
