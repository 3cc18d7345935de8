import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.errors import UsageError


class Projected(keras.layers.Layer, keras.distillation.DistillationLoss):
    """A loss with weights of its own, which it creates when it first runs."""

    teacher_layer_name = student_layer_name = "pooled"

    def __init__(self):
        super().__init__()
        self.projection = keras.layers.Dense(3)

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.mean(keras.ops.square(teacher_outputs - self.projection(student_outputs)))


def feature_distillation():
    return keras.distillation.FeatureDistillation(
        "mse", teacher_layer_name="block/out", student_layer_name="pooled"
    )


def test_get_wraps_and_finds_the_spots():
    loss = losses.get(feature_distillation(), weight=3.0)
    assert type(loss) is losses.KerasDistillationLoss
    assert (loss.name, loss.weight) == ("feature_distillation", 3.0)
    assert loss.spots == [("pooled", "block/out")]
    assert losses.get(keras.distillation.LogitsDistillation()).spots == "logits"
    assert losses.get(loss) is loss


def test_value_is_the_wrapped_losss():
    student, teacher = tf.random.normal((4, 3)), tf.random.normal((4, 3))
    value = losses.get(feature_distillation())([student], [teacher])
    np.testing.assert_allclose(value, np.mean(np.square(student - teacher)), rtol=1e-6)
    inner = keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence(), temperature=4.0)
    np.testing.assert_allclose(
        losses.get(inner)([student], [teacher]),
        losses.get("kd", temperature=4.0)([student], [teacher]),
        rtol=1e-5,
    )


def test_weights_of_the_wrapped_loss_exist_before_training_and_are_trained():
    loss = losses.get(Projected())
    loss.build([(None, 5)], [(None, 3)])
    assert [tuple(variable.shape) for variable in loss.trainable_variables] == [(5, 3), (3,)]
    with tf.GradientTape() as tape:
        value = loss([tf.random.normal((4, 5))], [tf.random.normal((4, 3))])
    variables = [variable.value for variable in loss.trainable_variables]
    assert all(np.any(gradient) for gradient in tape.gradient(value, variables))


def test_config_makes_an_equal_loss():
    loss = losses.get(feature_distillation(), weight=3.0)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    student, teacher = tf.random.normal((4, 3)), tf.random.normal((4, 3))
    assert (copy.weight, copy.spots, copy.name) == (loss.weight, loss.spots, loss.name)
    np.testing.assert_array_equal(copy([student], [teacher]), loss([student], [teacher]))


def test_masks_are_refused():
    taps = [tf.random.normal((4, 3))]
    with pytest.raises(UsageError, match="cannot leave samples out"):
        losses.get(feature_distillation())(taps, taps, sample_mask=tf.ones(4))


@pytest.mark.parametrize("loss", [keras.losses.MeanSquaredError(), losses.get("kd")])
def test_only_losses_of_keras_distillation_are_wrapped(loss):
    with pytest.raises(UsageError, match="wraps a keras.distillation.DistillationLoss"):
        losses.KerasDistillationLoss(loss)
