"""Models from elsewhere as teachers and students: suggested taps, precision, own inputs."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers

import tfkd
from tfkd import taps
from tfkd.errors import UsageError


def application(name, **arguments):
    return getattr(keras.applications, name)(
        input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None, **arguments
    )


def backbone_with_head():
    """As KerasHub makes image classifiers: rescaling, nested backbone, pooling, float32 head."""
    images = keras.Input((16, 16, 3))
    x = images
    for width in (4, 8):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Multiply()([x, layers.Conv2D(width, 1, activation="sigmoid")(squeezed)])
    backbone = keras.Model(images, x, name="backbone")
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="pooler")(backbone(layers.Rescaling(1 / 255)(inputs)))
    x = layers.Dense(tiny.CLASSES, name="predictions")(layers.Dropout(0.1)(x))
    return keras.Model(inputs, layers.Activation("linear", dtype="float32")(x), name="classifier")


APPLICATIONS = {
    # name: (sizes of the proposed maps, the pooled vector)
    "MobileNetV2": ([32, 16, 8, 4, 2], "global_average_pooling2d"),
    "ResNet50V2": ([32, 16, 8, 4, 2], "avg_pool"),
    "EfficientNetB0": ([32, 16, 8, 4, 2], "avg_pool"),
    "EfficientNetV2B0": ([32, 16, 8, 4, 2], "avg_pool"),
    "ConvNeXtTiny": ([16, 8, 4, 2], "convnext_tiny_head_layernorm"),
    "DenseNet121": ([32, 16, 8, 4, 2], "avg_pool"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("MobileNetV2", "ConvNeXtTiny") else pytest.mark.slow
        )
        for name in APPLICATIONS
    ],
)
def test_suggestions_for_keras_applications(name):
    """EfficientNet and ConvNeXt with their preprocessing inside, which is no stage."""
    model = application(name)
    sizes, pooled = APPLICATIONS[name]
    found = taps.suggest(model)
    maps = [tap for tap, shape in found.items() if len(shape) == 4]
    assert [found[tap][1] for tap in maps] == sizes
    assert taps.at_spots(model, "stages") == maps
    assert taps.at_spots(model, "pooled")[0].startswith(pooled)
    assert list(found.values())[-1] == (None, 10)
    own = {id(variable) for variable in model.variables}
    for tap in maps:
        # The two halves are the model: no weight is left out, none is in both.
        halves = [taps.segment(model, end=tap), taps.segment(model, tap)]
        variables = [id(variable) for half in halves for variable in half.variables]
        assert set(variables) == own and len(variables) == len(own)


def test_a_classifier_of_convolutions_has_no_pooled_vector():
    model = application("MobileNetV3Small")
    found = taps.suggest(model)
    assert [shape[1] for shape in found.values() if len(shape) == 4] == [32, 16, 8, 4, 2]
    assert list(found)[-1] == "predictions" and "flatten" not in found
    with pytest.raises(UsageError, match="no place that would serve as 'pooled'"):
        taps.at_spots(model, "pooled")


def test_suggestions_for_a_nested_backbone_with_a_head():
    model = backbone_with_head()
    found = taps.suggest(model)
    assert [(tap.split("/")[0], shape) for tap, shape in found.items()][:3] == [
        ("backbone", (None, 8, 8, 4)),
        ("backbone", (None, 4, 4, 8)),
        ("pooler", (None, 8)),
    ]
    # What is cast to float32 after the classifier are logits, and so is what it casts.
    assert len(found) == 4 and taps.at_spots(model, "pooled") == ["pooler"]
    x = tf.random.uniform((2, 16, 16, 3), maxval=255.0, seed=0)
    for tap in taps.at_spots(model, "stages"):
        halves = taps.segment(model, end=tap), taps.segment(model, tap)
        np.testing.assert_allclose(halves[1](halves[0](x)), model(x), rtol=1e-5, atol=1e-6)


def test_pairs_are_proposed_from_the_last_stage_up():
    student = tfkd.models.create("resnet8", tiny.CLASSES, (16, 16, 3))
    teacher = backbone_with_head()
    last, first = taps.at_spots(teacher, "stages")[::-1]
    expected = [("stage2", first), ("stage3", last)]
    assert taps.suggest_pairs(student, teacher) == expected
    assert taps.suggest_pairs(teacher, student) == [(b, a) for a, b in expected]
    with pytest.raises(UsageError, match="suggest_pairs"):
        tfkd.KnowledgeDistiller(student, teacher, losses=["at"])
    loss = tfkd.losses.get("at", spots=taps.suggest_pairs(student, teacher))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=[loss])
    distiller.compile()
    assert distiller.built


def test_a_subclassed_model_that_cannot_be_cut_says_where_it_can_be_read():
    with pytest.raises(UsageError, match=r"can be read \(at body, pool, head\) but not cut"):
        taps.segment(tiny.Subclassed(), end="body")


def under(policy, make):
    keras.config.set_dtype_policy(policy)
    model = make()
    keras.config.set_dtype_policy("float32")
    return model


@pytest.mark.parametrize("half", ["student", "teacher"])
def test_mixed_precision_on_one_side(half):
    """The step is that of two float32 models, to the precision of bfloat16."""
    x, y = tiny.data()
    logs, weights = [], []
    for policy in ("float32", "mixed_bfloat16"):
        policies = {"student": "float32", "teacher": "float32", half: policy}
        distiller = tfkd.KnowledgeDistiller(
            under(policies["student"], lambda: tiny.model(seed=1)),
            under(policies["teacher"], lambda: tiny.model(8, seed=2)),
            losses=["kd", "at"],
        )
        # The policy of each model, which float32 data does not undo.
        taken = distiller.observe_teacher(distiller.unpack((x, y)))["stage1"].dtype.name
        assert taken == ("bfloat16" if policies["teacher"] == "mixed_bfloat16" else "float32")
        distiller.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
        logs.append(distiller.train_on_batch(x, y, return_dict=True))
        weights.append(distiller.student.get_layer("logits").kernel.numpy())
    assert logs[1] == pytest.approx(logs[0], rel=0.05)
    moved = weights[0] - tiny.model(seed=1).get_layer("logits").kernel.numpy()
    np.testing.assert_allclose(weights[1], weights[0], atol=0.1 * np.abs(moved).max())


class Spy(layers.Layer):
    """Doubles its inputs where it infers, is noise in training, has weights and counts its runs."""

    def __init__(self):
        super().__init__()
        self.factor = self.add_weight(shape=(), initializer="ones")
        self.calls = 0

    def call(self, inputs, training=None):
        self.calls += 1
        if training:
            return keras.random.normal(tf.shape(inputs))
        return 2.0 * self.factor * inputs


def test_the_teacher_sees_preprocessed_inputs_once_in_inference_mode():
    spy, teacher = Spy(), tiny.model(8, seed=2)
    distiller = tfkd.KnowledgeDistiller(
        tiny.model(seed=1), teacher, losses=["kd", "at"], teacher_preprocessing=spy
    )
    x, y = tiny.data()
    batch = distiller.unpack((x, y))
    np.testing.assert_allclose(
        distiller.observe_teacher(batch)["logits"], teacher(2 * x), rtol=1e-5, atol=1e-5
    )
    distiller.compile("sgd")
    distiller.train_on_batch(x, y)
    spy.calls = 0
    step = tf.function(distiller.train_step, autograph=False)
    step.get_concrete_function((tf.constant(x), tf.constant(y)))
    assert spy.calls == 1
    assert float(spy.factor) == 1.0


def test_preprocessing_enters_neither_variables_nor_files(tmp_path):
    spy = Spy()
    make = functools.partial(
        tfkd.KnowledgeDistiller, tiny.model(seed=1), tiny.model(8, seed=2), losses=["fitnet"]
    )
    distillers = [make(teacher_preprocessing=spy), make()]
    names = [[variable.path for variable in d.variables] for d in distillers]
    assert len(names[0]) == len(names[1])
    assert id(spy.factor) not in {id(variable) for variable in distillers[0].variables}
    for number, distiller in enumerate(distillers):
        distiller.compile("sgd", **tiny.EAGER)
        distiller.train_on_batch(*tiny.data(8))
        distiller.save_weights(tmp_path / f"{number}.weights.h5")
    # The file is that of a distiller without preprocessing: each loads the other's.
    distillers[0].load_weights(tmp_path / "1.weights.h5")
    distillers[1].load_weights(tmp_path / "0.weights.h5")


def test_a_teacher_of_another_size_and_channel_count():
    student = tfkd.models.create("resnet8", tiny.CLASSES, (8, 8, 1))
    teacher = tfkd.models.create("resnet8", tiny.CLASSES, (16, 16, 3), seed=1)
    message = r"\(None, 8, 8, 1\) and teacher .* \(None, 16, 16, 3\): teacher_preprocessing must"
    with pytest.raises(UsageError, match=message):
        tfkd.KnowledgeDistiller(student, teacher)
    layer = tfkd.layers.TeacherPreprocessing(size=16)
    with pytest.raises(UsageError, match=r"teacher_preprocessing makes \(None, 16, 16, 1\)"):
        tfkd.KnowledgeDistiller(student, teacher, teacher_preprocessing=layer)
    layer = tfkd.layers.TeacherPreprocessing(size=16, channels=3)
    # Factor transfer is prepared first, with the same images of the teacher's.
    distiller = tfkd.KnowledgeDistiller(
        student, teacher, losses=["kd", "ft"], teacher_preprocessing=layer
    )
    distiller.compile("sgd", **tiny.EAGER)
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    y = np.arange(8) % tiny.CLASSES
    distiller.prepare(x, y, epochs=1, verbose=0)
    assert np.isfinite(distiller.train_on_batch(x, y, return_dict=True)["loss"])


def test_a_teacher_of_any_size_gets_the_shapes_of_its_preprocessed_inputs():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="down")(inputs)
    teacher = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    loss = tfkd.losses.get("fitnet", spots=[("stage1", "down")])
    tfkd.KnowledgeDistiller(
        tiny.model(),
        teacher,
        losses=[loss],
        teacher_preprocessing=lambda x: tf.image.resize(x, (32, 32)),
    ).compile()
    assert loss.adapters[0].target_shape == (16, 16, 4)


@pytest.mark.parametrize("teacher, preprocessing", [(None, lambda x: x), (tiny.model, "imagenet")])
def test_preprocessing_that_makes_no_sense(teacher, preprocessing):
    with pytest.raises(UsageError, match="teacher_preprocessing must be a layer or function"):
        tfkd.KnowledgeDistiller(
            tiny.model(seed=1), teacher and teacher(), teacher_preprocessing=preprocessing
        )
