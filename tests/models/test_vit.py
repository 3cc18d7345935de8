"""Vision transformers against the paper's equations, written out in NumPy."""

import math

import keras
import numpy as np
import pytest
import zoo

from tfkd import models
from tfkd.errors import UsageError

erf = np.vectorize(math.erf)


def normalized(x, layer):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * np.array(layer.gamma) + np.array(layer.beta)


def attended(x, layer):
    query, key, value = (
        np.einsum("btf,fhk->bhtk", x, np.array(dense.kernel)) + np.array(dense.bias)[:, None]
        for dense in (layer.query_dense, layer.key_dense, layer.value_dense)
    )
    scores = np.exp(query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1]))
    heads = scores / scores.sum(-1, keepdims=True) @ value
    output = layer.output_dense
    return np.einsum("bhtk,hkf->btf", heads, np.array(output.kernel)) + np.array(output.bias)


def dense(x, layer):
    return x @ np.array(layer.kernel) + np.array(layer.bias)


@pytest.mark.parametrize("class_token", [True, False])
def test_equations(class_token):
    """An image of which the last patches are filled up with zeros."""
    arguments = {"patch_size": 3, "class_token": class_token, "seed": 0}
    model = models.create("vit_mini", 5, (8, 9, 2), **arguments)
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign_add(random.normal(0, 0.1, weight.shape))
    image = zoo.images((8, 9, 2))
    padded = np.pad(image, ((0, 0), (0, 1), (0, 0), (0, 0)))
    patches = [
        padded[:, row : row + 3, column : column + 3].reshape(2, -1)
        for row in (0, 3, 6)
        for column in (0, 3, 6)
    ]
    stem = model.get_layer("stem")
    x = np.stack(patches, 1) @ np.array(stem.kernel)
    if class_token:
        x = np.concatenate([np.zeros((2, 1, 64)), x], 1)
    x = x + np.array(stem.bias)
    for stage in (1, 2, 3):
        for unit in (1, 2):
            layer = {
                name: model.get_layer(f"stage{stage}_unit{unit}_{name}")
                for name in ("norm1", "attention", "norm2", "expand", "project")
            }
            x = x + attended(normalized(x, layer["norm1"]), layer["attention"])
            hidden = dense(normalized(x, layer["norm2"]), layer["expand"])
            hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
            x = x + dense(hidden, layer["project"])
    x = normalized(x, model.get_layer("final_norm"))
    x = x[:, 0] if class_token else x.mean(1)
    found = keras.Model(model.input, [model.get_layer("pooled").output, model.output])(image)
    for one, expected in zip(found, (x, dense(x, model.get_layer("logits")))):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)


def test_the_published_size():
    """5,717,416 parameters of ViT-Ti for 1,000 classes of 224x224: here without two biases."""
    tokens, width = 14 * 14 + 1, 192
    unit = 4 * (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width + 4 * width
    published = (16 * 16 * 3 + 1) * width + width + tokens * width
    published += 12 * unit + 2 * width + (width + 1) * 1000
    assert published == 5_717_416
    model = models.create("vit_tiny", 1000, (224, 224, 3), patch_size=16)
    assert model.count_params() == published - 2 * width


def test_projections_of_an_attention_start_apart_and_by_the_seed():
    first, second, other = (
        models.create("vit_mini", 5, (8, 8, 1), seed=seed).get_layer("stage1_unit1_attention")
        for seed in (1, 1, 2)
    )
    kernels = [
        np.ravel(getattr(layer, f"{part}_dense").kernel)
        for layer in (first, other)
        for part in ("query", "key", "value", "output")
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == 8
    deviation = math.sqrt(2 / (64 + 64))
    np.testing.assert_allclose([kernel.std() for kernel in kernels], deviation, rtol=0.1)
    for one, same in zip(first.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(one, same)


def test_arguments():
    with pytest.raises(UsageError, match="patch_size must be a whole number greater than 0"):
        models.create("vit_mini", 5, patch_size=0)
    with pytest.raises(UsageError, match="class_token must be True or False; received 1"):
        models.create("vit_mini", 5, class_token=1)
    assert models.create("convnext_mini", 5, patch_size=4).get_layer("stem").output.shape[1] == 8
    with pytest.raises(UsageError, match="patch_size must be a whole number"):
        models.create("convnext_mini", 5, patch_size=1.5)
