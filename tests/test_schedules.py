import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.errors import UsageError
from tfkd.schedules import (
    Constant,
    Cosine,
    CurriculumTemperature,
    GaussianWarmUp,
    LinearRestarts,
    LinearWarmUp,
    OfKeras,
    Schedule,
)

BY_HAND = {
    "constant": (Constant(0.5), {0: 0.5, 3: 0.5, 99: 0.5}),
    "up": (LinearWarmUp(1, 3, epochs=4), {0: 1, 1: 1.5, 2.5: 2.25, 4: 3, 5: 3, 99: 3}),
    "down": (LinearWarmUp(0.3, 0.1, epochs=2), {0: 0.3, 1: 0.2, 2: 0.1, 3: 0.1}),
    "within an epoch": (LinearWarmUp(0, 1, epochs=0.5), {0: 0, 0.25: 0.5, 0.5: 1, 1: 1}),
    "cosine": (
        Cosine(8, 2, epochs=4),
        {0: 8, 1: 5 + 3 / 2**0.5, 2: 5, 3: 5 - 3 / 2**0.5, 4: 2, 9: 2},
    ),
    "gaussian": (
        GaussianWarmUp(0, 2, epochs=4),
        {0: 2 * np.exp(-5), 1: 2 * np.exp(-45 / 16), 2: 2 * np.exp(-5 / 4), 4: 2, 9: 2},
    ),
    "restarts": (
        LinearRestarts(0.5, 1.0, milestones=(4, 6), epochs=10),
        {0: 0.5, 1: 0.625, 3: 0.875, 4: 0.5, 5: 0.75, 5.5: 0.875, 6: 0.5, 9: 0.875, 10: 1, 11: 1},
    ),
    "of Keras": (
        OfKeras(keras.optimizers.schedules.PolynomialDecay(4.0, 2, 1.0)),
        {0: 4, 1: 2.5, 1.5: 1.75, 2: 1, 9: 1},
    ),
    "of Keras, with integers": (
        OfKeras(keras.optimizers.schedules.PiecewiseConstantDecay([1], [4, 2])),
        {0: 4, 1: 4, 2: 2, 9: 2},
    ),
    # What changes with the epoch is its gradient.
    "curriculum": (CurriculumTemperature(2, 6, initial=0.0), {0: 4, 2.5: 4, 99: 4}),
    "no milestone": (LinearRestarts(0, 1, milestones=(), epochs=4), {0: 0, 1: 0.25, 4: 1, 5: 1}),
}


@pytest.mark.parametrize("name", list(BY_HAND))
def test_values_by_hand(name):
    schedule, values = BY_HAND[name]
    in_graph = tf.function(schedule, input_signature=[tf.TensorSpec((), "float32")])
    in_graph_of_integers = tf.function(schedule, input_signature=[tf.TensorSpec((), "int32")])
    for epoch, expected in values.items():
        found = [schedule(epoch), in_graph(tf.constant(epoch, "float32"))]
        if epoch == int(epoch):
            found.append(in_graph_of_integers(tf.constant(epoch, "int32")))
        assert {(value.dtype, tuple(value.shape)) for value in found} == {(tf.float32, ())}
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(BY_HAND))
def test_round_trip(name):
    schedule, values = BY_HAND[name]
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is type(schedule) and repr(again) == repr(schedule)
    assert [float(again(epoch)) for epoch in values] == [float(schedule(epoch)) for epoch in values]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant("high"), "Constant: value must be a number; received 'high'"),
        (lambda: LinearWarmUp(0, 1, epochs=0), "LinearWarmUp: epochs must be a number greater"),
        (lambda: Cosine(0, 1, epochs=-2), "Cosine: epochs must be a number greater than 0"),
        (lambda: LinearWarmUp(True, 1, epochs=2), "LinearWarmUp: start must be a number"),
        (lambda: Cosine(0, float("inf"), epochs=2), "Cosine: end must be a number"),
        (lambda: LinearRestarts(0, 1, (3, 2), epochs=9), r"increase between 0 and epochs=9.*3, 2"),
        (lambda: LinearRestarts(0, 1, (0, 2), epochs=9), "milestones must increase"),
        (lambda: LinearRestarts(0, 1, (2, 9), epochs=9), "milestones must increase"),
        (lambda: CurriculumTemperature(minimum=0), "minimum must be a number greater than 0"),
        (lambda: CurriculumTemperature(3, 3), "maximum must be above minimum=3; received 3"),
        (lambda: CurriculumTemperature(initial=None), "initial must be a number; received None"),
        (lambda: CurriculumTemperature(epochs=0), "epochs must be a number greater than 0"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


LOSSES = ("kd", "dkd")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": LinearWarmUp(0, 4, epochs=3)}, "temperature must be.*LinearWarmUp"),
        ({"temperature": Cosine(4, -1, epochs=3)}, "temperature must be a number greater than 0"),
        ({"temperature": "hot"}, "temperature must be a number greater than 0.*'hot'"),
        ({"weight": "heavy"}, "weight must be a number of at least 0, or a schedule"),
        ({"weight": -1.0}, "weight must be a number of at least 0.*-1.0"),
        ({"weight": keras.optimizers.SGD()}, "weight must be a number"),
    ],
)
def test_what_is_neither_number_nor_schedule(loss, arguments, message):
    with pytest.raises(UsageError, match=message):
        tfkd.losses.get(loss, **arguments)


@keras.saving.register_keras_serializable(package="tests")
class Squares(Schedule):
    """A user's schedule, whose bounds nobody knows."""

    def __call__(self, epoch):
        return (keras.ops.cast(epoch, "float32") + 1) ** 2


STUDENT = tf.math.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
TEACHER = tf.math.log([[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
LABELS = tf.constant([0, 2])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_follows_its_schedules(loss):
    scheduled = tfkd.losses.get(loss, weight=LinearWarmUp(0, 2, epochs=2), temperature=Squares())
    value = tf.function(lambda: scheduled([STUDENT], [TEACHER], labels=LABELS))
    for epoch, weight, temperature in ((0, 0, 1), (1, 1, 4), (2, 2, 9), (1, 1, 4)):
        scheduled.start_epoch(epoch)
        assert scheduled.value_of(scheduled.weight) == weight
        constant = tfkd.losses.get(loss, temperature=temperature)
        expected = constant([STUDENT], [TEACHER], labels=LABELS)
        np.testing.assert_allclose(value(), expected, rtol=1e-6)
    assert value.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", ["kd", "at"])
def test_without_a_schedule_nothing_is_added(name):
    loss = tfkd.losses.get(name, weight=0.25)
    loss.start_epoch(3)
    assert loss.value_of(loss.weight) == 0.25
    assert loss.weights == []


@pytest.mark.parametrize(
    "schedule",
    [LinearWarmUp(0, 1, epochs=2), keras.optimizers.schedules.PolynomialDecay(0.0, 2, 1.0)],
)
def test_a_schedule_set_later_counts_too(schedule):
    loss = tfkd.losses.get("kd")
    loss.weight = schedule
    loss.start_epoch(1)
    assert loss.value_of(loss.weight) == 0.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "weight", [Cosine(1, 2, epochs=3), keras.optimizers.schedules.CosineDecay(1.0, 3, alpha=2.0)]
)
def test_a_loss_with_schedules_round_trips(loss, weight):
    made = tfkd.losses.get(loss, weight=weight, temperature=Squares())
    config = json.loads(json.dumps(made.get_config()))
    serialised = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    for again in (
        type(made).from_config(config),
        keras.saving.deserialize_keras_object(serialised),
    ):
        assert again.get_config() == made.get_config()
        assert repr(again.weight) == repr(made.weight)
        again.start_epoch(3)
        made.start_epoch(3)
        assert again.value_of(again.weight) == 2
        value = again([STUDENT], [TEACHER], labels=LABELS)
        np.testing.assert_array_equal(value, made([STUDENT], [TEACHER], labels=LABELS))


def make(weight=1.0, temperature=4.0, student_loss_weight=1.0, run_eagerly=True):
    loss = tfkd.losses.KnowledgeDistillation(weight=weight, temperature=temperature)
    distiller = tfkd.KnowledgeDistiller(
        tiny.model(seed=1), tiny.model(width=8, seed=2), [loss], student_loss_weight
    )
    distiller.compile(keras.optimizers.SGD(0.1), run_eagerly=run_eagerly)
    return distiller


def fit(distiller, **arguments):
    x, y = tiny.data(16)
    return distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0, **arguments).history


@pytest.mark.parametrize(
    "scheduled, constant",
    [
        ({"weight": LinearWarmUp(0, 0.8, epochs=4)}, {"weight": 0.4}),
        ({"temperature": LinearWarmUp(1, 3, epochs=4)}, {"temperature": 2.0}),
        (
            {"temperature": keras.optimizers.schedules.PolynomialDecay(1.0, 4, 3.0)},
            {"temperature": 2.0},
        ),
    ],
)
def test_training_uses_the_value_of_its_epoch(scheduled, constant):
    found, expected, start = make(**scheduled), make(**constant), make()
    # As a resumed run does it: epochs 0 and 1 have been somewhere else.
    fit(found, initial_epoch=2, epochs=3)
    fit(expected, epochs=1)
    for a, b in zip(found.student.get_weights(), expected.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    fit(start, epochs=1)
    kernel = found.student.get_layer("logits").kernel
    assert np.abs(kernel - start.student.get_layer("logits").kernel).max() > 1e-4


def test_a_weight_of_zero_does_not_train():
    distiller = make(LinearWarmUp(0, 1, epochs=1), student_loss_weight=0.0)
    before = [variable.numpy() for variable in distiller.trainable_variables]
    changes = []

    def compare(epoch, logs):
        after = [variable.numpy() for variable in distiller.trainable_variables]
        changes.append(max(np.abs(a - b).max() for a, b in zip(before, after)))

    fit(distiller, epochs=2, callbacks=keras.callbacks.LambdaCallback(on_epoch_end=compare))
    assert changes[0] == 0 < changes[1]


def weights_by_epoch(history):
    return [a / b for a, b in zip(history["distillation_loss"], history["kd_loss"])]


def test_one_trace_serves_all_epochs():
    distiller = make(LinearWarmUp(0.5, 2, epochs=3), Cosine(2, 6, epochs=3), run_eagerly=False)
    loss, traces, by_epoch = distiller.distillation_losses[0], [], []
    compare = loss.compare
    loss.compare = lambda *args: traces.append(1) or compare(*args)
    count = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: by_epoch.append(len(traces))
    )
    history = fit(distiller, epochs=4, callbacks=[count])
    assert by_epoch[0] > 0 and by_epoch == [by_epoch[0]] * 4
    assert weights_by_epoch(history) == pytest.approx([0.5, 1, 1.5, 2], rel=1e-5)


@pytest.mark.slow
def test_replicas_share_the_epoch():
    with tfkd.runtime.strategy("mirrored", 2).scope():
        distiller = make(LinearWarmUp(0.5, 1.5, epochs=2), run_eagerly=False)
        history = fit(distiller, initial_epoch=1, epochs=3)
    assert weights_by_epoch(history) == pytest.approx([1, 1.5], rel=1e-5)


class Epochs(keras.callbacks.Callback):
    """Notes in which epoch the distiller's loss is when an epoch begins."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        loss = self.model.distillation_losses[0]
        self.seen.append(float(loss.value_of(loss.weight)))


class Epoch(Schedule):
    """The number of the epoch itself."""

    def __call__(self, epoch):
        return keras.ops.cast(epoch, "float32")


@pytest.mark.parametrize("form", ["list", "nested", "single"])
def test_callbacks_of_every_form_see_the_epoch_that_begins(form):
    epochs = Epochs()
    distiller = make(Epoch())
    x, y = tiny.data(8)
    callbacks = {"nested": [[epochs]], "single": epochs}.get(form, [epochs])
    distiller.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    assert epochs.seen == [0, 1]


def test_a_callback_list_stays_as_the_user_made_it():
    distiller, epochs = make(Epoch()), Epochs()
    callbacks = keras.callbacks.CallbackList([epochs], add_history=True, model=distiller)
    kept = list(callbacks.callbacks)
    for _ in range(2):
        history = fit(distiller, initial_epoch=2, epochs=4, callbacks=callbacks)
    assert epochs.seen == [2, 3, 2, 3] and callbacks.callbacks == kept
    assert weights_by_epoch(history)[-2:] == pytest.approx([2, 3], rel=1e-5)


def test_a_run_restored_by_keras_goes_on_in_its_epoch(tmp_path):
    def run(epochs):
        distiller = make(Epoch(), run_eagerly=False)
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return weights_by_epoch(fit(distiller, epochs=epochs, callbacks=[backup]))

    run(2)
    assert run(4) == pytest.approx([2, 3], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_curriculum_temperature_climbs_where_the_student_descends(loss):
    temperature = CurriculumTemperature(initial=-2.0, epochs=4)
    made = tfkd.losses.get(loss, temperature=temperature)
    assert made.trainable_variables == [temperature.parameter]

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            value = made([STUDENT], [TEACHER], labels=LABELS)
        return tape.gradient(value, temperature.parameter.value)

    around = [
        tfkd.losses.get(loss, temperature=1 + 20 / (1 + np.exp(-parameter)))
        for parameter in (-2.1, -1.9)
    ]
    low, high = (one([STUDENT], [TEACHER], labels=LABELS) for one in around)
    expected = (high - low) / 0.2
    assert abs(expected) > 1e-4
    for epoch, factor in ((0, -0.5 * (1 - 0.5**0.5)), (1, -0.5), (3, -1), (9, -1)):
        made.start_epoch(epoch)
        np.testing.assert_allclose(gradient(), factor * expected, rtol=2e-2)


def test_a_curriculum_temperature_is_trained_and_round_trips(tmp_path):
    def make():
        losses = [tfkd.losses.get("kd", temperature=CurriculumTemperature(initial=-1.0, epochs=1))]
        distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1), losses=losses)
        distiller.compile("sgd", **tiny.EAGER)
        return distiller

    distiller = make()
    loss = distiller.distillation_losses[0]
    before = float(loss.value_of(loss.temperature))
    distiller.fit(*tiny.data(), epochs=2, verbose=0)
    after = float(loss.value_of(loss.temperature))
    assert 1 < after < 21 and after != before
    distiller.save_weights(tmp_path / "all.weights.h5")
    again = make()
    again.fit(*tiny.data(), epochs=1, verbose=0)
    again.load_weights(tmp_path / "all.weights.h5")
    copy = again.distillation_losses[0]
    assert float(copy.value_of(copy.temperature)) == after
    assert not any("curriculum" in variable.path for variable in distiller.student.variables)
    config = json.loads(json.dumps(loss.get_config()))
    made = type(loss).from_config(config)
    assert made.temperature.get_config() == loss.temperature.get_config()
    assert made.temperature.initial == -1.0
