import keras
import numpy as np
import pytest
import tiny

import tfkd
from tfkd.errors import UsageError


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def two(**arguments):
    """Two models of one name and of equal layers' names."""
    return [tiny.model(width, seed=width, **arguments) for width in (4, 6)]


@pytest.mark.parametrize("mean", ["logits", "predictions"])
def test_it_predicts_the_mean_and_shares_its_members(mean, tmp_path):
    models = two()
    joined = tfkd.models.ensemble(models, mean=mean)
    x, _ = tiny.data(4)
    each = [np.array(model(x)) for model in models]
    expected = np.mean(each, 0) if mean == "logits" else np.log(np.mean([*map(softmax, each)], 0))
    np.testing.assert_allclose(joined(x), expected, rtol=1e-4, atol=1e-5)
    own = {id(v) for model in models for v in model.variables}
    assert {id(v) for v in joined.variables} == own
    joined.save(tmp_path / "teachers.keras")
    loaded = keras.models.load_model(tmp_path / "teachers.keras")
    observe = tfkd.taps.extractor(loaded, ["teacher1", "teacher2", "teacher2/stage1"])
    found = observe(x)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)
    for name, logits in zip(("teacher1", "teacher2"), each):
        np.testing.assert_allclose(found[name], logits, rtol=1e-4, atol=1e-5)
    wanted = tfkd.taps.extractor(models[1], ["stage1"])(x)["stage1"]
    np.testing.assert_allclose(found["teacher2/stage1"], wanted, rtol=1e-4, atol=1e-5)


def test_every_member_gets_its_own_images():
    grey = tfkd.models.create("resnet8", 5, (8, 8, 1), seed=1)
    large = tfkd.models.create("resnet8", 5, (16, 16, 3), seed=2)
    preprocessing = [
        lambda images: keras.ops.mean(images, axis=-1, keepdims=True),
        tfkd.layers.TeacherPreprocessing(size=16),
    ]
    joined = tfkd.models.ensemble([grey, large], preprocessing, input_shape=tiny.SHAPE)
    x, _ = tiny.data(4)
    inputs = x.mean(-1, keepdims=True), preprocessing[1](x)
    expected = np.mean([np.array(grey(inputs[0])), np.array(large(inputs[1]))], 0)
    np.testing.assert_allclose(joined(x), expected, rtol=1e-4, atol=1e-5)


def test_a_subclassed_member_is_one_layer():
    x, _ = tiny.data(4)
    first, second = tiny.Subclassed(), tiny.model(seed=1)
    joined = tfkd.models.ensemble([first, second], input_shape=tiny.SHAPE)
    expected = (np.array(first(x)) + np.array(second(x))) / 2
    np.testing.assert_allclose(joined(x), expected, rtol=1e-4, atol=1e-5)


def with_softmax(model):
    return keras.Sequential([model, keras.layers.Softmax()])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tiny.model(), "at least two different models"),
        (lambda: [tiny.model()] * 1, "at least two different models"),
        (lambda: [tiny.model(), "teacher.keras"], "needs keras.Models; received str"),
        (lambda: [tiny.model(), tiny.model(classes=3)], "logits .batch, classes. of the same"),
        (lambda: [tiny.model(), with_softmax(tiny.model())], "outputs probabilities"),
        (lambda: [tiny.Subclassed(), tiny.model()], "not known: pass input_shape"),
        (
            lambda: [tiny.model(), tfkd.models.create("resnet8", 5, (16, 16, 3))],
            "takes inputs of shape .None, 16, 16, 3. and gets .None, 8, 8, 3.",
        ),
    ],
)
def test_models_that_cannot_be_joined(make, message):
    with pytest.raises(UsageError, match=message) as error:
        tfkd.models.ensemble(make())
    assert "\n" not in str(error.value)


def test_preprocessing_is_one_for_all_or_one_for_each():
    with pytest.raises(UsageError, match="2 models and 1 items of preprocessing"):
        tfkd.models.ensemble(two(), [None])
