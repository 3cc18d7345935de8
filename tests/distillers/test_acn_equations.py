"""ACN: a round of the game, and its parts, by their equations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from acn_game import RATES, jensen_shannon, make, networks
from mutual_learning import assert_close, images, terms, weights
from tiny import values

from tfkd.distillers.acn import divergence, weakly_residual


def softplus(x):
    return tf.math.log(1 + tf.exp(x))


def mean(x):
    return tf.reduce_mean(tf.cast(x, "float32"))


def play_by_hand(
    distiller,
    x,
    y,
    noise,
    rates,
    parts=(0.5, 0.5),
    divergence_weight=10.0,
    divergence_temperature=1.0,
    cap=0.5,
    label_weight=0.5,
    distance_weight=10.0,
    limit=0.3,
    clip_norm=1.0,
    threshold=0.02,
    temperature=3.0,
    mutual_weight=1.0,
    divergent_weight=1.0,
    over_accepted=False,
    shared=False,
):
    """One round of the game by its equations, on images in [0, 1]; returns what is logged."""
    models, generator, discriminator = (
        distiller.students,
        distiller.generator,
        distiller.discriminator,
    )
    pixels, logs = tf.constant(2 * x - 1), {}

    def divergent():
        return tf.clip_by_value(
            parts[0] * pixels + parts[1] * generator([pixels, noise]), -1.0, 1.0
        )

    def descend(rate, gradients, variables):
        for gradient, variable in zip(gradients, variables):
            variable.assign(variable - rate * gradient)

    fake = divergent()
    with tf.GradientTape() as tape:
        real_verdict, fake_verdict = discriminator(pixels), discriminator(fake)
        loss = mean(softplus(-real_verdict)) + mean(softplus(fake_verdict))
    logs["discriminator_loss"] = loss
    logs["discriminator_real_accuracy"] = mean(real_verdict > 0)
    logs["discriminator_fake_accuracy"] = mean(fake_verdict < 0)
    gradients = tape.gradient(loss, discriminator.trainable_variables)
    discriminator(pixels, training=True)
    descend(rates[2], gradients, discriminator.trainable_variables)

    with tf.GradientTape() as tape:
        fake = divergent()
        logits = [model(fake / 2 + 0.5, training=False) for model in models]
        apart = jensen_shannon(logits, divergence_temperature)
        predicted = tf.add_n([tf.nn.softmax(z) for z in logits]) / len(models)
        of_class = tf.math.log(tf.gather(predicted, y, axis=1, batch_dims=1))
        distance = tf.nn.relu(tf.abs(fake - pixels) - limit)
        logs["adversarial_loss"] = mean(softplus(-discriminator(fake)))
        logs["rewarded_divergence"] = mean(tf.minimum(apart, cap * np.log(len(models))))
        logs["label_restriction"] = -mean(of_class)
        logs["distance_restriction"] = mean(distance)
        loss = logs["generator_loss"] = (
            logs["adversarial_loss"]
            - divergence_weight * logs["rewarded_divergence"]
            + label_weight * logs["label_restriction"]
            + distance_weight * logs["distance_restriction"]
        )
    gradients = tape.gradient(loss, generator.trainable_variables)
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    factor = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
    descend(rates[1] * factor, gradients, generator.trainable_variables)

    fake = divergent() / 2 + 0.5
    with tf.GradientTape(persistent=True) as tape:
        logits = [model(x, training=True) for model in models]
        kept = [values(model.non_trainable_variables) for model in models]
        fake_logits = [model(fake, training=True) for model in models]
        if not shared:
            for model, before in zip(models, kept):
                for variable, value in zip(model.non_trainable_variables, before):
                    variable.assign(value)
        apart = jensen_shannon(fake_logits, divergence_temperature)
        chosen = np.arange(len(y))
        if threshold is not None:
            seen = np.any([np.argmax(z, -1) == y for z in fake_logits], axis=0)
            chosen = np.flatnonzero(seen & (np.array(apart) >= threshold))
        entropies, mutual = terms(logits, y, temperature)
        accepted = [tf.gather(z, chosen) for z in fake_logits]
        fake_entropies, fake_mutual = terms(accepted, y[chosen], temperature)
        count = 1.0 if over_accepted else len(chosen) / len(y)
        fake_entropies, fake_mutual = [count * one for one in fake_entropies], count * fake_mutual
        logs |= {
            "student_loss": entropies[0],
            "peers_loss": entropies[1],
            "mutual_loss": mutual,
            "divergent_loss": tf.add_n(fake_entropies),
            "divergent_mutual_loss": fake_mutual,
            "real_divergence": mean(jensen_shannon(logits, divergence_temperature)),
            "generated_divergence": mean(apart),
            "accepted_share": len(chosen) / len(y),
            "accuracy": np.mean(np.argmax(logits[0], -1) == y),
            "student2_accuracy": np.mean(np.argmax(logits[1], -1) == y),
        }
        loss = (
            tf.add_n(entropies)
            + divergent_weight * logs["divergent_loss"]
            + mutual_weight * (mutual + fake_mutual)
        )
    logs["loss"] = loss
    for model in models:
        gradients = tape.gradient(loss, model.trainable_variables)
        descend(rates[0], gradients, model.trainable_variables)
    return {name: float(value) for name, value in logs.items()}


# {name: (arguments of ACN, those of the equations)}.
OPTIONS = {
    "default": ({}, {}),
    "no cap": ({"divergence_cap": 1.0}, {"cap": 1.0}),
    "no label restriction": ({"label_weight": 0.0}, {"label_weight": 0.0}),
    "no distance restriction": ({"distance_weight": 0.0}, {"distance_weight": 0.0}),
    "another limit": ({"distance_limit": 0.6}, {"limit": 0.6}),
    "no reward": ({"divergence_weight": 0.0}, {"divergence_weight": 0.0}),
    "a temperature": ({"divergence_temperature": 3.0}, {"divergence_temperature": 3.0}),
    "another threshold": ({"acceptance_threshold": 0.5}, {"threshold": 0.5}),
    "no filter": ({"filter_divergent": False}, {"threshold": None}),
    "mean over the accepted": ({"divergent_mean": "accepted"}, {"over_accepted": True}),
    "no clipping": ({"generator_clip_norm": None}, {"clip_norm": None}),
    "weak residual": ({"residual": "weak_residual"}, {"parts": (1.0, 0.1)}),
    "another weight": ({"residual_weight": 0.2}, {"parts": (0.2, 0.8)}),
    "shared statistics": ({"generated_statistics": "shared"}, {"shared": True}),
    "other weights": (
        {"mutual_weight": 0.3, "divergent_weight": 0.6, "temperature": 2.0},
        {"mutual_weight": 0.3, "divergent_weight": 0.6, "temperature": 2.0},
    ),
}


def play(option, by_hand):
    """The logs and the networks' weights after a round, by the distiller or by hand."""
    arguments, settings = OPTIONS[option]
    keras.utils.set_random_seed(0)
    distiller = make(rates=RATES, **arguments)
    x, y = images()
    noise = tf.random.stateless_normal((len(x), 4), (1, 2))
    if by_hand:
        logs = play_by_hand(distiller, x, y, noise, RATES, **settings)
    else:
        distiller.draw_noise = lambda size: noise
        logs = distiller.train_on_batch(x, y, return_dict=True)
    return logs, weights(networks(distiller))


@pytest.fixture(scope="module")
def default_round():
    keras.config.set_dtype_policy("float32")
    return play("default", by_hand=True)


USUAL = ("default", "no filter")


@pytest.mark.parametrize(
    "option",
    [
        option if option in USUAL else pytest.param(option, marks=pytest.mark.slow)
        for option in OPTIONS
    ],
)
def test_a_round_is_that_of_the_equations(option, default_round):
    expected, expected_weights = play(option, by_hand=True)
    logs, found_weights = play(option, by_hand=False)
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert_close(expected_weights, found_weights, 1e-5)
    if option == "default":
        assert 0 < expected["accepted_share"] < 1
        keras.utils.set_random_seed(0)
        start = weights(networks(make()))
        same = [np.array_equal(a, b) for a, b in zip(start, found_weights)]
        assert np.mean(same) < 0.1
    else:
        pairs = zip(default_round[1], expected_weights)
        assert max(np.abs(a - b).max() for a, b in pairs) > 1e-4


def test_divergence_is_that_of_jensen_and_shannon():
    random = np.random.default_rng(0)
    logits = random.normal(scale=3, size=(3, 64, 5)).astype("float32")
    for temperature in (1.0, 4.0):
        found = np.array(divergence(list(logits), temperature))
        np.testing.assert_allclose(
            found, jensen_shannon(list(logits), temperature), rtol=1e-4, atol=1e-6
        )
        assert found.min() > 0 and found.max() < np.log(3)


def test_divergence_of_equal_predictions_is_0_and_of_disjoint_ones_ln_n():
    logits = tf.random.normal((8, 5)) * 3
    # A constant added to all logits changes no prediction.
    np.testing.assert_allclose(divergence([logits, logits + 7, logits]), 0, atol=1e-6)
    sure = [50 * tf.one_hot([i, i], 5) for i in range(4)]
    np.testing.assert_allclose(divergence(sure), np.log(4), rtol=1e-6)


def test_divergence_of_extreme_logits_has_finite_gradients():
    logits = [tf.constant([[1e4, -1e4, 0.0], [0.0, 0.0, -1e4]]), tf.zeros((2, 3))]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = divergence(logits)
    gradients = tape.gradient(value, logits)
    assert np.isfinite(value).all() and np.isfinite(gradients).all()
    half = [1.0, 0.0, 0.0], [1 / 3] * 3
    middle = np.mean(half, axis=0)
    entropy = -np.sum(middle * np.log(middle)) - np.log(3) / 2
    assert float(value[0]) == pytest.approx(entropy, rel=1e-5)


def test_the_weakly_residual_connection():
    pixels = tf.constant([[0.5, -1.0, 0.9, 1.0]])[..., None, None]
    made = tf.constant([[-0.5, -1.0, 1.0, 0.5]])[..., None, None]

    def of(residual, weight):
        return np.array(weakly_residual(pixels, made, residual, weight))[0, :, 0, 0]

    np.testing.assert_array_equal(of("weak_skip", 1.0), np.float32([0.5, -1.0, 0.9, 1.0]))
    np.testing.assert_array_equal(of("weak_skip", 0.0), [-0.5, -1.0, 1.0, 0.5])
    np.testing.assert_allclose(of("weak_skip", 0.25), [-0.25, -1.0, 0.975, 0.625], rtol=1e-6)
    np.testing.assert_array_equal(of("weak_residual", 0.0), np.float32([0.5, -1.0, 0.9, 1.0]))
    np.testing.assert_allclose(of("weak_residual", 0.5), [0.25, -1.0, 1.0, 1.0], rtol=1e-6)
