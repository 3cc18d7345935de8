"""Nothing that a batch can contain makes a loss or its gradients infinite or undefined."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_samples import LOSSES, PAIRWISE, VARIANTS, Sample


def mask(*selected):
    return tf.constant([1.0 if row in selected else 0.0 for row in range(Sample.batch)])


def constant(taps, value):
    return [tf.fill(tap.shape, value) for tap in taps]


def equal_rows(taps):
    return [tf.repeat(tap[:1], Sample.batch, axis=0) for tap in taps]


def half_dead(taps):
    """Zeros in every second channel and every second sample."""
    random = np.random.default_rng(1)
    return [
        tap
        * tf.constant(random.integers(0, 2, tap.shape[-1:]), tap.dtype)
        * tf.reshape(tf.constant([1.0, 0.0] * (Sample.batch // 2)), (-1,) + (1,) * (tap.ndim - 1))
        for tap in taps
    ]


def situations(sample):
    """Yields `(name, student taps, teacher taps, mask)`."""
    student, teacher, everything = sample.student, sample.teacher, mask(*range(Sample.batch))
    yield "none selected", student, teacher, mask()
    yield "one selected", student, teacher, mask(2)
    yield "two selected", student, teacher, mask(1, 4)
    yield "all selected", student, teacher, everything
    yield "equal samples", equal_rows(student), equal_rows(teacher), everything
    yield "equal students", equal_rows(student), teacher, everything
    yield "two equal selected", equal_rows(student), teacher, mask(0, 5)
    yield "student of zeros", constant(student, 0.0), teacher, everything
    yield "teacher of zeros", student, constant(teacher, 0.0), everything
    yield "zeros", constant(student, 0.0), constant(teacher, 0.0), everything
    yield "one of zeros selected", constant(student, 0.0), constant(teacher, 0.0), mask(3)
    yield "dead channels", half_dead(student), half_dead(teacher), everything
    yield "tiny", [1e-8 * tap for tap in student], [1e-8 * tap for tap in teacher], everything
    yield "large", [1e3 * tap for tap in student], [1e3 * tap for tap in teacher], everything


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*LOSSES, *VARIANTS])
def test_value_and_gradients_stay_finite(name, jit_compile):
    sample = Sample(name)
    function = tf.function(sample.value_and_gradients, jit_compile=jit_compile, autograph=False)
    for situation, student, teacher, selected in situations(sample):
        value, gradients = function(student, teacher, selected)
        assert np.isfinite(value), situation
        assert all(np.isfinite(gradient).all() for gradient in gradients), situation
        if situation == "none selected" or (
            name in PAIRWISE and situation in ("one selected", "one of zeros selected")
        ):
            assert value == 0, situation
            assert all(not np.any(gradient) for gradient in gradients), situation


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt", "at", "nst", "dist", *VARIANTS])
def test_gradients_of_zeros_stay_moderate(name):
    # A norm clamped at 1e-12 alone would let gradients of 1e12 through, which end a training.
    sample = Sample(name)
    student = [tf.concat([tap[:3], tf.zeros_like(tap[3:])], axis=0) for tap in sample.student]
    _, gradients = sample.value_and_gradients(student, sample.teacher, None)
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e3


SELECTING = [name for name, row in LOSSES.items() if row.selecting]


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_features_that_are_not_selected_may_be_anything(name, junk):
    sample = Sample(name)
    selected = mask(0, 2, 3, 5)
    spoilt = [
        [tf.tensor_scatter_nd_update(tap, [[1], [4]], junk * tf.ones_like(tap[:2])) for tap in taps]
        for taps in (sample.student, sample.teacher)
    ]
    for training in (False, True):
        fix_draws(sample.loss)
        clean = sample.student, sample.teacher
        expected, gradients = sample.value_and_gradients(*clean, selected, training=training)
        value, found = sample.value_and_gradients(*spoilt, selected, training=training)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        for one, other in zip(found, gradients):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("name", SELECTING)
def test_a_mask_in_training_means_the_loss_on_the_selected_times_their_fraction(name):
    rows = [0, 2, 3]
    values = []
    for masked in (True, False):
        keras.utils.set_random_seed(0)
        sample = Sample(name)
        fix_draws(sample.loss)
        arguments = {"mask": mask(*rows)} if masked else sample.rows(rows)
        values.append(sample.value(training=True, **arguments) * (1.0 if masked else 0.5))
    np.testing.assert_allclose(*values, rtol=1e-4)


def fix_draws(loss):
    """All samples lose the same channel, whichever are in the batch."""
    if loss.id == "mgd":
        loss.draw_kept = lambda shape: tf.ones((1, 1, 1, shape[-1])) - tf.one_hot(2, shape[-1])
