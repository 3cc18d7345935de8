"""Every method and loss in every precision, with models of one precision or of two."""

import functools

import keras
import methods
import numpy as np
import pytest
import tiny
from methods import LOSSES, METHODS
from tiny import values

HALF = ("mixed_float16", "mixed_bfloat16")
#: Of the student and of the teacher; of two students where there is no teacher.
POLICIES = [
    *((half, "float32") for half in HALF),
    *(("float32", half) for half in HALF),
    *((half, half) for half in HALF),
]
FAST = ("losses of maps", "ackd", "sakd", "iakd", "mutual", "acn")


def combinations():
    for method in [*METHODS, *LOSSES]:
        for policies in POLICIES:
            fast = method in FAST and policies in POLICIES[::3]
            marks = () if fast else pytest.mark.slow
            yield pytest.param(method, policies, marks=marks, id=f"{method}-{'-'.join(policies)}")


def train(method, policies):
    """Takes a step; returns the distiller, how its student's classifier moved, and its logs."""
    keras.utils.set_random_seed(0)
    models = []
    for number, policy in enumerate(policies):
        keras.config.set_dtype_policy(policy)
        models.append(methods.models(method)[number])
    # As in `tfkd.train`, the precision is that of the student when the distiller is made.
    keras.config.set_dtype_policy(policies[0])
    # Types do not depend on compiling, which takes many times as long.
    made = methods.make(method, *models, rate=0.001, run_eagerly=True)
    made.build_optimizers()
    for optimizer, _ in made.optimizers().values():
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # The usual scale starts with steps that are skipped.
            optimizer.dynamic_scale.assign(2.0**8)
    kernel = made.student.get_layer("logits").kernel
    before = kernel.numpy()
    logs = made.fit(methods.data(methods.BATCH), verbose=0).history
    return made, kernel.numpy() - before, {name: value[0] for name, value in logs.items()}


@functools.cache
def in_float32(method):
    return train(method, ("float32", "float32"))[1:]


@pytest.mark.parametrize("method, policies", combinations())
def test_it_trains(method, policies):
    made, step, logs = train(method, policies)
    assert all(variable.dtype == "float32" for variable in made.trainable_variables)
    assert all(np.isfinite(value) for value in logs.values())
    assert all(np.isfinite(array).all() for array in values(made.variables))
    for optimizer, _ in made.optimizers().values():
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (policies[0] == "mixed_float16")
    # What comes of it is that of float32, to the precision of the halves.
    expected_step, expected = in_float32(method)
    loss = "student_loss" if "student_loss" in logs else "loss"
    assert logs[loss] == pytest.approx(expected[loss], rel=0.05)
    np.testing.assert_allclose(step, expected_step, atol=0.1 * np.abs(expected_step).max())


@pytest.mark.parametrize("policy", HALF)
def test_what_must_be_float32_is(policy):
    """Losses, decisions, and the networks of a game whose images are the classifiers' inputs."""
    keras.config.set_dtype_policy(policy)
    distiller = methods.make("sakd", run_eagerly=True)
    seen = []
    loss = distiller.distillation_losses[0]
    compare = loss.compare

    def spying(spot, student_tap, teacher_tap, *args):
        seen.append((student_tap.dtype, teacher_tap.dtype))
        return compare(spot, student_tap, teacher_tap, *args)

    loss.compare = spying
    x, y = tiny.data(8)
    distiller.train_on_batch(x, y)
    assert seen[0] == ("float32", "float32")
    batch = distiller.unpack((x, y))
    student, teacher = distiller.observe_student(batch), distiller.observe_teacher(batch)
    decisions = distiller.decide(batch, student, teacher)
    assert decisions.dtype == "float32" and set(np.unique(decisions)) <= {0.0, 1.0}
    acn = methods.make("acn")
    for network in (acn.generator, acn.discriminator):
        assert {part.compute_dtype for part in network._flatten_layers()} == {"float32"}
    assert acn.generate(acn.to_range(x), acn.draw_noise(8)).dtype == "float32"
    fused = methods.make("ackd").fused_student()
    assert fused(x).dtype in ("float32", policy.removeprefix("mixed_"))
