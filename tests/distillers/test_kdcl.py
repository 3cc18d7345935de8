"""KDCL: its targets by hand, a step, and the weights that come from validation data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from mutual_learning import assert_close, images, students, weights
from tiny import values

import tfkd
from tfkd.distillers.kdcl import linear_weights
from tfkd.errors import UsageError


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[..., np.arange(len(labels)), labels])


def make(models=None, rate=0.1, **arguments):
    distiller = tfkd.KDCL(models or students(), **arguments)
    distiller.compile(tfkd.optimizers.SGD(rate), metrics=["accuracy"], run_eagerly=True)
    return distiller


def target_by_hand(targets, logits, labels):
    """What classifiers learn from, one image after the other."""
    found = []
    for image, label in enumerate(labels):
        rows = logits[:, image]
        if targets == "naive":
            found.append(rows[np.argmin([cross_entropy(row[None], [label]) for row in rows])])
        elif targets == "min_logit":
            found.append((rows - rows[:, label : label + 1]).min(0))
        elif targets == "general":
            found.append(rows.mean(0))
        else:
            shares = np.linspace(0, 1, 20_001)[:, None]
            mixed = shares * rows[0] + (1 - shares) * rows[1]
            errors = cross_entropy(mixed[:, None], np.array([label]))
            found.append(mixed[np.argmin(errors)])
    return np.array(found, "float32")


@pytest.mark.parametrize("targets", tfkd.KDCL.known_targets)
def test_a_step_by_hand(targets):
    """Two classifiers of different architectures; in the first epoch "general" is their mean."""

    def models():
        return [tiny.model(seed=1), tiny.model(6, "wide", seed=2)]

    x, y = images()
    by_hand = models()
    with tf.GradientTape(persistent=True) as tape:
        logits = [model(x, training=True) for model in by_hand]
        target = target_by_hand(targets, np.array(logits), y)
        q = softmax(target / 2)
        hot = tf.one_hot(y, tiny.CLASSES)
        labels = [-tf.reduce_mean(tf.reduce_sum(hot * tf.nn.log_softmax(z), -1)) for z in logits]
        apart = [tf.reduce_sum(q * (np.log(q) - tf.nn.log_softmax(z / 2)), -1) for z in logits]
        divergence = 4 * tf.add_n([tf.reduce_mean(one) for one in apart])
        loss = tf.add_n(labels) + 0.7 * divergence
    for model in by_hand:
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients):
            variable.assign_sub(0.1 * gradient)
    distiller = make(models(), targets=targets, mutual_weight=0.7)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["mutual_loss"] == pytest.approx(float(divergence), rel=1e-3)
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert_close(weights(by_hand), weights(distiller.students), tolerance=1e-4)


def test_linear_weights_of_three_are_as_good_as_the_best_of_many():
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 40)
    # From next to equal to certain of wrong classes.
    logits = (random.normal(size=(3, 40, 7)) * np.geomspace(0.01, 30, 40)[:, None]).astype(
        "float32"
    )
    found = np.array(linear_weights(tf.constant(logits), tf.constant(labels)))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)

    def errors(shares):
        return cross_entropy(np.einsum("kb,kbc->bc", shares, logits.astype("float64")), labels)

    grid = [(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)]
    best = np.min([errors(np.tile(np.array(row) / 100, (40, 1)).T) for row in grid], axis=0)
    assert np.all(errors(found) <= best + 1e-3 * (1 + best))


def test_general_weights_are_those_of_the_errors_on_validation_data():
    x, y = images(20)
    validation = images(20, seed=1)
    distiller = make(students(3), rate=0.02, targets="general")
    logs = distiller.fit(x, y, batch_size=20, validation_data=validation, epochs=1, verbose=0)
    predictions = [softmax(np.array(model(validation[0]))) for model in distiller.students]
    errors = np.array(predictions) - np.eye(tiny.CLASSES)[validation[1]]
    covariances = np.einsum("kbc,lbc->kl", errors, errors) / 20
    assert logs.history["val_error_covariance_2_1"][0] == pytest.approx(covariances[1, 0], rel=1e-4)
    expected = np.linalg.inv(covariances).sum(1) / np.linalg.inv(covariances).sum()
    np.testing.assert_allclose(distiller.mixture, expected, rtol=2e-3, atol=1e-3)
    # Of several mixtures its error is the least; those of logits are what is taught.
    logits = np.array([model(x, training=True) for model in distiller.students])
    (target,), *_ = distiller.targets_of(distiller.unpack((x, y)), list(logits))
    mixed = np.tensordot(np.array(distiller.mixture), logits, 1)
    np.testing.assert_allclose(target, mixed, rtol=1e-4, atol=1e-5)
    # It is a state of training that a checkpoint holds, and evaluation leaves as it is.
    assert any(variable is distiller.mixture for variable in distiller.variables)
    before = values([distiller.mixture])
    distiller.evaluate(x, y, verbose=0)
    tiny.assert_equal(before, values([distiller.mixture]))


def test_classifiers_that_err_alike_weigh_alike():
    distiller = make(targets="general")
    alike = {f"val_error_covariance_{name}": 0.5 for name in ("1_1", "2_1", "2_2")}
    distiller.weigh(alike)
    np.testing.assert_allclose(distiller.mixture, [0.5, 0.5], rtol=1e-4)
    # An epoch without validation changes nothing.
    distiller.weigh({"loss": 1.0})
    np.testing.assert_allclose(distiller.mixture, [0.5, 0.5], rtol=1e-4)


@pytest.mark.slow
def test_general_weights_do_not_depend_on_the_number_of_replicas():
    found = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
            keras.utils.set_random_seed(0)
            distiller = tfkd.KDCL(students(), targets="general")
            distiller.compile(tfkd.optimizers.SGD(0.02))
            x, y = images(17)
            # Of the last image alone two replicas could not train.
            held_out = {"validation_data": (x, y), "epochs": 2, "verbose": 0}
            distiller.fit(x[:16], y[:16], batch_size=8, **held_out)
            found.append([*values([distiller.mixture]), *weights(distiller.students)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_mistakes_are_one_line():
    with pytest.raises(UsageError, match="Unknown targets 'mean'.*naive, linear, min_logit, gener"):
        make(targets="mean")
    with pytest.raises(UsageError, match=r"weighs the classifiers by their errors on validation"):
        make(targets="general").fit(*images(), verbose=0)
