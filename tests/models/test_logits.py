import keras
import numpy as np
import pytest
import tiny
from keras import layers, ops

import tfkd
from tfkd.errors import UsageError
from tfkd.models import logits_of


def ended(*end):
    """A model of another one's pooled features and some last layers."""
    model = tiny.model(seed=1)
    x = model.get_layer("pooled").output
    for layer in end:
        x = layer(x)
    return keras.Model(model.input, x, name="ended")


def nested():
    inputs = keras.Input(tiny.SHAPE)
    return keras.Model(inputs, ended(layers.Dense(5, activation="softmax"))(inputs))


def sequential():
    body = tiny.model(seed=1)
    model = keras.Sequential([keras.Input(tiny.SHAPE), body, layers.Activation("sigmoid")])
    return keras.Sequential([keras.Input(tiny.SHAPE), model])


SOFTMAX, SIGMOID = ops.softmax, ops.sigmoid
#: `{end: (model, its activation, number of weights that are a copy)}`.
ENDS = {
    "dense": (lambda: ended(layers.Dense(5, activation="softmax")), SOFTMAX, 2),
    "sigmoid": (lambda: ended(layers.Dense(1, activation="sigmoid")), SIGMOID, 2),
    "layer": (lambda: ended(layers.Dense(5), layers.Softmax()), SOFTMAX, 0),
    "activation": (lambda: ended(layers.Dense(5), layers.Activation("softmax")), SOFTMAX, 0),
    "function": (lambda: ended(layers.Dense(5), ops.softmax), SOFTMAX, 0),
    "log": (lambda: ended(layers.Dense(5), layers.Activation("log_softmax")), ops.log_softmax, 0),
    "nested": (nested, SOFTMAX, 2),
    "sequential": (sequential, SIGMOID, 0),
}


def ids(variables):
    return {id(variable) for variable in variables}


def check(model, activation, copies, images):
    """Checks everything that is promised; returns the model of logits."""
    config, values = model.get_config(), [np.array(value) for value in model.weights]
    outputs = np.array(model(images, training=False))
    logits = logits_of(model)
    found = logits(images, training=False)
    np.testing.assert_allclose(activation(found), outputs, rtol=1e-5, atol=1e-6)
    if activation is SOFTMAX:
        # That it is logits which these come from, and no probabilities of probabilities.
        differences = found - ops.max(found, -1, keepdims=True)
        expected = np.log(outputs + 1e-30) - np.log(outputs.max(-1, keepdims=True))
        seen = outputs > 1e-6
        assert np.ptp(outputs) > 0.01
        np.testing.assert_allclose(np.array(differences)[seen], expected[seen], atol=1e-2)
    assert len(ids(logits.weights) - ids(model.weights)) == copies
    assert logits.count_params() == model.count_params()
    # Nothing of the given model is another.
    assert model.get_config() == config
    np.testing.assert_array_equal(model(images, training=False), outputs)
    for value, before in zip(model.weights, values, strict=True):
        np.testing.assert_array_equal(value, before)
    return logits


@pytest.mark.parametrize("end", ENDS)
def test_logits_of_a_classifier(end, tmp_path):
    make, activation, copies = ENDS[end]
    model, images = make(), tiny.data(4)[0]
    logits = check(model, activation, copies, images)
    logits.save(tmp_path / "logits.keras")
    loaded = keras.models.load_model(tmp_path / "logits.keras")
    np.testing.assert_array_equal(loaded(images, training=False), logits(images, training=False))
    student = tiny.model(classes=logits.output_shape[-1])
    with pytest.raises(UsageError, match=r"needs logits: tfkd.models.logits_of\(model\)"):
        tfkd.KnowledgeDistiller(student, model)
    tfkd.KnowledgeDistiller(student, logits)


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        "MobileNetV3Small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "ResNet50", "VGG16")
        ),
    ],
)
def test_logits_of_keras_applications(name):
    make = getattr(keras.applications, name)
    model = make(weights=None, classes=5, input_shape=(32, 32, 3), include_top=True)
    for variable in model.trainable_weights[-2:]:
        # As they are made, the logits hardly differ.
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    inside = name != "MobileNetV3Small"  # It ends with a layer that is nothing but a softmax.
    check(model, SOFTMAX, 2 if inside else 0, images)


@pytest.mark.parametrize(
    "model, message",
    [
        (tiny.model, r"'tiny' ends with 'logits' \(Dense\), which is no softmax"),
        (lambda: tiny.Subclassed(name="mine"), "'mine' is subclassed"),
        (lambda: "model.keras", "needs a keras.Model; received str"),
    ],
)
def test_models_without_an_end_to_cut(model, message):
    with pytest.raises(UsageError, match=message):
        logits_of(model())
