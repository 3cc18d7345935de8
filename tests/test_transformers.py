"""Transformers as teachers and students: where they are read, and losses that see tokens."""

import functools

import keras
import numpy as np
import pytest
import tiny
from keras import layers

import tfkd
from tfkd import taps
from tfkd.errors import UsageError

WIDTH = 8


def attention_unit(x, name):
    """The residual units of a block before normalization, of Keras' layers."""
    normalized = layers.LayerNormalization()(x)
    attended = layers.MultiHeadAttention(2, WIDTH // 2)(normalized, normalized)
    x = layers.Add(name=f"{name}_attended")([x, attended])
    hidden = layers.Dense(2 * WIDTH, "gelu")(layers.LayerNormalization()(x))
    hidden = layers.Dropout(0.1)(layers.Dense(WIDTH)(hidden))
    return layers.Add(name=name)([x, hidden])


def post_normalized(x, name):
    """The same behind each unit, as in the first transformers."""
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, WIDTH // 2)(x, x))
    return layers.LayerNormalization(name=name)(x + layers.Dense(WIDTH, "gelu")(x))


class Block(layers.Layer):
    """A block of which the parts are connected by Python code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, WIDTH // 2)
        self.mix = layers.Dense(WIDTH, "gelu")

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.mix.build(input_shape)

    def call(self, x):
        x = x + self.attention(x, x)
        return x + self.mix(x)


def python_block(x, name):
    return Block(name=name)(x)


class Encoder(layers.Layer):
    """Several of them, as KerasHub has them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(name=f"inner{number}") for number in (1, 2, 3)]
        self.norm = layers.LayerNormalization()

    def build(self, input_shape):
        for part in (*self.blocks, self.norm):
            part.build(input_shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def patches(x):
    return layers.LayerNormalization()(layers.Conv2D(WIDTH, 2, 2, name="patches")(x))


def conv_tokenizer(x):
    """A convolution and a pooling per resolution, as in compact convolutional transformers."""
    x = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu")(x))
    return layers.Conv2D(WIDTH, 3, padding="same", activation="relu")(x)


def convnet(x):
    """A network of convolutions, of which the tokens are the last map."""
    for _ in range(2):
        x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    return patches(layers.ReLU(name="map")(x))


def in_blocks(x, unit=attention_unit):
    for number in (1, 2, 3):
        x = unit(x, name=f"block{number}")
    return x


def transformer(embed=patches, body=in_blocks, end="mean"):
    """A vision transformer of three blocks for images `(8, 8, 3)`."""
    inputs = keras.Input(tiny.SHAPE)
    x = embed(inputs)
    x = layers.Reshape((-1, WIDTH))(x)
    if end == "token":
        x = layers.ZeroPadding1D((1, 0))(x)
    x = body(x)
    if end == "token":
        x = layers.Identity(name="vector")(layers.LayerNormalization(name="norm")(x)[:, 0])
    elif end == "others":
        x = layers.GlobalAveragePooling1D(name="vector")(x[:, 1:])
    else:
        x = layers.GlobalAveragePooling1D(name="vector")(x)
    return keras.Model(inputs, layers.Dense(tiny.CLASSES, name="out")(x), name="transformer")


def pyramid(x):
    """Half as many tokens after each block but the last."""
    x = attention_unit(x, name="block1")
    for number in (2, 3):
        x = layers.AveragePooling1D(2)(x)
        x = attention_unit(attention_unit(x, name=f"early{number}"), name=f"block{number}")
    return x


BLOCKS = ["block1", "block2", "block3"]
PROPOSED = {
    "before normalization": (transformer, BLOCKS),
    "behind it": (
        lambda: transformer(body=functools.partial(in_blocks, unit=post_normalized)),
        BLOCKS,
    ),
    # The last block includes what every path passes behind it.
    "class token": (lambda: transformer(end="token"), ["block1", "block2", "norm"]),
    "mean of the patches": (lambda: transformer(end="others"), BLOCKS),
    "convolutional tokenizer": (lambda: transformer(conv_tokenizer), BLOCKS),
    "behind a convolutional network": (lambda: transformer(convnet), ["map", "block3"]),
    "fewer and fewer tokens": (lambda: transformer(body=pyramid), BLOCKS),
    "blocks of Python code": (
        lambda: transformer(body=functools.partial(in_blocks, unit=python_block)),
        BLOCKS,
    ),
    "an encoder of Python code": (
        lambda: transformer(body=Encoder(name="encoder")),
        ["encoder/inner1", "encoder/inner2", "encoder"],
    ),
}


@pytest.mark.parametrize("name", PROPOSED)
def test_the_blocks_of_a_transformer_are_proposed(name):
    """And neither the patch embedding, nor the class token by itself."""
    make, expected = PROPOSED[name]
    model = make()
    found = taps.suggest(model)
    assert list(found) == [*expected, "vector", "out"]
    images, _ = tiny.data(2)
    read = taps.extractor(model, list(found))(images)
    assert {tap: tuple(read[tap].shape[1:]) for tap in found} == {
        tap: shape[1:] for tap, shape in found.items()
    }
    np.testing.assert_allclose(read["logits"], model(images), rtol=1e-5, atol=1e-6)
    assert taps.at_spots(model, "stages+pooled") == [*expected, "vector"]
    # All blocks have as many tokens: the middle one; of several resolutions the second.
    assert taps.at_spots(model, "hint") == expected[1:2]


def test_what_lies_in_layers_of_python_code_is_listed_and_read_but_not_cut():
    model = transformer(body=Encoder(name="encoder"))
    found = taps.of(model)
    inside = [tap for tap in found if tap.startswith("encoder/")]
    parts = ["", "/attention", "/mix"]
    expected = [f"encoder/inner{number}{part}" for number in (1, 2, 3) for part in parts]
    # What is inside of Keras' own layers, the projections of an attention, is no tap.
    assert inside == [*expected, "encoder/norm"] and found["encoder/inner1"] is None
    images, _ = tiny.data(2)
    read = taps.extractor(model, inside)(images)
    one = model.get_layer("encoder").blocks[1]
    np.testing.assert_allclose(one(read["encoder/inner1"]), read["encoder/inner2"], rtol=1e-5)
    with pytest.raises(UsageError, match="'encoder/inner2' .* can be read, but not cut"):
        taps.segment(model, "encoder/inner2")
    with pytest.raises(UsageError, match="no tap 'encoder/inner9'"):
        taps.segment(model, "encoder/inner9")
    assert taps.around_relu(model, "encoder/inner2") == ("encoder/inner2",) * 2
    assert taps.normalization_at(model, "encoder/inner2") is None


def test_blocks_at_equal_distances_are_paired_with_stages():
    """`suggest` names the units of the zoo's transformers too, its stages are every second."""
    teacher = tfkd.models.create("vit_mini", tiny.CLASSES, tiny.SHAPE)
    units = [tap for tap, shape in taps.suggest(teacher).items() if len(shape) == 3]
    stages = ["stage1", "stage2", "stage3"]
    assert taps.at_spots(teacher, "stages") == stages == [*units[1::2][:2], "stage3"]
    assert units == [f"stage{i}{end}" for i in (1, 2, 3) for end in ("_unit1_output", "")][:-1] + [
        "final_norm"
    ]
    student = tiny.model()
    assert taps.suggest_pairs(student, teacher) == [("stage1", "stage1"), ("stage2", "stage3")]
    expected = [("block1", "stage1"), ("block3", "stage2")]
    assert taps.suggest_pairs(transformer(), student) == expected


@pytest.mark.slow
@pytest.mark.parametrize("teaches", ["transformer", "convolutions"])
def test_a_transformer_and_a_convolutional_network_teach_each_other(teaches):
    """Each loss of features falls, and the student that is exported is plain."""
    keras.utils.set_random_seed(0)
    models = [transformer(end="token"), tiny.model(seed=1)]
    teacher, student = models if teaches == "transformer" else models[::-1]
    pairs = taps.suggest_pairs(student, teacher)
    weights = {"fitnet": 1.0, "at": 1e4}
    losses = [tfkd.losses.get(name, spots=pairs, weight=weights[name]) for name in weights]
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    parameters, before = student.count_params(), tiny.values(teacher.variables)
    logs = distiller.fit(*tiny.data(), batch_size=32, epochs=15, shuffle=False, verbose=0).history
    for loss in losses:
        first, *_, last = logs[f"{loss.name}_loss"]
        assert last < 0.9 * first, (loss.name, first, last)
    tiny.assert_equal(tiny.values(teacher.variables), before)
    assert distiller.student.count_params() == parameters


@pytest.mark.slow
def test_blocks_of_keras_hub():
    hub = pytest.importorskip("keras_hub", reason="an extra of tfkd")
    arguments = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    backbone = hub.models.ViTBackbone(image_shape=(32, 32, 3), patch_size=(8, 8), **arguments)
    model = hub.models.ViTImageClassifier(backbone=backbone, num_classes=5, pooling="token")
    *blocks, pooled, logits = taps.suggest(model).items()
    assert [tap.split("/")[1:] for tap, _ in blocks] == [
        ["vit_encoder", "transformer_block_1"],
        ["vit_encoder", "transformer_block_2"],
        ["vit_encoder"],
    ]
    assert [shape for _, shape in (*blocks, pooled, logits)] == [
        *[(None, 17, 16)] * 3,
        (None, 16),
        (None, 5),
    ]
    assert {tap for tap, _ in blocks} < set(taps.of(model))
    student = tfkd.models.create("resnet8", 5, (32, 32, 3))
    distiller = tfkd.KnowledgeDistiller(student, model, ["at", "fitnet", "rkd"])
    distiller.compile("sgd")
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    logs = distiller.train_on_batch(images, np.arange(8) % 5, return_dict=True)
    assert np.isfinite(logs["loss"]) and logs["at_loss"] > 0 and logs["fitnet_loss"] > 0
