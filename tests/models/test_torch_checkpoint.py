"""PyTorch weights: mapping, files and mistakes."""

import argparse
import collections
import sys
import types

import keras
import numpy as np
import pytest
import zoo

from tfkd import models
from tfkd.errors import UsageError
from tfkd.models import families, torch_checkpoint


@pytest.fixture
def model():
    return models.create("resnet8", num_classes=10, input_shape=(8, 8, 3), seed=0)


def _holds(model, state):
    """Whether the model holds a resnet8's state, looking at one weight of each kind."""
    stem, norm, dense = (model.get_layer(name) for name in ("stem_conv", "stem_norm", "logits"))
    pairs = [
        (stem.kernel, state["conv1.weight"].transpose(2, 3, 1, 0)),
        (norm.gamma, state["bn1.weight"]),
        (norm.beta, state["bn1.bias"]),
        (norm.moving_mean, state["bn1.running_mean"]),
        (norm.moving_variance, state["bn1.running_var"]),
        (dense.kernel, state["fc.weight"].T),
        (dense.bias, state["fc.bias"]),
        (
            model.get_layer("stage2_unit1_shortcut_conv").kernel,
            state["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0),
        ),
    ]
    return all(np.array_equal(variable, value) for variable, value in pairs)


def test_layouts(model):
    state = zoo.torch_state(model)
    assert models.load_torch_weights(model, state) is model
    assert _holds(model, state)


def test_layouts_of_depthwise_and_grouped_kernels():
    model = models.create("shufflenet_v1", num_classes=10, input_shape=(8, 8, 3), seed=0)
    state = zoo.torch_state(model)
    models.load_torch_weights(model, state)
    depthwise = np.array(model.get_layer("stage1_unit2_depthwise_conv").kernel)
    grouped = np.array(model.get_layer("stage1_unit2_reduce_conv").kernel)
    assert depthwise[2, 1, 30, 0] == state["layer1.1.conv2.weight"][30, 0, 2, 1]
    # Output 45 of 60 is the sixth of the third group of twenty.
    assert grouped[2, 7, 5] == state["layer1.1.conv1.weight"][45, 7, 0, 0]


@pytest.mark.parametrize(
    "identifier",
    [
        *(name for name in zoo.FAMILY_IDS if name not in zoo.WITHOUT_PYTORCH),
        "vgg19",
        "resnet8x4",
    ],
)
def test_every_model_is_of_one_family_and_names_are_unique(identifier):
    model = zoo.model(identifier)
    layers = [layer for layer in model.layers if layer.weights]
    fitting = [
        family
        for family in families.FAMILIES
        if all(torch_checkpoint._module_name(family.TORCH_NAMES, layer.name) for layer in layers)
    ]
    assert [identifier in family.MODELS for family in fitting] == [True]
    modules = torch_checkpoint.torch_names(model)
    assert len(set(modules.values())) == len(modules) == len(layers)
    wanted = torch_checkpoint._wanted(model)
    assert {id(variable) for _, variable in wanted.values()} == {id(v) for v in model.variables}


def test_published_names_of_networks_without_golden_outputs():
    vgg = torch_checkpoint.torch_names(zoo.model("vgg19"))
    assert vgg["stem_conv2"] == "block0.3"
    assert vgg["stage4_norm4"] == "block4.10"
    assert vgg["logits"] == "classifier"
    resnet50 = torch_checkpoint.torch_names(zoo.model("resnet50"))
    assert resnet50["stage3_unit6_norm3"] == "layer3.5.bn3"
    assert resnet50["stage4_unit1_projection_conv"] == "layer4.0.shortcut.0"
    assert resnet50["logits"] == "linear"
    resnet18 = torch_checkpoint.torch_names(zoo.model("resnet18_imagenet"))
    assert resnet18["stage2_unit1_downsample_norm"] == "layer2.0.downsample.1"
    mobilenet = torch_checkpoint.torch_names(zoo.model("mobilenet_v1"))
    assert mobilenet["stage3_unit6_pointwise_norm"] == "model.11.4"


def test_wrappers_prefixes_and_counters_are_understood(model):
    state = zoo.torch_state(model)
    saved = {f"module.{name}": value for name, value in state.items()}
    saved["module.bn1.num_batches_tracked"] = np.int64(7)
    for number, source in enumerate([saved, {"epoch": 240, "model": saved}, {"state_dict": saved}]):
        fresh = models.create("resnet8", 10, input_shape=(8, 8, 3), seed=number)
        assert _holds(models.load_torch_weights(fresh, source), state)
    ordered = {"model": {"state_dict": collections.OrderedDict(saved)}}
    assert _holds(models.load_torch_weights(model, ordered), state)


def test_reloaded_and_renamed_models_are_recognised(tmp_path):
    model = models.create("resnet8", 10, input_shape=(8, 8, 3), name="teacher of mine")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    state = zoo.torch_state(model)
    assert _holds(models.load_torch_weights(loaded, state), state)


def test_all_differences_are_listed_and_nothing_changes(model):
    state = zoo.torch_state(model)
    del state["bn1.weight"], state["layer3.0.conv2.weight"]
    state["fc.weight"] = state["fc.weight"].T
    state["fc.bias"] = "nonsense"
    state["layer4.0.conv1.weight"] = np.zeros((3, 3))
    state["classifier.bias"] = np.zeros(10)
    before = zoo.weights(model)
    with pytest.raises(UsageError) as caught:
        models.load_torch_weights(model, state)
    assert str(caught.value) == (
        "The PyTorch weights do not fit model 'resnet8': "
        "missing: bn1.weight, layer3.0.conv2.weight; "
        "unexpected: layer4.0.conv1.weight, classifier.bias; "
        "wrong: fc.weight is (64, 10) instead of (10, 64), fc.bias is not an array of numbers."
    )
    after = zoo.weights(model)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_weights_of_another_depth_do_not_fit(model):
    deeper = models.create("resnet14", num_classes=10, input_shape=(8, 8, 3))
    with pytest.raises(UsageError, match="unexpected: layer1.1.conv1.weight"):
        models.load_torch_weights(model, zoo.torch_state(deeper))
    with pytest.raises(UsageError, match="missing: layer1.1.conv1.weight"):
        models.load_torch_weights(deeper, zoo.torch_state(model))


def test_other_models_are_refused():
    image = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(image)
    foreign = keras.Model(image, keras.layers.Dense(3)(flat), name="foreign")
    lookalike = keras.Model(image, keras.layers.PReLU(name="logits")(flat), name="lookalike")
    empty = keras.Model(image, flat, name="empty")
    for model in (foreign, lookalike, empty):
        with pytest.raises(UsageError, match=f"'{model.name}' is none of tfkd.models"):
            models.load_torch_weights(model, {})
    with pytest.raises(UsageError, match="model must be a keras.Model"):
        models.load_torch_weights("resnet8", {})


@pytest.mark.parametrize("extension", ["pth", "pt", "safetensors"])
def test_missing_package(model, tmp_path, monkeypatch, extension):
    for module in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"weights.{extension}"
    path.write_bytes(b"anything")
    with pytest.raises(UsageError, match=r"not installed .*pip install tfkd\[torch\]"):
        models.load_torch_weights(model, path)


@pytest.mark.parametrize("version", ["2.5.1", "2.9.1+cpu", "1.13.0"])
def test_a_torch_whose_weights_only_can_be_deceived(model, tmp_path, monkeypatch, version):
    def load(*_, **__):
        raise AssertionError("It must not be asked to read the file.")

    old = types.SimpleNamespace(__version__=version, load=load, serialization=None)
    monkeypatch.setitem(sys.modules, "torch", old)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"anything")
    _assert_one_line_about(model, path, r"a file can make .* run code.*pip install tfkd\[torch\]")


def test_missing_file_and_wrong_sources(model, tmp_path):
    with pytest.raises(UsageError, match=r"There is no file '.*none\.pth'"):
        models.load_torch_weights(model, tmp_path / "none.pth")
    with pytest.raises(UsageError, match=r"must end in one of \.pth, \.pt, \.safetensors"):
        models.load_torch_weights(model, str(tmp_path / "weights.h5"))
    with pytest.raises(UsageError, match="source must be a state dict .* received int"):
        models.load_torch_weights(model, 3)


def test_safetensors_file(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = zoo.torch_state(model)
    path = tmp_path / "weights.safetensors"
    safetensors.save_file({f"module.{name}": value for name, value in state.items()}, path)
    assert _holds(models.load_torch_weights(model, path), state)


@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_damaged_safetensors_file(model, tmp_path, content):
    pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    _assert_one_line_about(model, path, "may be damaged")


def _assert_one_line_about(model, path, words):
    before = zoo.weights(model)
    with pytest.raises(UsageError, match=words) as caught:
        models.load_torch_weights(model, path)
    assert path.name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    after = zoo.weights(model)
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("new_format", [True, False])
def test_pth_file(model, tmp_path, new_format):
    torch = pytest.importorskip("torch")
    state = zoo.torch_state(model)
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    # As the CRD benchmark's training script saves it.
    content = {"opt": argparse.Namespace(lr=0.05), "model": tensors, "accuracy": 75.6}
    path = tmp_path / "teacher.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    assert _holds(models.load_torch_weights(model, path), state)


def test_tensors_of_half_precision(model):
    torch = pytest.importorskip("torch")
    state = {name: np.round(value * 4) for name, value in zoo.torch_state(model).items()}
    tensors = {
        name: torch.nn.Parameter(torch.from_numpy(value).bfloat16())
        for name, value in state.items()
    }
    assert _holds(models.load_torch_weights(model, tensors), state)


def test_damaged_and_foreign_pth_files(model, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    for content in (b"", b"garbage" * 50):
        path.write_bytes(content)
        _assert_one_line_about(model, path, "may be damaged")
    torch.save({name: torch.zeros(50) for name in "abcdef"}, path)
    path.write_bytes(path.read_bytes()[:1000])
    _assert_one_line_about(model, path, "may be damaged")
    torch.save(torch.nn.Linear(2, 2), path)
    _assert_one_line_about(model, path, "something other than tensors")
    torch.save(torch.zeros(3), path)
    _assert_one_line_about(model, path, r"holds a Tensor, not a state dict")
