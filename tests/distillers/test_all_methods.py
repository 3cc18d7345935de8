"""What every method must satisfy, on the table of methods."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers, ops
from methods import METHODS

import tfkd
from tfkd.errors import UsageError

#: One variant of each method.
PLAIN = [name for name in METHODS if "," not in name]


def chosen(names, *fast):
    """The names as parameters of a test, those slow that are not among the fast ones."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def with_activity(value, seed, name):
    """A tiny model that adds a number to the loss in each pass, in its stem and in a block."""

    def add(x):
        layer = layers.Activation(
            "linear",
            activity_regularizer=lambda outputs: (
                value * ops.sum(ops.ones_like(outputs[:, 0, 0, 0]))
            ),
        )
        return layer(x)

    inputs = keras.Input(tiny.SHAPE)
    x = layers.ReLU(name="stem")(add(layers.Conv2D(4, 3, padding="same")(inputs)))
    x = layers.ReLU(name="stage1")(add(layers.Conv2D(4, 3, padding="same")(x)))
    x = layers.ReLU(name="stage2")(layers.Conv2D(8, 3, 2, padding="same")(x))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(inputs, layers.Dense(tiny.CLASSES, name="logits")(x), name=name)


def loss_with_activity(method, value, replicas):
    with tfkd.runtime.strategy("mirrored", replicas).scope():
        keras.utils.set_random_seed(0)
        models = [with_activity(value, seed, f"model{seed}") for seed in (1, 2)]
        distiller = METHODS[method](*models)
        distiller.compile(tfkd.optimizers.SGD(0.0))
        data = tf.data.Dataset.from_tensor_slices(tiny.data(8)).batch(8)
        training = distiller.fit(data, verbose=0).history["loss"][0]
        return training, distiller.evaluate(data, verbose=0)


#: How often the number is added: twice (stem and block) for each pass that trains a student.
PASSES = {
    "alone": 2,
    "kd+at": 2,
    "ackd": 2,
    "sakd": 2,
    "iakd": 2,
    "iakd, swapped": 1,
    "iakd, per sample": 2,
    "mutual": 4,
    "acn, warming up": 4,
    # Real and divergent images.
    "acn": 8,
}


@pytest.mark.parametrize("method", chosen(PASSES, "sakd", "iakd, swapped", "acn"))
def test_activity_regularizers_count_once_for_each_pass_that_trains(method):
    (plain, plain_evaluation), (found, evaluation) = (
        loss_with_activity(method, value, 1) for value in (0.0, 1.0)
    )
    assert found - plain == pytest.approx(PASSES[method], abs=1e-4)
    students = 2 if method.startswith(("mutual", "acn")) else 1
    difference = np.ravel(evaluation)[0] - np.ravel(plain_evaluation)[0]
    assert difference == pytest.approx(2 * students, abs=1e-4)


def test_activity_regularizers_are_means_over_the_samples_of_all_replicas():
    (plain, plain_evaluation), (found, evaluation) = (
        loss_with_activity("kd+at", value, 2) for value in (0.0, 1.0)
    )
    assert found - plain == pytest.approx(2, abs=1e-4)
    assert np.ravel(evaluation)[0] > np.ravel(plain_evaluation)[0] + 1.9


def test_activity_regularizers_that_replicas_would_mix_up_are_refused():
    with tfkd.runtime.strategy("mirrored", 2).scope():
        student = tiny.model(seed=1)
        student.get_layer("stage1").activity_regularizer = keras.regularizers.L2(0.1)
        distiller = METHODS["alone"](student, None)
        distiller.compile("sgd")
        with pytest.raises(UsageError, match="'tiny' regularizes the activity of layers beside"):
            distiller.fit(*tiny.data(8), batch_size=8, verbose=0)


@pytest.mark.parametrize("method", chosen(PLAIN, "ackd", "acn"))
def test_replicas_without_a_sample_take_part_in_evaluation(method):
    """17 samples in batches of 16: two replicas share the last one."""

    def evaluated(replicas):
        with tfkd.runtime.strategy("mirrored", replicas).scope():
            keras.utils.set_random_seed(0)
            models = [tiny.model(seed=seed, name=f"model{seed}") for seed in (1, 2)]
            distiller = METHODS[method](*models)
            distiller.compile(tfkd.optimizers.SGD(0.1), metrics=["accuracy"])
            data = tf.data.Dataset.from_tensor_slices(tiny.data(17)).batch(16)
            return distiller.evaluate(data, verbose=0, return_dict=True)

    assert evaluated(2) == pytest.approx(evaluated(1), rel=1e-4)


@pytest.mark.parametrize("method", chosen(PLAIN, "kd+at", "mutual"))
def test_training_under_replicas_does_not_change_what_is_saved(method):
    with tfkd.runtime.strategy("mirrored", 2).scope():
        models = [tiny.model(seed=seed, name=f"model{seed}") for seed in (1, 2)]
        before = [model.get_config() for model in models]
        distiller = METHODS[method](*models)
        distiller.compile(tfkd.optimizers.SGD(0.1))
        distiller.build_optimizers()
    assert [model.get_config() for model in models] == before


def test_samples_that_replicas_cannot_share_are_left_out_of_training():
    """Of the last 6 samples on four replicas 4 remain; of one on two, none of arrays."""
    x, y = tiny.data(22)
    for replicas, examples, trained in ((4, 22, 20), (2, 17, 16)):
        results = []
        for devices, count, as_arrays in (
            (1, trained, True),
            (replicas, examples, True),
            (replicas, examples, False),
        ):
            if as_arrays or examples > 17:
                with tfkd.runtime.strategy("mirrored", devices).scope():
                    keras.utils.set_random_seed(0)
                    distiller = METHODS["kd+at"](tiny.model(seed=1), tiny.model(seed=2))
                    distiller.compile(tfkd.optimizers.SGD(0.1))
                    data = tf.data.Dataset.from_tensor_slices((x[:count], y[:count])).batch(16)
                    arguments = {"x": data, "batch_size": None}
                    if as_arrays:
                        arguments = {"x": x[:count], "y": y[:count], "batch_size": 16}
                    distiller.fit(**arguments, shuffle=False, verbose=0)
                    results.append([np.array(v) for v in distiller.student.weights])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_that_leaves_a_replica_without_samples_is_one_line():
    with tfkd.runtime.strategy("mirrored", 4).scope():
        distiller = METHODS["alone"](tiny.model(seed=1), None)
        distiller.compile(tfkd.optimizers.SGD(0.1))
        with pytest.raises(UsageError, match="batch sizes must be multiples of the number of rep"):
            distiller.fit((tiny.data(6) for _ in range(1)), verbose=0)


@pytest.mark.parametrize("everywhere", [True, False])
def test_sample_weights_may_be_for_the_labels_alone(everywhere):
    x, y = tiny.data(8)
    weights = np.array([0.0, 1.0, 2.0, 0.0] * 2)
    logs = []
    for given in (None, weights):
        distiller = METHODS["kd+at"](tiny.model(seed=1), tiny.model(seed=2))
        distiller.compile(tfkd.optimizers.SGD(0.1), distillation_sample_weight=everywhere)
        logs.append(distiller.train_on_batch(x, y, sample_weight=given, return_dict=True))
    plain, weighted = logs
    assert abs(plain["student_loss"] - weighted["student_loss"]) > 1e-3
    for name in ("kd_loss", "at_loss"):
        assert (abs(plain[name] - weighted[name]) < 1e-6) == (not everywhere)
