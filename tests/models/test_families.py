"""What holds for every network of the zoo."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from tfkd import models

PUBLISHED = zoo.published()
#: Networks that take seconds to make.
LARGE = (
    "resnet50",
    "resnet110",
    "resnet18_imagenet",
    "resnet34_imagenet",
    "resnet50_imagenet",
    "shufflenet_v1",
    "shufflenet_v2",
    "mobilenet_v1",
    "mobilenet_v2",
)


def identifiers(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in names]


@pytest.mark.parametrize("identifier", identifiers(PUBLISHED))
def test_published_sizes(identifier):
    record = PUBLISHED[identifier]
    shape = record.get("image", (32, 32, 3))
    model = models.create(identifier, num_classes=record["classes"], input_shape=shape)

    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    statistics = sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    taps = zoo.tap_names(len(record["taps"]) - 2)
    assert parameters == record["parameters"]
    assert statistics == record["batch_norm_statistics"]
    assert models.multiply_adds(model) == record["multiply_adds"]
    assert [list(model.get_layer(tap).output.shape[1:]) for tap in taps] == record["taps"]
    assert model.output is model.get_layer("logits").output
    assert model.output.shape == (None, record["classes"])


def test_every_published_network_is_there():
    assert set(PUBLISHED) == set(models.available()) - set(zoo.WITHOUT_PYTORCH)


@pytest.mark.parametrize("file", zoo.FORWARD_FILES)
def test_published_outputs(file):
    identifier, state, arrays = zoo.forward_case(file)
    image = arrays["image"].astype("float32")
    model = models.create(identifier, arrays["logits"].shape[1], input_shape=image.shape[1:])
    models.load_torch_weights(model, state)
    stages = sum(key.endswith("/shape") for key in arrays) - 2
    taps = [model.get_layer(name).output for name in zoo.tap_names(stages)]
    *values, logits = keras.Model(model.input, [*taps, model.output])(image, training=False)

    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-5)
    for tap, value in enumerate(np.array(value) for value in values):
        assert value.shape == tuple(arrays[f"tap/{tap}/shape"])
        np.testing.assert_allclose(value.mean(), arrays[f"tap/{tap}/mean"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value.std(), arrays[f"tap/{tap}/std"], rtol=1e-4)
        if f"tap/{tap}/value" in arrays:
            expected = arrays[f"tap/{tap}/value"]
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_there_are_golden_outputs():
    assert zoo.FORWARD_FILES


@pytest.mark.parametrize("identifier", identifiers(zoo.FAMILY_IDS))
@pytest.mark.parametrize("shape", [(8, 8, 1), (29, 15, 4)])
def test_any_size_and_channels(identifier, shape):
    model = models.create(identifier, num_classes=5, input_shape=shape, seed=1)
    run = keras.Model(model.input, [model.get_layer("pooled").output, model.output])
    pooled, logits = map(np.array, run(zoo.images(shape), training=False))
    assert logits.shape == (2, 5)
    assert np.all(np.isfinite(logits))
    # In some networks that are not trained a bias is all that is left of the logits.
    assert np.any(pooled[0] != pooled[1])


@pytest.mark.parametrize("identifier", identifiers(zoo.FAMILY_IDS))
def test_training_reaches_every_variable(identifier):
    model = zoo.model(identifier)
    statistics = [np.array(weight) for weight in model.non_trainable_weights]
    image = zoo.images((16, 16, 3), batch=4)
    direction = zoo.images((100,), batch=4, seed=1)
    with tf.GradientTape() as tape:
        # In training mode batch normalisation takes out the bias of the convolution before it,
        # so that only inference mode shows whether VGG's biases are connected.
        logits = model(image, training=True) + model(image, training=False)
        loss = tf.reduce_sum(logits * direction)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, gradients):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        assert np.any(np.abs(gradient) > 0), variable.path
    for before, variable in zip(statistics, model.non_trainable_variables):
        assert not np.array_equal(before, variable), variable.path
        variable.assign(before)


@pytest.mark.parametrize("identifier", identifiers(zoo.FAMILY_IDS))
def test_keras_file_roundtrip(identifier, tmp_path):
    model = zoo.model(identifier)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)

    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    image = zoo.images((16, 16, 3))
    expected, actual = model(image, training=False), loaded(image, training=False)
    np.testing.assert_array_equal(actual, expected)
    # Whoever loads the file needs Keras alone.
    config = json.dumps(model.get_config())
    assert "tfkd" not in config
    assert "Lambda" not in config


@pytest.mark.parametrize("identifier", identifiers(zoo.FAMILY_IDS))
def test_segments_chain_to_the_whole(identifier):
    model = zoo.model(identifier)
    names = {layer.name for layer in model.layers}
    stages = len(names & {f"stage{stage}" for stage in range(1, 9)})
    tensors = [model.input]
    tensors += [model.get_layer(name).output for name in [*zoo.tap_names(stages), "logits"]]
    image = x = zoo.images((16, 16, 3))
    for start, end in zip(tensors, tensors[1:]):
        x = keras.Model(start, end)(x, training=False)
    np.testing.assert_allclose(x, model(image, training=False), rtol=1e-5)
