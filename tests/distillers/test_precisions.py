"""Every method and loss in every precision, with models of one precision or of two."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd

HALF = ("mixed_float16", "mixed_bfloat16")
#: Of the student and of the teacher; of two students where there is no teacher.
POLICIES = [
    *((half, "float32") for half in HALF),
    *(("float32", half) for half in HALF),
    *((half, half) for half in HALF),
]
EXAMPLES = 8


def losses(*ids):
    """Losses, their preparation included; fsp compares maps of as many channels."""
    made = [tfkd.losses.get(identifier, weight=1.0) for identifier in ids]
    for loss in made:
        if loss.needs_indices:
            loss.set_examples(tiny.data(EXAMPLES)[1])
    return made


METHODS = {
    "alone": lambda student, _: tfkd.KnowledgeDistiller(student),
    "losses of logits": lambda *models: tfkd.KnowledgeDistiller(*models, losses("kd", "dkd")),
    "losses of maps": lambda *models: tfkd.KnowledgeDistiller(
        *models, losses("at", "fitnet", "vid", "nst", "fsp")
    ),
    "prepared losses": lambda *models: tfkd.KnowledgeDistiller(*models, losses("ft", "ab")),
    "relational losses": lambda *models: tfkd.KnowledgeDistiller(
        *models, losses("sp", "cc", "rkd", "pkt", "crd")
    ),
    "ackd": lambda *models: tfkd.ACKD(*models, auxiliary_learners=1),
    "ackd, logit attention": lambda *models: tfkd.ACKD(
        *models, auxiliary_learners=1, attention="logit", adversarial_target="ensemble"
    ),
    "sakd": lambda *models: tfkd.SAKD(*models, losses("at", "rkd")),
    "sakd, random": lambda *models: tfkd.SAKD(*models, losses("fitnet"), decisions="random"),
    "iakd": lambda *models: tfkd.IAKD(*models, schedule="uniform", kd_weight=0.5),
    "iakd, per sample": lambda *models: tfkd.IAKD(*models, schedule="uniform", sampling="sample"),
    "mutual": lambda *models: tfkd.MutualDistiller(models),
    "acn": lambda *models: tfkd.ACN(
        models,
        0.0,
        1.0,
        warm_up=0,
        generator_width=4,
        generator_blocks=1,
        discriminator_width=4,
    ),
}
FAST = ("losses of maps", "ackd", "sakd", "iakd", "acn")


def combinations():
    for method in METHODS:
        for policies in POLICIES:
            fast = method in FAST and policies in POLICIES[::3]
            marks = () if fast else pytest.mark.slow
            yield pytest.param(method, policies, marks=marks, id=f"{method}-{'-'.join(policies)}")


def model(policy, seed):
    keras.config.set_dtype_policy(policy)
    return tiny.model(4, name=f"model{seed}", seed=seed)


def train(method, policies):
    """Takes two steps; returns the distiller and its logs."""
    keras.utils.set_random_seed(0)
    models = [model(policy, seed) for seed, policy in enumerate(policies, start=1)]
    # As in `tfkd.train`, the precision is that of the student when the distiller is made.
    keras.config.set_dtype_policy(policies[0])
    made = METHODS[method](*models)
    optimizer = tfkd.optimizers.SGD(0.001)
    if policies[0] == "mixed_float16":
        # The usual scale starts with steps that are skipped.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8)
    # Types do not depend on compiling, which takes many times as long.
    made.compile(optimizer, metrics=["accuracy"], run_eagerly=True)
    images, labels = tiny.data(EXAMPLES)
    data = tf.data.Dataset.from_tensor_slices(
        (images, {"label": labels, "index": np.arange(EXAMPLES)})
    ).batch(EXAMPLES // 2)
    before = [variable.numpy() for variable in made.student.trainable_variables]
    logs = made.fit(data, verbose=0).history
    after = [variable.numpy() for variable in made.student.trainable_variables]
    assert any(np.any(a != b) for a, b in zip(before, after))
    return made, {name: value[0] for name, value in logs.items()}


@functools.cache
def in_float32(method):
    _, logs = train(method, ("float32", "float32"))
    return logs


@pytest.mark.parametrize("method, policies", combinations())
def test_it_trains(method, policies):
    made, logs = train(method, policies)
    assert all(variable.dtype == "float32" for variable in made.trainable_variables)
    assert all(np.isfinite(value) for value in logs.values())
    # What comes of it is that of float32, to the precision of the halves.
    loss = "student_loss" if "student_loss" in logs else "loss"
    assert logs[loss] == pytest.approx(in_float32(method)[loss], rel=0.05)
