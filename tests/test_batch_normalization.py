"""Batch normalization while tfkd runs a model: the fused operation equals Keras' own."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers

import tfkd
from tfkd import runtime

SHAPE = (6, 4, 4, 3)


def images(dtype="float32"):
    return tf.constant(2 + 3 * np.random.default_rng(0).normal(size=SHAPE), dtype)


def run(
    fused, training, dtype="float32", trainable=True, jit_compile=False, by_batch=False, **arguments
):
    """Outputs, gradients and statistics of a layer whose weights are not those of the start."""
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layer = layers.BatchNormalization(dtype=policy, momentum=0.8, **arguments)
    layer.trainable = trainable
    layer.build(SHAPE)
    generator = np.random.default_rng(1)
    layer.set_weights([generator.uniform(0.5, 2, v.shape) for v in layer.weights])
    x, weights = images(dtype), tf.constant(generator.normal(size=SHAPE), "float32")

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            value = tf.reduce_sum(weights * tf.cast(outputs, "float32") ** 2)
        gradients = tape.gradient(value, [x, *(v.value for v in layer.trainable_variables)])
        return outputs, gradients

    with (
        runtime.batch_normalization_of(layer) if fused else contextlib.nullcontext(),
        runtime.batch_statistics(layer) if by_batch else contextlib.nullcontext(),
    ):
        outputs, gradients = step(x)
        operations = [o.type for o in step.get_concrete_function(x).graph.get_operations()]
    assert ("FusedBatchNormV3" in operations) == fused
    assert outputs.dtype == dtype and "call" not in vars(layer)
    return [np.array(tf.cast(v, "float32")) for v in (outputs, *gradients, *layer.weights)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": False},
        {"center": False, "epsilon": 1e-5},
        {"scale": False, "center": False},
        {"trainable": False},
        {"axis": 3},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"jit_compile": True},
    ],
    ids=str,
)
def test_outputs_gradients_and_statistics_are_those_of_keras(training, arguments):
    expected, found = (run(fused, training, **arguments) for fused in (False, True))
    tolerance = {"bfloat16": 2e-2, "float16": 2e-3}.get(arguments.get("dtype"), 1e-5)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def test_the_moving_variance_is_that_of_the_population():
    layer = layers.BatchNormalization(momentum=0.0)
    x = tf.constant([0.0, 2.0], shape=(2, 1, 1, 1))
    layer.build(x.shape)
    with runtime.batch_normalization_of(layer):
        layer(x, training=True)
    assert layer.moving_mean.numpy() == [1] and layer.moving_variance.numpy() == [1]


class Own(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(2 * inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: layers.BatchNormalization(), (8, 3)),
        (lambda: layers.BatchNormalization(axis=1), SHAPE),
        (lambda: layers.BatchNormalization(renorm=True), SHAPE),
        (lambda: layers.BatchNormalization(dtype="float64"), SHAPE),
        (Own, SHAPE),
    ],
    ids=["vectors", "channels first", "renorm", "float64", "own"],
)
def test_elsewhere_it_is_keras_own(make, shape):
    x = np.random.default_rng(0).normal(size=shape)
    found = []
    for ours in (False, True):
        layer = make()
        layer.build(shape)
        with runtime.batch_normalization_of(layer) if ours else contextlib.nullcontext():
            found.append([np.array(layer(x, training=True)), *layer.get_weights()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"scale": False, "center": False}, {"trainable": False}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_statistics_of_the_batch_normalize_as_in_training_and_change_nothing(arguments, fused):
    expected = run(False, True, **arguments | {"trainable": True})
    outputs, of_inputs, *_, mean, variance = run(fused, False, **arguments, by_batch=True)
    tolerance = 2e-2 if "dtype" in arguments else 1e-5
    for a, b in zip(expected, (outputs, of_inputs)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())
    *_, unchanged_mean, unchanged_variance = run(False, False, **arguments)
    np.testing.assert_array_equal(mean, unchanged_mean)
    np.testing.assert_array_equal(variance, unchanged_variance)


def test_masked_samples_do_not_count():
    layer = layers.BatchNormalization(momentum=0.0)
    x, mask = images()[:2], np.zeros((2, 4, 4), bool)
    mask[0] = True
    layer.build(x.shape)
    with runtime.batch_normalization_of(layer):
        layer(x, training=True, mask=mask)
    np.testing.assert_allclose(layer.moving_mean, np.mean(x[0], (0, 1)), rtol=1e-5)


def test_the_switch_is_gone_afterwards_also_where_something_fails():
    model = tiny.model()
    normalizations = [each for each in model.layers if isinstance(each, layers.BatchNormalization)]
    before = [set(vars(layer)) for layer in normalizations]
    with pytest.raises(ZeroDivisionError), runtime.batch_normalization_of(model, None):
        with runtime.batch_normalization_of(model, model):
            pass
        # That of the outer context is still there.
        assert all("call" in vars(layer) for layer in normalizations)
        raise ZeroDivisionError
    assert [set(vars(layer)) for layer in normalizations] == before


def test_it_can_be_switched_off():
    layer = layers.BatchNormalization()
    runtime.set_fused_batch_normalization(False)
    try:
        with runtime.batch_normalization_of(layer):
            assert "call" not in vars(layer)
    finally:
        runtime.set_fused_batch_normalization(True)


def test_xla_gets_the_operations_of_keras():
    layer = layers.BatchNormalization()
    with runtime.batch_normalization_of(layer, jit_compile=True):
        assert "call" not in vars(layer)


def test_gpus_that_must_be_deterministic_run_inference_by_keras(monkeypatch):
    """They have no deterministic gradient of the fused one."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tfkd.runtime.keras_fixes.config, "is_op_determinism_enabled", lambda: True)
    for training in (True, False):
        layer = layers.BatchNormalization()
        layer.build(SHAPE)
        with runtime.batch_normalization_of(layer):
            step = tf.function(
                lambda x, layer=layer, training=training: layer(x, training=training)
            )
            graph = step.get_concrete_function(images()).graph
        types = [operation.type for operation in graph.get_operations()]
        assert ("FusedBatchNormV3" in types) == training
