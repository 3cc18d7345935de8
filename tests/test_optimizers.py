import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd import optimizers
from tfkd.errors import UsageError


def trajectory(optimizer, steps=4):
    """Values of one variable under the gradient `2 * value`."""
    variable = keras.Variable([1.0, -2.0])
    values = []
    for _ in range(steps):
        optimizer.apply([2.0 * variable.value], [variable])
        values.append(variable.numpy().copy())
    return np.array(values)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_follows_the_published_update(momentum, nesterov):
    decay, rate = 0.1, 0.05
    value, velocity, expected = np.array([1.0, -2.0]), np.zeros(2), []
    for _ in range(4):
        gradient = 2 * value + decay * value
        velocity = momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        value = value - rate * (step if momentum else gradient)
        expected.append(value)
    found = trajectory(optimizers.SGD(rate, momentum, nesterov, weight_decay=decay))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sgd_equals_keras_without_its_two_differences():
    found = trajectory(optimizers.SGD(0.05, 0.9))
    np.testing.assert_allclose(found, trajectory(keras.optimizers.SGD(0.05, 0.9)), rtol=1e-6)


def test_a_drop_of_the_rate_acts_at_once():
    def step_after_drop(optimizer):
        variable = keras.Variable([0.0])
        for rate in (1.0, 1.0, 1.0, 1e-6):
            before = variable.numpy().copy()
            optimizer.learning_rate = rate
            optimizer.apply([np.array([1.0], "float32")], [variable])
        return np.abs(variable.numpy() - before)[0]

    assert step_after_drop(optimizers.SGD(1.0, 0.9)) < 1e-5
    assert step_after_drop(keras.optimizers.SGD(1.0, 0.9)) > 1


def test_sgd_round_trip():
    optimizer = optimizers.SGD(0.1, 0.8, True, weight_decay=0.3)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    np.testing.assert_array_equal(trajectory(optimizer), trajectory(again))


def test_dot_is_sgd_where_it_gets_one_gradient_or_has_no_delta():
    expected = trajectory(optimizers.SGD(0.05, 0.9, weight_decay=0.1))
    found = trajectory(optimizers.DOT(0.05, 0.9, weight_decay=0.1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    optimizer, variable = optimizers.DOT(0.05, 0.9, 0.0, 0.1), keras.Variable([1.0, -2.0])
    for values in expected:
        gradient = 2.0 * variable.value
        optimizer.apply([keras.ops.stack([0.75 * gradient, 0.25 * gradient])], [variable])
        np.testing.assert_allclose(variable, values, rtol=1e-5)


def test_dot_round_trip():
    optimizer = optimizers.DOT(0.1, 0.8, 0.15, weight_decay=0.3)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert isinstance(optimizers.create("dot", delta=0.05), optimizers.DOT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"momentum": 0.9, "delta": 0.1}, "from 0 to below 1; received momentum=0.9"),
        ({"momentum": 0.05}, "from 0 to below 1"),
        ({"delta": -0.1}, "from 0 to below 1"),
        ({"nesterov": True}, "does not take nesterov"),
        ({"clipnorm": 1.0}, "does not take clipnorm"),
        ({"gradient_accumulation_steps": 2}, "does not take gradient_accumulation_steps"),
    ],
)
def test_mistakes_of_dot(arguments, message):
    with pytest.raises(UsageError, match=message):
        optimizers.DOT(0.1, **arguments)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (tfkd.KnowledgeDistiller, {"accumulation_steps": 2}, "DOT .* does not accumulate"),
        (tfkd.ACKD, {}, "ACKD trains more than a student, and DOT"),
    ],
)
def test_dot_is_refused_where_it_cannot_be_right(kind, arguments, message):
    distiller = kind(tiny.model(seed=1), tiny.model(seed=2))
    with pytest.raises(UsageError, match=message):
        distiller.compile(optimizers.DOT(0.1), run_eagerly=True, **arguments)
        distiller.train_on_batch(*tiny.data(8))


def test_dot_by_hand_in_a_distiller():
    """Two steps from the gradients of both parts; a part of one term has the other's momentum."""
    x, y = tiny.data(8)
    student = tiny.model(seed=1, normalized=False)
    teacher = tiny.model(6, seed=2)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile(optimizers.DOT(0.1, 0.5, 0.25), run_eagerly=True)
    kd = tfkd.losses.KnowledgeDistillation()
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    task, other, expected = 0.0, 0.0, np.array(student.trainable_variables[0])
    for _ in range(2):
        with tf.GradientTape(persistent=True) as tape:
            logits = student(x, training=True)
            parts = 0.1 * labels(y, logits), 0.9 * kd([logits], [teacher(x)])
        gradients = [tape.gradient(part, student.trainable_variables[0].value) for part in parts]
        task, other = 0.25 * task + gradients[0], 0.75 * other + gradients[1]
        expected = expected - 0.1 * (task + other)
        distiller.train_on_batch(x, y)
        np.testing.assert_allclose(student.trainable_variables[0], expected, rtol=1e-4, atol=1e-6)


def rates(schedule, steps):
    return [float(schedule(step)) for step in range(steps)]


def test_steps_fall_at_the_milestones():
    schedule = optimizers.schedule("steps", 1.0, 10, milestones=(0.3, 0.8), factor=0.5)
    assert rates(schedule, 10) == [1.0] * 3 + [0.5] * 5 + [0.25] * 2


def test_the_crd_protocol_falls_after_epochs_150_180_and_210():
    steps_per_epoch = 703
    schedule = optimizers.schedule(
        "steps", 0.05, 240 * steps_per_epoch, milestones=(150 / 240, 180 / 240, 210 / 240)
    )
    for epoch, before, after in ((150, 0.05, 0.005), (180, 0.005, 5e-4), (210, 5e-4, 5e-5)):
        assert float(schedule(epoch * steps_per_epoch - 1)) == pytest.approx(before)
        assert float(schedule(epoch * steps_per_epoch)) == pytest.approx(after)


def test_cosine_with_warm_up():
    schedule = optimizers.schedule("cosine", 2.0, 12, warmup=1 / 6)
    found = rates(schedule, 13)
    assert found[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert found[7] == pytest.approx(1.0)
    assert found[12] == pytest.approx(0.0, abs=1e-6)


def test_constant_is_the_number_itself():
    assert optimizers.schedule("constant", 0.1, 10) == 0.1


def test_schedule_round_trip():
    schedule = optimizers.schedule("steps", 1.0, 10, milestones=(0.5,), warmup=0.2)
    again = optimizers.RunSchedule.from_config(schedule.get_config())
    assert rates(schedule, 10) == rates(again, 10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "linear"}, "Unknown learning-rate schedule 'linear'"),
        ({"name": "steps", "milestones": (0.5, 0.2)}, "increasing fractions"),
        ({"name": "steps", "milestones": (150,)}, "increasing fractions"),
        ({"name": "cosine", "warmup": 1.5}, "warmup is a fraction"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        optimizers.schedule(learning_rate=0.1, steps=10, **arguments)


def test_settings_make_an_optimizer():
    adam = optimizers.create("adam", learning_rate=1e-3, beta_1=0.5)
    assert isinstance(adam, keras.optimizers.Adam) and adam.beta_1 == 0.5
    assert float(adam.learning_rate) == pytest.approx(1e-3)
    sgd = optimizers.create("sgd", weight_decay=0.1)
    assert isinstance(sgd, optimizers.SGD) and sgd.decay_in_gradient == 0.1


@pytest.mark.parametrize("policy", ["plain", "scaled"])
def test_a_relative_learning_rate_follows_the_student(policy):
    def student(rate):
        optimizer = optimizers.SGD(rate)
        return optimizer if policy == "plain" else keras.optimizers.LossScaleOptimizer(optimizer)

    fixed = optimizers.create("sgd", student(0.2), relative_learning_rate=0.5)
    assert float(fixed.learning_rate) == pytest.approx(0.1)
    schedule = optimizers.schedule("steps", 0.2, steps=10, milestones=(0.5,))
    following = optimizers.create("sgd", student(schedule), relative_learning_rate=0.5)
    rates = []
    variable = keras.Variable([1.0])
    for _ in range(10):
        rates.append(float(following.learning_rate))
        following.apply([0.0 * variable.value], [variable])
    np.testing.assert_allclose(rates, [0.1] * 5 + [0.01] * 5, rtol=1e-6)
    again = optimizers.SGD.from_config(following.get_config())
    assert float(again.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "adm"}, "Unknown optimizer 'adm': "),
        ({"name": "adam", "beta_3": 0.5}, "Optimizer 'adam': .*beta_3"),
        ({"name": "sgd", "momentums": 0.5}, "Optimizer 'sgd': .*momentums"),
        ({"name": "sgd", "relative_learning_rate": 0.0}, "relative_learning_rate must be a number"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        optimizers.create(student_optimizer=optimizers.SGD(0.1), **settings)
