"""Gradients accumulated over batches make the step of one batch that holds them all."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.errors import UsageError
from tfkd.runs import checkpoint


def knowledge(student, teacher):
    return tfkd.KnowledgeDistiller(student, teacher, losses=["kd", "at"])


def adversarial(student, teacher):
    return tfkd.ACKD(student, teacher, auxiliary_learners=0)


def mutual(student, teacher):
    return tfkd.MutualDistiller([student, teacher])


def networks():
    """A student and a teacher in which no layer looks at a batch as a whole."""
    return tiny.model(seed=1, normalized=False), tiny.model(8, seed=2, normalized=False)


def train(make, batch_size, replicas=1, models=networks, epochs=1, examples=24, **arguments):
    """Trains for an epoch; returns what was trained, and the distiller."""
    with tfkd.runtime.strategy("auto", replicas).scope():
        keras.utils.set_random_seed(0)
        distiller = make(*models())
        rate = keras.optimizers.schedules.ExponentialDecay(0.02, 1, 0.5)
        distiller.compile(tfkd.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-3), **arguments)
        data = tf.data.Dataset.from_tensor_slices(tiny.data(examples)).batch(batch_size)
        distiller.fit(data, epochs=epochs, verbose=0)
    return [variable.numpy() for variable in distiller.trainable_variables], distiller


def assert_close(expected, found, tolerance=1e-5):
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize(
    "make, replicas",
    [
        (adversarial, 1),
        pytest.param(knowledge, 2, marks=pytest.mark.slow),
        pytest.param(mutual, 1, marks=pytest.mark.slow),
        pytest.param(knowledge, 1, marks=pytest.mark.slow),
        pytest.param(adversarial, 2, marks=pytest.mark.slow),
    ],
)
def test_k_batches_make_the_step_of_one_that_is_k_times_larger(make, replicas):
    """Two steps, so that momentum and schedule count."""
    expected, large = train(make, 12)
    found, distiller = train(make, 4, replicas, accumulation_steps=3)
    assert_close(expected, found)
    for one in (large, distiller):
        assert {
            int(optimizer.iterations.numpy()) for optimizer, _ in one.optimizers().values()
        } == {2}


def test_nothing_changes_before_the_last_batch():
    start = [v.numpy() for v in knowledge(*networks()).student.trainable_variables]
    found, distiller = train(knowledge, 12, accumulation_steps=3)
    assert int(distiller.optimizer.iterations.numpy()) == 0
    for a, b in zip(start, found):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_replicas_accumulate_what_one_device_does(precision):
    """With batch normalization, an optimizer that clips, and a batch that divides unequally."""
    keras.config.set_dtype_policy(precision)

    def models():
        return tiny.model(seed=1), tiny.model(8, seed=2)

    def make(student, teacher):
        return tfkd.KnowledgeDistiller(student, teacher)

    def run(replicas):
        with tfkd.runtime.strategy("auto", replicas).scope():
            keras.utils.set_random_seed(0)
            distiller = make(*models())
            optimizer = keras.optimizers.Adam(0.01, global_clipnorm=0.1)
            distiller.compile(optimizer, accumulation_steps=2)
            data = tf.data.Dataset.from_tensor_slices(tiny.data(23)).batch(16)
            distiller.fit(data, epochs=2, verbose=0)
        return [variable.numpy() for variable in distiller.student.trainable_variables]

    tolerance = 1e-4 if precision == "float32" else 2e-2
    assert_close(run(1), run(4), tolerance)


@pytest.mark.slow
def test_a_step_in_the_middle_resumes_to_the_same_bits(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        distiller = tfkd.ACKD(tiny.model(seed=seed), tiny.model(8, seed=2))
        distiller.compile(tfkd.optimizers.SGD(0.05), accumulation_steps=2)
        return distiller

    x, y = tiny.data(24)
    first, second = make(1), make(3)
    for part in range(2):
        first.train_on_batch(x[8 * part :][:8], y[8 * part :][:8])
    first.train_on_batch(x[:8], y[:8])
    checkpoint.save(tmp_path / "checkpoint.npz", first, {})
    checkpoint.restore(tmp_path / "checkpoint.npz", second)
    for distiller in (first, second):
        distiller.train_on_batch(x[16:], y[16:])
    state = checkpoint.variables_of
    for a, b in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert int(first.optimizer.iterations.numpy()) == 2


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_steps_that_are_no_number(steps):
    with pytest.raises(UsageError, match="accumulation_steps must be a whole number"):
        knowledge(*networks()).compile("sgd", accumulation_steps=steps)


def test_what_keras_cannot_do_under_replicas_is_said_before_training():
    x, y = tiny.data(8)
    with tfkd.runtime.strategy("mirrored", 2).scope():
        distiller = knowledge(*networks())
        with pytest.raises(UsageError, match="steps_per_execution=4 fails in Keras under 2"):
            distiller.compile("sgd", steps_per_execution=4)
        distiller.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4))
        message = r"gradient_accumulation_steps=4.*use compile\(accumulation_steps=4\) instead"
        with pytest.raises(UsageError, match=message):
            distiller.fit(x, y, verbose=0)


def test_on_one_device_both_work():
    x, y = tiny.data(16)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    distiller = knowledge(*networks())
    distiller.compile(optimizer, steps_per_execution=2)
    distiller.fit(x, y, batch_size=4, verbose=0)
    distiller.compile(
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), accumulation_steps=2
    )
    with pytest.raises(UsageError, match="give one of them"):
        distiller.fit(x, y, verbose=0)
