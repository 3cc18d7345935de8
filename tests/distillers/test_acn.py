"""ACN: phases, who moves and who does not, and what the distiller promises around the game."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from acn_game import (
    RATES,
    SMALL,
    divided,
    jensen_shannon,
    learning,
    make,
    networks,
    searching,
)
from keras import layers
from mutual_learning import assert_close, images, step, students, unchanged, weights
from tiny import EAGER, assert_equal, values

import tfkd
from tfkd import plots
from tfkd.distillers.acn import MEASURED_IN


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_each_optimizer_moves_its_own_networks_only(turn):
    x, y = images()
    rates = [0.1 if number == turn else 0.0 for number in range(3)]
    distiller = make(rates=rates)
    groups = [
        [v for model in distiller.students for v in model.trainable_variables],
        distiller.generator.trainable_variables,
        distiller.discriminator.trainable_variables,
    ]
    before = [values(group) for group in groups]
    distiller.train_on_batch(x, y)
    for number, (old, group) in enumerate(zip(before, groups)):
        same = unchanged(old, group)
        assert not any(same) if number == turn else all(same)
    named = distiller.optimizers()
    assert list(named) == ["optimizer", "generator_optimizer", "discriminator_optimizer"]
    assert [[id(v) for v in own] for _, own in named.values()] == [
        [id(v) for v in group] for group in groups
    ]


def test_searching_leaves_the_classifiers_as_they_are_and_sees_them_in_inference_mode():
    x, y = images()
    models = divided(dropout=0.5)
    distiller = searching(models, rates=RATES)
    before = weights(distiller.students)
    game = [distiller.generator, distiller.discriminator]
    start = weights(game)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert_equal(before, weights(distiller.students))
    assert not any(np.array_equal(a, b) for a, b in zip(start, weights(game)))
    predicted = np.argmax(distiller.student(x, training=False), -1)
    assert logs["accuracy"] == np.mean(predicted == y)
    noise = tf.random.stateless_normal((len(x), 4), (1, 2))
    generators = []
    for models in (divided(), divided(dropout=0.5)):
        keras.utils.set_random_seed(0)
        distiller = searching(models, rates=RATES)
        distiller.draw_noise = lambda size: noise
        distiller.train_on_batch(x, y)
        generators.append(weights([distiller.generator]))
    assert_close(*generators)


def test_learning_leaves_generator_and_discriminator_as_they_are():
    x, y = images()
    distiller = learning(rates=RATES)
    assert distiller.phase == "learn"
    game = [distiller.generator, distiller.discriminator]
    before = weights(game), weights(distiller.students)
    distiller.train_on_batch(x, y)
    assert_equal(before[0], weights(game))
    same = [np.array_equal(a, b) for a, b in zip(before[1], weights(distiller.students))]
    assert np.mean(same) < 0.1
    assert int(distiller.generator_optimizer.iterations) == 0
    assert int(distiller.discriminator_optimizer.iterations) == 0


def test_the_warm_up_is_mutual_learning_bit_for_bit():
    x, y = images()
    distiller = make(rates=RATES, warm_up=2, temperature=2.0)
    mutual = tfkd.MutualDistiller(divided(), temperature=2.0)
    mutual.compile(keras.optimizers.SGD(RATES[0]), metrics=["accuracy"], **EAGER)
    game = [distiller.generator, distiller.discriminator]
    before = weights(game)
    for epoch in (0, 1):
        distiller.start_epoch(epoch)
        logs = distiller.train_on_batch(x, y, return_dict=True)
        expected = mutual.train_on_batch(x, y, return_dict=True)
        assert {name: logs[name] for name in expected} == expected
        assert not any(value for name, value in logs.items() if "crimin" in name)
    assert_equal(weights(mutual.students), weights(distiller.students))
    assert_equal(before, weights(game))
    for optimizer in (distiller.generator_optimizer, distiller.discriminator_optimizer):
        assert int(optimizer.iterations) == 0


@pytest.mark.parametrize(
    "every, phases",
    [
        (0, ["warm_up", "warm_up", "both", "both", "both", "both", "both"]),
        (2, ["warm_up", "warm_up", "search", "learn", "search", "learn", "search"]),
        (3, ["warm_up", "warm_up", "search", "learn", "learn", "search", "learn"]),
    ],
)
def test_the_phase_of_every_epoch(every, phases):
    distiller = tfkd.ACN(students(), **{**SMALL, "warm_up": 2}, adversarial_every=every)
    assert [distiller.phase_of(epoch) for epoch in range(7)] == phases


@pytest.mark.slow
def test_every_phase_has_its_compiled_step():
    """It is compiled once, and `fit` runs the one of the epoch."""
    x, y = images()
    distiller = make(rates=RATES, compile_arguments={}, warm_up=1, adversarial_every=2)
    traced, step_ = [], distiller.train_step

    def counting(data):
        traced.append(distiller.phase)
        return step_(data)

    object.__setattr__(distiller, "train_step", counting)
    game = [distiller.generator, distiller.discriminator]
    moved, before = [], []

    def begin(epoch, logs=None):
        before[:] = [weights(distiller.students), weights(game)]

    def end(epoch, logs=None):
        after = [weights(distiller.students), weights(game)]
        moved.append(
            tuple(
                not all(np.array_equal(a, b) for a, b in zip(*pair)) for pair in zip(before, after)
            )
        )

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
    logs = distiller.fit(x, y, batch_size=16, epochs=5, callbacks=[callback], verbose=0).history
    assert moved == [(True, False), (False, True), (True, False), (False, True), (True, False)]
    # The first step is traced again once metrics have their variables.
    assert list(dict.fromkeys(traced)) == ["warm_up", "search", "learn"]
    assert traced.count("search") == traced.count("learn") == 1
    assert [value > 0 for value in logs["adversarial_loss"]] == [False, True, False, True, False]
    assert [value > 0 for value in logs["divergent_loss"]] == [False, False, True, False, True]
    assert logs["loss"][1] == logs["student_loss"][1]


@pytest.mark.parametrize("statistics", ["separate", "shared"])
def test_with_the_images_themselves_it_is_mutual_learning_with_other_weights(statistics):
    x, y = images()
    distiller = make(
        rates=RATES,
        residual_weight=1.0,
        filter_divergent=False,
        mutual_weight=0.4,
        divergent_weight=0.7,
        temperature=2.0,
        generated_statistics=statistics,
    )
    by_hand = divided()
    optimizers = [keras.optimizers.SGD(RATES[0]) for _ in by_hand]
    for _ in range(2):
        distiller.train_on_batch(x, y)
        step(by_hand, optimizers, x, y, 2.0, 0.8, label_weight=1.7)
    compare = weights
    if statistics == "shared":

        def compare(models):
            return [v.numpy() for model in models for v in model.trainable_variables]

    assert_close(compare(by_hand), compare(distiller.students), 1e-5)


@pytest.mark.parametrize("statistics", ["separate", "shared"])
def test_which_images_enter_the_moving_averages(statistics):
    x, y = images()
    distiller = make(generated_statistics=statistics)
    noise = tf.random.stateless_normal((len(x), 4), (1, 2))
    distiller.draw_noise = lambda size: noise
    made = distiller.from_range(distiller.generate(distiller.to_range(x), noise))
    expected = divided()
    for model in expected:
        model(x, training=True)
        if statistics == "shared":
            model(made, training=True)
    distiller.train_on_batch(x, y)
    assert_close(weights(expected), weights(distiller.students), 1e-5)


def test_images_are_accepted_that_divide_and_are_recognised_by_one():
    distiller = make(acceptance_threshold=0.1)
    first = [[9, 0, 0], [9, 0, 0], [9, 0, 0], [0.5, 0, 0], [9, 0, 0]]
    second = [[0, 9, 0], [0, 9, 0], [0, 9, 0], [0.4, 0, 0], [9, 0, 0]]
    logits = [tf.constant(one, "float32") for one in (first, second)]
    labels = tf.constant([0, 1, 2, 0, 0])
    batch = distiller.unpack((tf.zeros((5, *tiny.SHAPE)), labels))
    np.testing.assert_array_equal(distiller.accept(batch, logits), [1, 1, 0, 0, 0])
    batch = distiller.unpack((tf.zeros((5, *tiny.SHAPE)), tf.one_hot(labels, 3)))
    np.testing.assert_array_equal(distiller.accept(batch, logits), [1, 1, 0, 0, 0])
    distiller.filter_divergent = False
    np.testing.assert_array_equal(distiller.accept(batch, logits), [1, 1, 1, 1, 1])


def test_nothing_accepted_teaches_nothing():
    x, y = images()
    distiller = learning(rates=RATES, acceptance_threshold=0.7)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert [logs[f"divergent{part}_loss"] for part in ("", "_mutual")] == [0, 0]
    assert logs["accepted_share"] == 0
    by_hand = divided()
    optimizers = [keras.optimizers.SGD(RATES[0]) for _ in by_hand]
    step(by_hand, optimizers, x, y, 3.0, 1.0)
    assert_close(weights(by_hand), weights(distiller.students), 1e-5)


def test_labels_may_be_one_hot():
    x, y = images()
    found = []
    for labels, loss in (
        (y, None),
        (np.eye(tiny.CLASSES)[y], keras.losses.CategoricalCrossentropy(from_logits=True)),
    ):
        keras.utils.set_random_seed(0)
        distiller = make(rates=RATES, compile_arguments={**EAGER, "loss": loss})
        logs = distiller.train_on_batch(x, labels, return_dict=True)
        found.append((logs, weights(networks(distiller))))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize("divergent_mean", ["batch", "accepted"])
def test_samples_of_weight_0_do_not_matter(divergent_mean):
    x, y = images()
    sample_weight = np.tile([0.0, 2.0], 8).astype("float32")
    found = []
    other_x, other_y = x.copy(), y.copy()
    other_x[::2], other_y[::2] = 1 - x[::2], (y[::2] + 1) % tiny.CLASSES
    noise = tf.random.stateless_normal((len(x), 4), (1, 2))
    for inputs, labels in ((x, y), (other_x, other_y)):
        keras.utils.set_random_seed(0)
        models = [tiny.Subclassed(), tiny.Subclassed()]
        for model in models:
            model(x)
            model.head.kernel.assign(30 * model.head.kernel)
        distiller = make(models, rates=RATES, divergent_mean=divergent_mean)
        distiller.draw_noise = lambda size: noise
        logs = distiller.train_on_batch(inputs, labels, sample_weight, return_dict=True)
        assert 0 < logs["accepted_share"] < 1
        found.append((logs["loss"], weights(networks(distiller))))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "mean_, std", [(None, None), (0.3, 0.2), ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), (0.5, (1, 2, 4))]
)
def test_inputs_become_images_and_inputs_again(mean_, std):
    distiller = tfkd.ACN(students(), image_mean=mean_, image_std=std, **SMALL)
    pixels, _ = images(4)
    mean_, std = (0 if mean_ is None else mean_), (1 if std is None else std)
    inputs = ((pixels - np.array(mean_)) / np.array(std)).astype("float32")
    found = distiller.to_range(inputs)
    np.testing.assert_allclose(found, 2 * pixels - 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(distiller.from_range(found), inputs, rtol=1e-4, atol=1e-5)
    outside = ((np.array([-0.5, 1.5])[:, None, None, None] - np.array(mean_)) / np.array(std)) * (
        np.ones((2, *tiny.SHAPE))
    )
    clipped = np.array(distiller.to_range(outside))
    assert (clipped[0] == -1).all() and (clipped[1] == 1).all()


def test_inputs_that_are_not_normalized_as_said_are_told():
    x, y = images()
    distiller = make()
    assert distiller.warnings(x) == []
    (line,) = distiller.warnings(255 * x)
    assert re.match(r"\d+% of the pixels are outside of \[0, 1\] .* reach from .* to 255", line)
    before = weights(networks(distiller))
    assert line in distiller.check([(255 * x, y)]).warnings
    assert not [warning for warning in distiller.check([(x, y)]).warnings if "pixels" in warning]
    assert_equal(before, weights(networks(distiller)))
    assert tfkd.ACN(students(), image_std=1 / 255, **SMALL).warnings(255 * x) == []


@pytest.mark.parametrize("residual", ["weak_skip", "weak_residual"])
def test_an_untrained_generator_makes_images_in_range(residual):
    distiller = make(residual=residual)
    pixels = distiller.to_range(images()[0])
    made = np.array(distiller.generate(pixels, distiller.draw_noise(16)))
    assert made.shape == pixels.shape and np.abs(made).max() <= 1
    distance = np.abs(made - pixels)
    assert distance.mean() > 0.01
    if residual == "weak_residual":
        assert distance.max() <= 0.1 + 1e-6


def test_the_gradient_of_the_generator_is_clipped():
    x, y = images()
    noise = tf.random.stateless_normal((len(x), 4), (1, 2))
    updates = []
    for clip_norm in (None, 0.05):
        keras.utils.set_random_seed(0)
        distiller = searching(rates=(0.0, 1.0, 0.0), generator_clip_norm=clip_norm)
        distiller.draw_noise = lambda size: noise
        before = values(distiller.generator.trainable_variables)
        distiller.train_on_batch(x, y)
        after = values(distiller.generator.trainable_variables)
        updates.append(np.concatenate([(b - a).ravel() for a, b in zip(before, after)]))
    norms = [np.linalg.norm(update) for update in updates]
    assert norms[0] > 0.2 and norms[1] == pytest.approx(0.05, rel=1e-3)
    np.testing.assert_allclose(updates[1] * norms[0] / norms[1], updates[0], rtol=1e-2, atol=1e-4)


def test_noise_is_drawn_in_every_step_and_from_the_seed():
    x, y = images()
    found = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(7)
        distiller = searching(rates=RATES)
        distiller.seed_generator.state.assign([seed, 0])
        distiller.train_on_batch(x, y)
        found.append(weights([distiller.generator]))
    assert_equal(found[0], found[1])
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[2]))
    draws = [np.array(distiller.draw_noise(500)) for _ in range(2)]
    assert draws[0].shape == (500, 4) and not np.any(draws[0] == draws[1])
    assert abs(draws[0].mean()) < 0.1 and draws[0].std() == pytest.approx(1, abs=0.1)
    pixels = distiller.to_range(x)
    made = [np.array(distiller.generate(pixels, draw[:16])) for draw in draws]
    assert np.abs(made[0] - made[1]).max(axis=(1, 2, 3)).min() > 1e-3


def test_examples_show_what_the_classifiers_see_and_change_nothing():
    x, _ = images(4)
    distiller = make(image_mean=0.2, image_std=0.5)
    inputs = (x - 0.2) / 0.5
    before = values(distiller.variables)
    found = distiller.examples(inputs)
    assert_equal(found.values(), distiller.examples(inputs).values())
    other = distiller.examples(inputs, seed=1)
    assert_equal(before, values(distiller.variables))
    np.testing.assert_allclose(found["real"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other["real"], found["real"])
    assert np.abs(other["divergent"] - found["divergent"]).max() > 1e-3
    assert found["divergent"].min() >= 0 and found["divergent"].max() <= 1
    for name in ("real", "divergent"):
        seen = (found[name] - 0.2) / 0.5
        expected = [tf.nn.softmax(model(seen, training=False)) for model in distiller.students]
        np.testing.assert_allclose(found[f"{name}_predictions"], expected, rtol=1e-3, atol=1e-4)


def test_pictures_are_drawn_of_every_epoch(tmp_path):
    x, y = images()
    distiller = make(rates=RATES)
    pictures = tfkd.callbacks.EpochPictures(
        tmp_path, x[:3], np.eye(tiny.CLASSES)[y[:3]], list("abcde")
    )
    before = []

    class Unchanged(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before[:] = values(distiller.variables)

    callbacks = [Unchanged(), pictures]
    distiller.fit(x, y, batch_size=16, epochs=2, callbacks=callbacks, verbose=0)
    assert_equal(before, values(distiller.variables))
    files = list((tmp_path / "pictures").iterdir())
    assert {path.name for path in files} == {
        f"{name}-epoch00{epoch}.png" for name in ("divergent", "divergence") for epoch in (1, 2)
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    (_,) = (tmp_path / "tensorboard" / "pictures").glob("events*")
    assert [set(row) >= {"loss", "accepted_share"} for row in pictures.history] == [True, True]


@pytest.mark.parametrize(
    "every, drawn",
    [
        (0, {"generated": [2, 3, 4], "real": [0, 1, 2, 3, 4], "right of real": [2, 3, 4]}),
        (2, {"generated": [3], "real": [0, 1, 3], "right of real": [2, 4]}),
    ],
)
def test_what_an_epoch_has_not_measured_is_not_drawn(every, drawn):
    distiller = tfkd.ACN(students(), **{**SMALL, "warm_up": 2}, adversarial_every=every)
    logs = dict.fromkeys((*MEASURED_IN, "loss"), 0.5)

    def panels(epochs):
        found = distiller.epoch_pictures([logs] * epochs, images(2)[0], [0, 1], "abcde")
        return found["divergence.png"]

    shown, lines = panels(5), {}
    for names in shown.contents.values():
        for label, log in names.items():
            epochs = [n for n, epoch in enumerate(shown.history) if log in epoch]
            lines.setdefault(label.removesuffix(" images"), epochs)
    assert {label: lines[label] for label in drawn} == drawn
    assert lines["share of images accepted"] == drawn["generated"]
    begun = plots.logged(shown.contents, panels(2).history)
    assert begun == {"divergence in training mode": {"real images": "real_divergence"}}


def test_pictures_take_labels_of_either_kind_and_the_history_of_others(tmp_path):
    x, y = images(3)
    history = []
    for labels in (y, np.eye(tiny.CLASSES)[y]):
        one = tfkd.callbacks.EpochPictures(tmp_path, x, labels, "abcde", history)
        np.testing.assert_array_equal(one.examples["labels"], y)
    drawn = []

    class Model:
        def epoch_pictures(self, history, inputs, labels, class_names):
            drawn.append((len(history), class_names))
            return {}

    one.set_model(Model())
    history.append({"loss": 1.0})
    one.on_epoch_end(0, {"loss": 1.0})
    assert drawn == [(1, list("abcde"))] and len(history) == 1
    assert not list(tmp_path.iterdir())


def test_subclassed_students_train():
    x, y = images()
    distiller = make([tiny.Subclassed(), tiny.Subclassed()], rates=RATES)
    assert not distiller.built
    logs = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert np.isfinite([value[0] for value in logs.values()]).all()
    assert logs["adversarial_loss"][0] > 0 and "val_student2_accuracy" in logs
    assert distiller.generator.built and list(distiller.learners()) == ["student2"]


def test_three_classifiers_of_other_kinds():
    x, y = images()
    models = [*divided(), tiny.model(8, seed=7, name="wide")]
    distiller = make(models, rates=RATES)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert 0 < logs["generated_divergence"] < np.log(3)
    assert np.isfinite(list(logs.values())).all() and "student3_accuracy" in logs


def test_searching_finds_what_divides():
    """Without the other restrictions the generator does what it is rewarded for."""
    x, y = images(32)
    distiller = searching(
        label_weight=0.0,
        distance_weight=0.0,
        divergence_weight=10.0,
        divergence_cap=1.0,
        compile_arguments={"generator_optimizer": keras.optimizers.Adam(5e-3)},
    )

    def apart(name):
        predictions = np.log(distiller.examples(x)[f"{name}_predictions"])
        return float(tf.reduce_mean(jensen_shannon(list(predictions))))

    start, real = apart("divergent"), apart("real")
    before = weights(distiller.students)
    for _ in range(40):
        distiller.train_on_batch(x, y)
    assert_equal(before, weights(distiller.students))
    end = apart("divergent")
    assert end > start + 0.05 and end > real + 0.05


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 9, 3)])
def test_images_of_other_shapes(shape):
    models = []
    for seed in (1, 2):
        inputs = keras.Input(shape)
        kernel = keras.initializers.GlorotUniform(seed)
        outputs = layers.Dense(3, kernel_initializer=kernel)(layers.Flatten()(inputs))
        models.append(keras.Model(inputs, outputs, name=f"linear{seed}"))
    distiller = make(models, rates=RATES)
    x = np.random.default_rng(0).uniform(size=(4, *shape)).astype("float32")
    logs = distiller.train_on_batch(x, np.array([0, 1, 2, 0]), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert distiller.examples(x)["divergent"].shape == x.shape


def test_every_classifier_may_have_its_optimizer():
    x, y = images()
    arguments = {**EAGER, "peer_optimizers": [keras.optimizers.SGD(RATES[0])]}
    found = []
    for given in (arguments, EAGER):
        keras.utils.set_random_seed(0)
        distiller = make(rates=RATES, compile_arguments=given)
        distiller.train_on_batch(x, y)
        found.append(weights(networks(distiller)))
    assert list(distiller.optimizers())[0] == "optimizer"
    assert_close(*found)
