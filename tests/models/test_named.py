"""Models by the names of configs: files, functions, keras.applications, KerasHub."""

import inspect
import sys

import keras
import numpy as np
import pytest
import tiny

import tfkd
from tfkd.errors import UsageError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)

SOURCE = """
import keras
from keras import layers


def small(num_classes, input_shape, width=4):
    images = keras.Input(input_shape)
    x = layers.Conv2D(width, 3, strides=2, activation="relu", name="stage1")(images)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits")(x))


class Own(keras.Model):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.body = layers.Flatten()
        self.head = layers.Dense(num_classes)

    def call(self, inputs):
        return self.head(self.body(inputs))


def nothing(num_classes, input_shape):
    return None


def without_arguments():
    return None


def fixed(num_classes, input_shape):
    return small(7, (16, 16, 3))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of the user's."""
    (tmp_path / "models_of_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "models_of_a_test"
    sys.modules.pop("models_of_a_test", None)


def make(name, shape=(16, 16, 3), seed=0, **arguments):
    return tfkd.models.named(name, tiny.CLASSES, shape, seed, **arguments)


def normalized(channels=3):
    """Pixels, and the images that the pipelines make of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels)).astype("float32")
    return pixels, (pixels / 255 - MEAN[:channels]) / STD[:channels]


def seen_by_the_first_weights(model, images):
    """What a model makes of images before its first convolution."""
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    return np.asarray(keras.Model(model.input, first.input)(images))


@pytest.mark.parametrize(
    "name, channels",
    [
        ("MobileNet", 1),
        *(
            pytest.param(name, 3, marks=pytest.mark.slow)
            # Each kind of preprocessing: subtracted means in another order of the channels, a mean
            # and a deviation, and what is inside of the model.
            for name in ("ResNet50", "DenseNet121", "MobileNetV3Small")
        ),
    ],
)
def test_applications_get_the_pixels_that_they_are_made_for(name, channels, tmp_path):
    pixels, images = normalized(channels)
    build, shape = getattr(keras.applications, name), (32, 32, channels)
    plain = build(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    prepare = inspect.getmodule(build).preprocess_input
    expected = prepare(np.broadcast_to(pixels, (2, 32, 32, 3)).copy())
    expected = seen_by_the_first_weights(plain, expected)
    assert expected.std() > 0.2
    model = make(f"keras_applications:{name}", shape, mean=MEAN[:channels], std=STD[:channels])
    # The file needs Keras alone.
    layers = {layer.__module__.partition(".")[0] for layer in map(type, model.layers)}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        np.testing.assert_allclose(
            seen_by_the_first_weights(one, images), expected, rtol=1e-4, atol=1e-4
        )
    assert layers == {"keras"} and list(tfkd.taps.suggest(model))[-1] == "logits"
    assert model.count_params() == plain.count_params() + (plain.output_shape[-1] + 1) * 5
    if channels == 1:
        # Of raw pixels nothing needs to be undone.
        raw = make(f"keras_applications:{name}", shape)
        np.testing.assert_allclose(seen_by_the_first_weights(raw, pixels), expected, atol=1e-4)
        assert "pixels" not in [layer.name for layer in raw.layers]


@pytest.mark.slow
def test_classifiers_of_keras_hub_get_normalized_pixels(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="an extra of tfkd")
    scale, offset = [1 / 50, 1 / 60, 1 / 70], [-1.0, -2.0, -1.5]
    backbone = hub.models.ResNetBackbone([64], [7], [64, 64], [1, 1], [1, 2], "basic_block")
    converter = hub.layers.ResNetImageConverter(scale=scale, offset=offset, image_size=(64, 64))
    preprocessor = hub.models.ResNetImageClassifierPreprocessor(converter)
    classifier = hub.models.ResNetImageClassifier(backbone, 7, preprocessor)
    classifier.save_to_preset(tmp_path / "preset")
    pixels, images = normalized()
    name = f"keras_hub:{tmp_path}/preset"
    model = make(name, (32, 32, 3), mean=MEAN, std=STD)
    features = np.mean(backbone(pixels * scale + offset), axis=(1, 2))
    kernel, bias = model.get_weights()[-2:]
    np.testing.assert_allclose(model(images), features @ kernel + bias, rtol=1e-4, atol=1e-5)
    fresh = make(name, (32, 32, 3), seed=1, load_weights=False)
    assert not np.allclose(fresh.get_weights()[0], model.get_weights()[0])
    with pytest.raises(UsageError, match="keras_hub:no-such-preset cannot be loaded .*: a preset"):
        make("keras_hub:no-such-preset")


def test_functions_make_models_of_the_seed(module):
    one, same, other = (make(f"{module}:small", seed=seed, width=3) for seed in (0, 0, 1))
    assert one.get_layer("stage1").filters == 3 and one.output_shape == (None, tiny.CLASSES)
    for a, b, c in zip(one.trainable_weights, same.trainable_weights, other.trainable_weights):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(a, c) == (a.name == "bias")
    subclassed = make(f"{module}:Own")
    assert subclassed.built and subclassed.count_params() == 16 * 16 * 3 * 5 + 5


def test_a_file_begins_with_its_weights(tmp_path):
    model = tfkd.models.create("resnet8", tiny.CLASSES, (16, 16, 3), seed=3)
    model.save(tmp_path / "my.keras")
    for a, b in zip(make(str(tmp_path / "my.keras")).weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet9", "Unknown model 'resnet9': .*resnet8, .*module:function, keras_app"),
        ("none.keras", "Model none.keras does not exist"),
        ("{module}:smal", "Unknown function of module .* 'smal': .*; did you mean 'small'"),
        ("no_such_module:small", "'no_such_module' cannot be imported .* current directory, or in"),
        ("{module}:nothing", "must return a keras.Model; it returned a NoneType"),
        ("{module}:without_arguments", "must take num_classes, input_shape by these names"),
        ("{module}:fixed", "has 7 classes, and the data 5: its last layer must have 5 outputs"),
        ("keras_applications:MobileNetV9", "Unknown model of keras_applications 'MobileNetV9'"),
        ("keras_applications:MobileNetV2", "Input size must be at least 32x32"),
        ("keras_applications:ResNet50:weights=x", "Unknown model of keras_app"),
    ],
)
def test_names_of_nothing(name, message, module):
    with pytest.raises(UsageError, match=message):
        make(name.format(module=module))


def test_models_of_other_images(module):
    with pytest.raises(UsageError, match="16x16x3, .* data are 8x8x3: set .*image_size=16.$"):
        tfkd.models.named(f"{module}:fixed", 7, (8, 8, 3))
    with pytest.raises(UsageError, match="takes images of 16x16x3, and .* data are 16x16x1.$"):
        tfkd.models.named(f"{module}:fixed", 7, (16, 16, 1))


def test_keras_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UsageError, match=r"needs KerasHub .*: pip install tfkd\[hub\] brings it"):
        make("keras_hub:resnet_18_imagenet")
