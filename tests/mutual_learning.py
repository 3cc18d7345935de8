"""Deep mutual learning written by hand, for tests to compare with."""

import numpy as np
import tensorflow as tf
import tiny
from tiny import values


def students(count=2, **arguments):
    """Tiny classifiers that start differently, each with a name of its own."""
    return [tiny.model(name=f"tiny{i}", seed=i + 1, **arguments) for i in range(count)]


def images(examples=16, seed=0):
    """Images with pixels in [0, 1], and labels."""
    random = np.random.default_rng(seed)
    x = random.uniform(size=(examples, *tiny.SHAPE)).astype("float32")
    return x, random.integers(0, tiny.CLASSES, examples)


def terms(logits, labels, temperature, pairwise=False):
    """The cross-entropies of classifiers and the sum of their divergences, as tensors."""
    hot = tf.one_hot(labels, logits[0].shape[-1])
    entropies = [
        -tf.reduce_mean(tf.reduce_sum(hot * tf.math.log(tf.nn.softmax(z)), -1)) for z in logits
    ]
    softened = [tf.nn.softmax(z / temperature) for z in logits]
    divergence = 0.0
    for i, own in enumerate(softened):
        others = [tf.stop_gradient(p) for j, p in enumerate(softened) if j != i]
        targets = others if pairwise else [tf.add_n(others) / len(others)]
        apart = [tf.reduce_sum(q * (tf.math.log(q) - tf.math.log(own)), -1) for q in targets]
        divergence += tf.reduce_mean(tf.add_n(apart)) / len(apart)
    return entropies, temperature**2 * divergence


def step(models, optimizers, x, y, temperature, weight, label_weight=1.0, pairwise=False):
    """Updates all models at once, from one forward pass each; returns the loss."""
    with tf.GradientTape(persistent=True) as tape:
        logits = [model(x, training=True) for model in models]
        entropies, divergence = terms(logits, y, temperature, pairwise)
        loss = label_weight * tf.add_n(entropies) + weight * divergence
        loss += sum(sum(model.losses) for model in models)
    gradients = [tape.gradient(loss, model.trainable_variables) for model in models]
    for model, optimizer, own in zip(models, optimizers, gradients):
        optimizer.apply(own, model.trainable_variables)
    return float(loss)


def weights(models):
    """The values of all variables of some models, statistics included."""
    return [array for model in models for array in values(model.variables)]


def assert_close(one, other, tolerance=1e-6):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def unchanged(before, variables):
    """Whether each variable is as it was."""
    return [np.array_equal(a, np.array(b)) for a, b in zip(before, variables, strict=True)]
