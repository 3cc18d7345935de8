"""Every case of the golden numbers: value and gradient, masked too, eager and compiled by XLA."""

import re

import golden_numbers
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.layers import Adapter
from tfkd.losses.contrastive_representation_distillation import contrastive_loss
from tfkd.losses.distillation_loss import masked_mean
from tfkd.losses.factor_transfer import factor_distance
from tfkd.losses.numerics import normalize

CASES = golden_numbers.cases("losses.npz")


def shapes(case, side):
    return [array.shape for array in taps(case, side)]


def taps(case, side):
    keys = [key for key in case if re.fullmatch(f"{side}/\\d+", key)]
    return [case[f"{side}/{index}"] for index in range(len(keys))]


def weights(case, path):
    """The arrays under `path`, in the order of the numbers or of the names given."""
    return [case[key] for key in sorted(case) if key.startswith(path)]


def built(loss, case):
    loss.build(shapes(case, "student"), shapes(case, "teacher"))
    return loss


def of_layer(loss, case):
    labels = tf.constant(case["labels"]) if "labels" in case else None

    def value(student, teacher, mask):
        return loss(student, teacher, labels=labels, sample_mask=mask, training=False)

    return value


def logits_loss(name, case):
    temperature = float(re.search(r"T([\d.]+)", name)[1])
    return of_layer(losses.get("kd", temperature=temperature), case)


def decoupled(name, case):
    alpha, beta, temperature = map(
        float, re.search(r"a([\d.]+)_b([\d.]+)_T([\d.]+)", name).groups()
    )
    return of_layer(losses.get("dkd", alpha=alpha, beta=beta, temperature=temperature), case)


def without_weights(name, case):
    return of_layer(losses.get(name.split("_")[0]), case)


def correlation(name, case):
    loss = built(losses.get("cc", embedding_size=len(case["embed_student/bias"])), case)
    set_dense(loss.student_embeddings[0], case, "embed_student")
    set_dense(loss.teacher_embeddings[0], case, "embed_teacher")
    return of_layer(loss, case)


def set_dense(layer, case, path):
    layer.set_weights([case[f"{path}/kernel"], case[f"{path}/bias"]])


def variational(name, case):
    loss = built(losses.get("vid"), case)
    loss.regressors[0].set_weights(weights(case, "regressor/"))
    loss.log_scales[0].assign(case["log_scale"])
    return of_layer(loss, case)


def fitnet(name, case):
    loss = built(losses.get("fitnet"), case)
    set_adapter(loss.adapters[0], case)
    return of_layer(loss, case)


def set_adapter(adapter, case):
    set_dense(adapter.transformation, case, "conv")
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    adapter.normalization.set_weights([case[f"bn/{name}"] for name in names])


def cross_entropy(name, case):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return lambda student, teacher, mask: loss(tf.constant(case["labels"]), student[0])


def factors(name, case):
    def value(student, teacher, mask):
        return masked_mean(factor_distance(student[0], teacher[0]), mask)

    return value


def contrastive(name, case):
    examples, size = case["bank_student"].shape
    loss = built(losses.get("crd", num_examples=examples, embedding_size=size), case)
    set_dense(loss.student_embedding, case, "embed_student")
    set_dense(loss.teacher_embedding, case, "embed_teacher")

    def value(student, teacher, mask):
        return contrastive_loss(
            normalize(loss.student_embedding(student[0])),
            normalize(loss.teacher_embedding(teacher[0])),
            *(tf.constant(case[key]) for key in ("bank_student", "bank_teacher")),
            *(tf.constant(case[key]) for key in ("index", "negatives")),
            sample_mask=mask,
        )[0]

    return value


MAKERS = {
    "kd": logits_loss,
    "dkd": decoupled,
    "cross": cross_entropy,
    "at": without_weights,
    "sp": without_weights,
    "nst": without_weights,
    "fsp": without_weights,
    "ab": without_weights,
    "rkd": without_weights,
    "pkt": without_weights,
    "cc": correlation,
    "vid": variational,
    "fitnet": fitnet,
    "factor": factors,
    "hcl": lambda name, case: losses.hierarchical_context_loss,
    "crd": contrastive,
}


def maker(name):
    return MAKERS.get(name.split("_")[0])


def value_and_gradient(function, case, mask):
    student = [tf.constant(array) for array in taps(case, "student")]
    teacher = [tf.constant(array) for array in taps(case, "teacher")]
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = function(student, teacher, mask)
    return value, tape.gradient(value, student)


def evaluate(name, case, compiled):
    """Returns the value and gradients, without and with the mask where the case has one."""
    function = maker(name)(name, case)

    def everything():
        masks = {"": None}
        if "mask" in case:
            masks["masked_"] = tf.constant(case["mask"])
        return {prefix: value_and_gradient(function, case, mask) for prefix, mask in masks.items()}

    return tf.function(everything, jit_compile=True)() if compiled else everything()


def test_every_loss_has_a_case():
    assert set(MAKERS) <= {name.split("_")[0] for name in CASES}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("name", [name for name in CASES if maker(name)])
def test_equals_the_published_numbers(name, compiled):
    case = CASES[name]
    for prefix, (value, gradients) in evaluate(name, case, compiled).items():
        np.testing.assert_allclose(value, case[f"{prefix}loss"], rtol=1e-4)
        for spot, gradient in enumerate(gradients):
            expected = case[f"{prefix}grad_student/{spot}"]
            # Entries far below the largest are rounding.
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", [name for name in CASES if "adapted" in CASES[name]])
def test_adapter_equals_the_published_one(name):
    case = CASES[name]
    adapter = Adapter(case["adapted"].shape[1:])
    adapter.build(case["student/0"].shape)
    set_adapter(adapter, case)
    adapted = adapter(case["student/0"], training=False)
    np.testing.assert_allclose(adapted, case["adapted"], rtol=1e-4, atol=1e-5)
