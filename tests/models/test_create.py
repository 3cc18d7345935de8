"""`tfkd.models.create()`: arguments and seeds."""

import itertools

import keras
import numpy as np
import pytest
import zoo

from tfkd import models
from tfkd.errors import UsageError


def test_plain_functional_model_named_after_its_id():
    model = models.create("resnet8", num_classes=7)
    assert type(model).__module__.startswith("keras.")
    assert model.name == "resnet8"
    assert model.input_shape == (None, 32, 32, 3)
    assert models.create("resnet8", num_classes=7, name="student").name == "student"


def test_numpy_integers_are_integers():
    shape = tuple(np.array([9, 10, 1]))
    model = models.create("resnet8", num_classes=np.int64(7), input_shape=shape, seed=np.int32(1))
    assert model.input_shape == (None, 9, 10, 1)
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize("identifier", ["resnet7", "WRN_40_2", "", None, ["resnet8"]])
def test_unknown_id_lists_the_known_ones(identifier):
    with pytest.raises(UsageError, match=r"Unknown model .*resnet8.*wrn_40_2.*shufflenet_v2"):
        models.create(identifier, num_classes=10)


@pytest.mark.parametrize("num_classes", [1, 0, -3, 2.0, "10", None, True])
def test_bad_num_classes(num_classes):
    with pytest.raises(UsageError, match="num_classes must be an integer of at least 2"):
        models.create("resnet8", num_classes=num_classes)


@pytest.mark.parametrize(
    "shape", [(32, 32), (32, 32, 3, 1), (None, None, 3), (32, 32, 0), (32.0, 32, 3), 32, "abc"]
)
def test_bad_input_shape(shape):
    with pytest.raises(UsageError, match=r"input_shape must be \(height, width, channels\)"):
        models.create("resnet8", num_classes=10, input_shape=shape)


@pytest.mark.parametrize("shape", [(7, 32, 3), (32, 4, 3)])
def test_too_small_images(shape):
    with pytest.raises(UsageError, match="too small .* at least 8x8"):
        models.create("resnet8", num_classes=10, input_shape=shape)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_bad_seed(seed):
    with pytest.raises(UsageError, match="seed must be an integer or None"):
        models.create("resnet8", num_classes=10, seed=seed)


def test_unknown_family_argument():
    with pytest.raises(UsageError, match="'resnet8' has no argument 'width'; .* none"):
        models.create("resnet8", num_classes=10, width=2)
    # What makes a network the published one is no argument.
    with pytest.raises(UsageError, match="'resnet8' has no argument 'depth'"):
        models.create("resnet8", num_classes=10, depth=14)
    with pytest.raises(UsageError, match="'mobilenet_v2' has no argument 'alpha'; .* width"):
        models.create("mobilenet_v2", num_classes=10, alpha=1.0)


def _kernels(identifier, **arguments):
    model = models.create(identifier, num_classes=10, input_shape=(8, 8, 3), **arguments)
    return [np.array(weight) for weight in model.trainable_weights]


def _equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("identifier", ["resnet8", "vgg8"])
def test_seed_fixes_the_weights(identifier):
    first = _kernels(identifier, seed=3)
    keras.utils.set_random_seed(99)
    assert _equal(first, _kernels(identifier, seed=3, name="another"))
    assert not _equal(first, _kernels(identifier, seed=4))


@pytest.mark.parametrize("identifier", ["resnet8", "shufflenet_v1"])
def test_no_two_layers_start_alike(identifier):
    random = [kernel for kernel in _kernels(identifier, seed=3) if np.ptp(kernel) > 0]
    assert len(random) > 8
    for first, second in itertools.combinations([kernel.ravel() for kernel in random], 2):
        size = min(first.size, second.size)
        assert not np.allclose(first[:size] / np.std(first), second[:size] / np.std(second))


def test_dense_bias_is_not_its_kernel():
    model = models.create("resnet8", num_classes=64, seed=0)
    kernel, bias = (np.array(weight) for weight in model.get_layer("logits").weights)
    assert not np.any(np.all(np.isclose(kernel, bias), axis=1))


def test_a_seed_leaves_the_global_state_alone():
    keras.utils.set_random_seed(5)
    expected = np.array(keras.random.normal((3,)))
    keras.utils.set_random_seed(5)
    models.create("resnet8", num_classes=10, seed=1)
    np.testing.assert_array_equal(keras.random.normal((3,)), expected)


def test_without_a_seed_the_global_state_decides():
    keras.utils.set_random_seed(5)
    first = _kernels("resnet8")
    second = _kernels("resnet8")
    keras.utils.set_random_seed(5)
    assert _equal(first, _kernels("resnet8"))
    assert not _equal(first, second)


def test_available_lists_each_id_once():
    ids = models.available()
    assert len(ids) == len(set(ids)) == 29
    assert set(zoo.FAMILY_IDS) <= set(ids)
