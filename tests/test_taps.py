import keras
import numpy as np
import pytest
import tiny
from keras import layers

from tfkd import models, taps
from tfkd.errors import UsageError


def nested():
    """A tiny backbone inside a model, as transfer learning makes them."""
    backbone = tiny.model(name="backbone")
    inputs = keras.Input(tiny.SHAPE)
    outputs = layers.Dense(3, name="head")(backbone(layers.Rescaling(2.0)(inputs), training=False))
    return keras.Model(inputs, outputs, name="nested")


def test_zoo_taps_are_the_named_ones():
    found = taps.of(models.create("resnet8", num_classes=10))
    assert found == {
        "stem": (None, 32, 32, 16),
        "stage1": (None, 32, 32, 16),
        "stage2": (None, 16, 16, 32),
        "stage3": (None, 8, 8, 64),
        "pooled": (None, 64),
        "logits": (None, 10),
    }


def test_every_layer_of_another_model_is_a_tap_inside_nested_models_too():
    found = taps.of(nested())
    assert found["backbone/stage1"] == (None, 8, 8, 4)
    assert found["backbone/pooled"] == (None, 8)
    assert found["backbone"] == (None, tiny.CLASSES)
    assert list(found)[-1] == "head"


def test_operations_that_are_no_layers_and_second_calls_are_taps():
    inputs = keras.Input((4, 4, 2))
    shared = layers.Conv2D(2, 1, name="shared")
    model = keras.Model(inputs, layers.Flatten()(shared(shared(inputs)) + 1.0))
    found = list(taps.of(model))
    assert found[:2] == ["shared", "shared:1"] and found[2].startswith("add")
    x = np.ones((1, 4, 4, 2), "float32")
    read = taps.extractor(model, ["shared", "shared:1"])(x)
    np.testing.assert_allclose(read["shared:1"], shared(shared(x)), rtol=1e-6)


@pytest.mark.parametrize("make", [tiny.model, nested, tiny.Subclassed])
def test_extractor_gives_the_models_own_logits(make):
    model = make()
    x, _ = tiny.data(3)
    expected = model(x)
    tap = {tiny.model: "stage1", nested: "backbone/stage1", tiny.Subclassed: "body"}[make]
    read = taps.extractor(model, [tap])(x)
    assert set(read) == {tap, "logits"}
    np.testing.assert_array_equal(read["logits"], expected)
    assert read[tap].shape == (3, 8, 8, 4)


def test_extractor_reads_the_tensor_that_the_layer_makes():
    model = tiny.model()
    x, _ = tiny.data(3)
    expected = keras.Model(model.input, model.get_layer("stage1").output)(x)
    np.testing.assert_array_equal(taps.extractor(model, ["stage1"])(x)["stage1"], expected)


def test_reading_a_subclassed_model_leaves_it_as_it_was():
    model = tiny.Subclassed()
    x, _ = tiny.data(3)
    before = dict(vars(model.body))
    features = taps.extractor(model, ["body"])(x)["body"]
    assert "call" not in vars(model.body) and set(before) <= set(vars(model.body))
    np.testing.assert_array_equal(features, model.body(x))


def test_training_mode_reaches_nested_layers():
    model = nested()
    x, _ = tiny.data(8)
    read = taps.extractor(model, ["backbone/stage1"])
    np.testing.assert_allclose(
        read(x, training=True)["logits"], model(x, training=True), rtol=1e-5, atol=1e-6
    )
    difference = np.abs(read(x, training=True)["logits"] - read(x, training=False)["logits"])
    assert difference.max() > 1e-3


def test_a_wrong_name_says_which_names_exist():
    with pytest.raises(UsageError, match=r"no tap 'stage9'; it has stem, stage1, stage2, pooled"):
        taps.extractor(tiny.model(), ["stage9"])
    subclassed = tiny.Subclassed()
    subclassed(tiny.data(1)[0])
    with pytest.raises(UsageError, match=r"no tap 'neck'; it has body, pool, head"):
        taps.extractor(subclassed, ["neck"])
    with pytest.raises(UsageError, match="no tap 'backbone/stage9'"):
        taps.extractor(nested(), ["backbone/stage9"])


def test_segments_share_weights_and_compose_to_the_model():
    model = tiny.model()
    x, _ = tiny.data(3)
    first = taps.segment(model, end="stage1")
    middle = taps.segment(model, "stage1", "stage2")
    last = taps.segment(model, "stage2")
    np.testing.assert_allclose(last(middle(first(x))), model(x), rtol=1e-5, atol=1e-6)
    own = {id(variable) for variable in model.variables}
    parts = [variable for part in (first, middle, last) for variable in part.variables]
    assert {id(variable) for variable in parts} == own and len(parts) == len(own)


def test_segments_reach_into_nested_models():
    model = nested()
    x, _ = tiny.data(3)
    first = taps.segment(model, end="backbone/stage1")
    rest = taps.segment(model, "backbone/stage1")
    np.testing.assert_allclose(rest(first(x)), model(x), rtol=1e-5, atol=1e-6)


def test_segments_that_cannot_be_cut_say_why():
    with pytest.raises(UsageError, match="subclassed"):
        taps.segment(tiny.Subclassed(), end="body")
    model = tiny.model()
    inside_a_branch = next(
        layer.name for layer in model.layers[4:] if isinstance(layer, layers.Conv2D)
    )
    with pytest.raises(UsageError, match="cannot be cut .* proposes stage1, stage2, pooled"):
        taps.segment(model, inside_a_branch, "stage2")


@pytest.mark.parametrize("seed", [0, None])
def test_copies_differ_from_the_model_and_each_other_and_leave_it_as_it_is(seed):
    keras.utils.set_random_seed(0)
    model = models.create("resnet8", 5, (8, 8, 3), seed=seed)
    config, before = model.get_config(), tiny.values(model.variables)
    rest = taps.segment(model, "stage2")
    found = taps.copies(model, "stage2", 2, taps=["pooled"])
    again = taps.copies(model, "stage2", 2, taps=["pooled"])
    assert [copy.name for copy in found] == ["branch2", "branch3"]
    features = np.random.default_rng(0).normal(size=rest.input.shape[1:])[None].astype("float32")
    outputs = [copy(features) for copy in found]
    assert [list(one) for one in outputs] == [["pooled", "logits"]] * 2
    kernels = [one.get_weights()[0] for one in (rest, *found)]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    spreads = [kernel.std() for kernel in kernels]
    np.testing.assert_allclose(spreads, spreads[0], rtol=0.1)
    for one, other in zip(found, again):
        assert one.count_params() == rest.count_params()
        # Without a seed of its own a layer draws other numbers.
        equal = np.array_equal(one.get_weights()[0], other.get_weights()[0])
        assert equal == (seed is not None)
    # A copy with the model's weights computes what it does.
    found[0].set_weights(rest.get_weights())
    np.testing.assert_allclose(found[0](features)["logits"], rest(features), rtol=1e-5, atol=1e-6)
    assert model.get_config() == config
    tiny.assert_equal(tiny.values(model.variables), before)


def test_copies_reach_into_nested_models_and_say_what_cannot_be_copied():
    (copy,) = taps.copies(nested(), "backbone/stage1")
    rest = taps.segment(nested(), "backbone/stage1")
    assert copy.count_params() == rest.count_params()
    inputs = keras.Input(tiny.SHAPE)

    class Secret(layers.Layer):
        def __init__(self, key):
            super().__init__()
            self.key = key

        def call(self, x):
            return self.key * x

    x = layers.Flatten()(layers.ReLU(name="cut")(layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, layers.Dense(5)(Secret(2.0)(x)))
    with pytest.raises(UsageError, match=r"Layer .secret. .* cannot be made again from its"):
        taps.copies(model, "cut")


def test_suggest_finds_the_last_bottleneck_of_each_resolution():
    model = keras.applications.MobileNetV2(
        input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None
    )
    found = taps.suggest(model)
    sizes = [shape[1] for shape in found.values() if len(shape) == 4]
    assert sizes == [32, 16, 8, 4, 2]
    *_, pooled, logits = found
    assert pooled.startswith("global_average_pooling2d") and logits == "predictions"
    for tap in found:
        if len(found[tap]) == 4:
            taps.segment(model, tap)


def test_suggest_skips_branches_paddings_and_dropout():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    a = layers.Conv2D(4, 3, padding="same", name="branch")(x)
    x = layers.Add(name="joined")([x, a])
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(8, 3, strides=2, name="down")(x)
    x = layers.GlobalAveragePooling2D(name="vector")(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    assert list(taps.suggest(model)) == ["joined", "down", "vector", "out"]


def test_layers_of_a_kind_are_found_in_nested_models_too():
    model = nested()
    found = taps.of_kind(model, layers.BatchNormalization)
    inside = model.get_layer("backbone").layers
    kind = layers.BatchNormalization
    assert {id(layer) for _, layer in found} == {id(x) for x in inside if isinstance(x, kind)}
    assert all(path == f"backbone/{layer.name}" for path, layer in found)
    assert taps.of_kind(tiny.Subclassed(), layers.Dense) == []


def test_spots_by_name():
    model = models.create("vgg8", num_classes=10)
    assert taps.at_spots(model, "stages") == ["stage1", "stage2", "stage3", "stage4"]
    assert taps.at_spots(model, "hint") == ["stage2"]
    assert taps.at_spots(model, "last_map") == ["stage4"]
    assert taps.at_spots(model, "pooled") == ["pooled"]
    assert taps.at_spots(model, "logits") == ["logits"]
    assert taps.at_spots(model, "last_two_maps+pooled") == ["stage3", "stage4", "pooled"]
    assert taps.at_spots(model, "after_relu") == taps.at_spots(model, "stages")
    assert taps.at_spots(model, "before_relu")[-1] == "stage4_norm1"
    wide = models.create("wrn_16_1", num_classes=10)
    assert taps.at_spots(wide, "last_map") == ["stage3"]
    assert taps.at_spots(wide, "before_pooling") == ["final_relu"]


@pytest.mark.parametrize(
    "name, tap, before, after, normalization",
    [
        ("resnet8", "stage2", "stage2_unit1_add", "stage2", "stage2_unit1_norm2"),
        ("resnet14", "stage1", "stage1_unit2_add", "stage1", "stage1_unit2_norm2"),
        ("vgg8", "stage1", "stage1_norm1", "stage1", "stage1_norm1"),
        ("wrn_16_1", "stage1", "stage2_unit1_norm1", "stage2_unit1_relu1", "stage2_unit1_norm1"),
        ("wrn_16_1", "stage3", "final_norm", "final_relu", "final_norm"),
        ("shufflenet_v1", "stage1", "stage1_unit4_add", "stage1", "stage1_unit4_expand_norm"),
        # Bottlenecks without a ReLU, and a shuffle of half of it.
        ("mobilenet_v2", "stage4", "stage4", "stage4", "group7_unit1_project_norm"),
        ("shufflenet_v2", "stage1", "stage1", "stage1", None),
    ],
)
def test_the_last_relu_of_a_stage_and_the_normalization_before_it(
    name, tap, before, after, normalization
):
    model = models.create(name, num_classes=10)
    assert taps.around_relu(model, tap) == (before, after)
    found = taps.normalization_at(model, before)
    if normalization is None:
        assert found is None
    else:
        layer = model.get_layer(normalization)
        assert found.gamma is layer.gamma and found.beta is layer.beta


def test_the_last_relu_of_other_models():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, name="linear")(inputs)
    x = layers.Activation("relu", name="active")(x)
    x = keras.ops.relu(layers.Conv2D(3, 1, name="other")(x))
    x = layers.Conv2D(3, 1, name="branches")(x)
    outputs = layers.Flatten()(layers.ReLU(name="used")(x) + x)
    model = keras.Model(inputs, outputs)
    assert taps.around_relu(model, "active") == ("linear", "active")
    before, after = taps.around_relu(model, "other")
    assert before == "other" and after.startswith("relu")
    assert taps.around_relu(model, "branches") == ("branches", "branches")
    assert taps.around_relu(model, "linear") == ("linear", "active")
    assert taps.normalization_at(model, "linear") is None
    assert taps.around_relu(tiny.Subclassed(), "body") == ("body", "body")
    assert taps.normalization_at(tiny.Subclassed(), "body") is None
    with pytest.raises(UsageError, match="no tap 'stage9'"):
        taps.around_relu(model, "stage9")


def test_the_classifier_is_the_models_own_layer():
    model = tiny.model(dropout=0.5)
    found = taps.classifier(model)
    assert found.kernel is model.get_layer("logits").kernel
    assert found.bias is model.get_layer("logits").bias
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Activation("linear", dtype="float32")(tiny.model(name="inside")(inputs))
    outer = keras.Model(inputs, outputs)
    assert taps.classifier(outer).kernel.shape == (8, tiny.CLASSES)
    assert taps.at_spots(outer, "before_pooling") == ["inside/stage2"]


@pytest.mark.parametrize(
    "ending, message",
    [
        (lambda x: layers.Flatten()(x), r"it ends with 'map' \(Conv2D\)"),
        (lambda x: layers.Dense(3)(layers.Flatten()(x)), r"dense layer follows 'map' \(Conv2D\)"),
        (
            lambda x: layers.Dense(3)(layers.Dense(4)(layers.GlobalAveragePooling2D()(x))),
            "dense layer follows 'dense",
        ),
    ],
)
def test_a_model_without_pooled_vector_and_dense_layer_has_no_classifier(ending, message):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, ending(layers.Conv2D(3, 1, name="map")(inputs)))
    with pytest.raises(UsageError, match=message):
        taps.classifier(model)
    with pytest.raises(UsageError, match="it is subclassed"):
        taps.classifier(tiny.Subclassed())


def test_a_spot_that_is_not_there():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    with pytest.raises(UsageError, match="no place that would serve as 'stages'"):
        taps.at_spots(model, "stages")


def test_several_outputs_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(UsageError, match="2 outputs"):
        taps.of(model)


def test_taps_in_the_order_of_computation():
    model = tiny.model()
    names = ["logits", "stage2", "stem", "pooled", "stage2"]
    assert taps.in_order(model, names) == ["stem", "stage2", "pooled", "logits"]
    with pytest.raises(UsageError, match="no tap 'stage9'"):
        taps.in_order(model, ["stage9"])


def test_boundaries_are_the_ends_of_stem_and_stages():
    assert taps.boundaries(tiny.model()) == ["stem", "stage1", "stage2"]
    assert taps.boundaries(nested()) == ["backbone/stage1", "backbone/stage2"]


UNITS = {
    "resnet20": ("stage1", ["stage2_unit1_output", "stage2_unit2_output", "stage2"]),
    "wrn_16_1": ("stage1", ["stage2_unit1_output", "stage2"]),
    "resnet50": ("stage3", ["stage4_unit1_output", "stage4_unit2_output", "stage4"]),
    "shufflenet_v1": ("stage2", [*[f"stage3_unit{i}_output" for i in (1, 2, 3)], "stage3"]),
    "shufflenet_v2": ("stage2", [*[f"stage3_unit{i}_output" for i in (1, 2, 3)], "stage3"]),
}


@pytest.mark.parametrize("name", list(UNITS))
def test_units_end_where_paths_join(name):
    start, expected = UNITS[name]
    assert taps.units(models.create(name, num_classes=5), start, expected[-1]) == expected


def test_units_of_a_model_without_the_zoos_names():
    """Sums by an operator, a pre-activation that follows a sum, a last convolution."""
    inputs = keras.Input((8, 8, 3))
    x = start = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    for number in (1, 2):
        y = layers.BatchNormalization(name=f"norm{number}")(x)
        y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(y))
        x = x + y
    x = layers.ReLU(name="after")(x)
    outputs = layers.Conv2D(6, 1, name="last")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(outputs))
    first, last = taps.units(model, "first", "last")
    assert first.startswith("add") and last == "last"
    assert start.shape == (None, 8, 8, 4)
    assert taps.units(model, "first", "after") == [first, "after"]


def test_units_of_a_plain_chain_are_an_error():
    with pytest.raises(UsageError, match="no residual units between 'stage1' and 'stage2'"):
        taps.units(models.create("vgg8", num_classes=5), "stage1", "stage2")
    with pytest.raises(UsageError, match="no residual units"):
        taps.units(tiny.Subclassed(), "body", "pool")
