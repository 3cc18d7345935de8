"""The layers that the families share, against PyTorch's definitions written out in NumPy."""

import math

import keras
import numpy as np
import pytest
import zoo

from tfkd.models.blocks import Builder, channel_shuffle, normalization


def _convolved(image, kernel, stride):
    """A 3x3 convolution with a padding of 1 on every side, position by position."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (math.ceil(size / stride) for size in image.shape[1:3])
    result = np.zeros((len(image), height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            window = padded[:, top : top + 3, left : left + 3]
            result[:, row, column] = np.einsum("bhwi,hwio->bo", window, kernel)
    return result


@pytest.mark.parametrize("size", [(6, 6), (7, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_pads_both_sides(size, stride):
    image = keras.Input((*size, 2))
    model = keras.Model(image, Builder(0).convolution(image, 5, 3, name="c", stride=stride))
    x = zoo.images((*size, 2))
    expected = _convolved(x, np.array(model.get_layer("c").kernel), stride)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 6), (7, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_pads_both_sides(size, stride):
    image = keras.Input((*size, 2))
    model = keras.Model(image, Builder(0).depthwise_convolution(image, name="d", stride=stride))
    x = zoo.images((*size, 2))
    kernel = np.array(model.get_layer("d").kernel)
    full = np.zeros((3, 3, 2, 2))
    for channel in range(2):
        full[:, :, channel, channel] = kernel[:, :, channel, 0]
    np.testing.assert_allclose(model(x), _convolved(x, full, stride), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [6, 7])
def test_pointwise_convolution_with_stride_takes_every_second_pixel(size):
    image = keras.Input((size, size, 3))
    model = keras.Model(image, Builder(0).convolution(image, 4, 1, name="c", stride=2))
    x = zoo.images((size, size, 3))
    expected = x[:, ::2, ::2] @ np.array(model.get_layer("c").kernel)[0, 0]
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_grouped_convolution_is_that_of_keras():
    image = keras.Input((3, 4, 6))
    ours = keras.Model(image, Builder(0).grouped_convolution(image, 9, 3, name="g"))
    theirs = keras.Sequential([image, keras.layers.Conv2D(9, 1, groups=3, use_bias=False)])
    kernel = np.array(ours.get_layer("g").kernel)  # (groups, in, out)
    theirs.layers[0].kernel.assign(kernel.transpose(1, 0, 2).reshape(1, 1, 2, 9))
    x = zoo.images((3, 4, 6))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_channel_shuffle_interleaves_the_groups():
    image = keras.Input((1, 1, 6))
    model = keras.Model(image, channel_shuffle(image, 3, name="s"))
    shuffled = model(np.arange(6, dtype="float32").reshape(1, 1, 1, 6))
    # Groups 01, 23 and 45: first of each, then second of each.
    np.testing.assert_array_equal(np.ravel(shuffled), [0, 2, 4, 1, 3, 5])


def test_normalization_has_the_constants_of_pytorch():
    image = keras.Input((1, 1, 1))
    model = keras.Model(image, normalization(image, name="n"))
    x = np.array([1.0, 3.0], "float32").reshape(2, 1, 1, 1)
    # Mean 2, variance 1.
    expected = 1 / math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(np.ravel(model(x, training=True)), [-expected, expected], 1e-6)
    np.testing.assert_allclose(model.get_layer("n").moving_mean, [0.2], rtol=1e-6)
    np.testing.assert_allclose(model.get_layer("n").moving_variance, [1.0], rtol=1e-6)


NORMAL = [
    # id, layer, standard deviation: sqrt(2 / (size² · filters)).
    ("resnet8", "stage3_unit1_conv2", math.sqrt(2 / (9 * 64))),
    ("resnet8", "stage3_unit1_shortcut_conv", math.sqrt(2 / 64)),
    ("resnet50", "stage1_unit1_conv3", math.sqrt(2 / 256)),
    ("resnet18_imagenet", "stem_conv", math.sqrt(2 / (49 * 64))),
    ("wrn_16_1", "stage2_unit1_conv1", math.sqrt(2 / (9 * 32))),
    ("vgg8", "stage1_conv1", math.sqrt(2 / (9 * 128))),
    ("mobilenet_v2", "group6_unit2_expand_conv", math.sqrt(2 / 480)),
    ("mobilenet_v2", "group7_unit1_depthwise_conv", math.sqrt(2 / (9 * 480))),
    ("vgg8", "logits", 0.01),
    ("mobilenet_v2", "logits", 0.01),
]
UNIFORM = [
    # id, layer, limit: 1 / sqrt(fan_in).
    ("resnet8", "logits", 1 / math.sqrt(64)),
    ("resnet50", "logits", 1 / math.sqrt(2048)),
    ("wrn_16_1", "logits", 1 / math.sqrt(64)),
    ("mobilenet_v1", "stage1_unit2_depthwise_conv", 1 / math.sqrt(9)),
    ("mobilenet_v1", "stage1_unit2_pointwise_conv", 1 / math.sqrt(128)),
    ("shufflenet_v1", "stage1_unit1_reduce_conv", 1 / math.sqrt(24)),
    ("shufflenet_v1", "stage2_unit2_reduce_conv", 1 / math.sqrt(480 / 3)),
    ("shufflenet_v1", "stage3_unit2_depthwise_conv", 1 / math.sqrt(9)),
    ("shufflenet_v2", "final_conv", 1 / math.sqrt(464)),
    ("shufflenet_v2", "logits", 1 / math.sqrt(1024)),
    ("vit_mini", "stem", 1 / math.sqrt(4 * 4 * 3)),
    ("vit_mini", "stage2_unit1_expand", math.sqrt(6 / (64 + 4 * 64))),
    ("convnext_mini", "stage3_conv", math.sqrt(6 / (4 * 64 + 4 * 128))),
    ("convnext_mini", "stage3_unit2_project", math.sqrt(6 / (4 * 128 + 128))),
]


@pytest.mark.parametrize("identifier, layer, deviation", NORMAL)
def test_normal_kernels(identifier, layer, deviation):
    kernel = np.array(zoo.model(identifier).get_layer(layer).kernel)
    assert abs(kernel.mean()) < 0.1 * deviation
    assert kernel.std() == pytest.approx(deviation, rel=0.1)
    # Not truncated: PyTorch's normal distribution has tails.
    assert np.abs(kernel).max() > 2.5 * deviation


@pytest.mark.parametrize("identifier, layer, limit", UNIFORM)
def test_uniform_kernels(identifier, layer, limit):
    kernel = np.array(zoo.model(identifier).get_layer(layer).kernel)
    assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    assert 0.95 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize("identifier, channels", [("resnet8", 64), ("shufflenet_v1", 960)])
def test_uniform_dense_biases(identifier, channels):
    bias = np.array(zoo.model(identifier).get_layer("logits").bias)
    limit = 1 / math.sqrt(channels)
    assert bias.std() == pytest.approx(limit / math.sqrt(3), rel=0.2)
    assert np.abs(bias).max() <= limit


@pytest.mark.parametrize("identifier", ["wrn_16_1", "vgg8", "mobilenet_v2"])
def test_zero_dense_biases(identifier):
    assert not np.array(zoo.model(identifier).get_layer("logits").bias).any()


def test_convolution_biases_start_at_zero():
    assert not np.array(zoo.model("vgg8").get_layer("stage1_conv1").bias).any()
