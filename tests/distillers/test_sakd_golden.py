"""A step equals the published code's, with all randomness given."""

import golden_numbers
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.models.torch_checkpoint import load_torch_weights

PAIRS = {
    "sakd_step_at.npz": ("resnet8", "resnet14", "at"),
    "sakd_step_rkd.npz": ("wrn_16_1", "wrn_16_1", "rkd"),
}
#: What of a step is looked at, by the name of the method that computes it.
STEPS = (
    "observe_teacher",
    "observe_student",
    "student_loss",
    "decide",
    "route",
    "routing_objective",
    "distillation_terms",
    "objective",
)


class Recorder(keras.optimizers.SGD):
    """Keeps the gradients that it is given, and changes nothing."""

    def apply_gradients(self, grads_and_vars):
        self.gradients = {id(variable): gradient for gradient, variable in grads_and_vars}


def model(name, case, side):
    found = tfkd.models.create(name, 7, (16, 16, 3), name=side)
    state = {key: case[key] for key in case if key.startswith(f"{side}/")}
    return load_torch_weights(found, {key.split("/")[1]: state[key] for key in state})


@pytest.fixture(scope="module", params=golden_numbers.files("sakd_step_*.npz"))
def step(request):
    """The numbers of one file, and the distiller after one step, with what the step computed."""
    case = golden_numbers.load(request.param)
    student, teacher, loss = PAIRS[request.param]
    distiller = tfkd.SAKD(
        model(student, case, "student"),
        model(teacher, case, "teacher"),
        losses=[loss],
        routing_scale=2.0,
    )
    distiller.ensure_built()
    distiller.policy.dense.set_weights([case["policy/kernel"], case["policy/bias"]])
    for side, adapters in (
        ("adapter", distiller.routing.to_teacher),
        ("inverse_adapter", distiller.routing.to_student),
    ):
        for number, adapter in enumerate(adapters):
            path = f"{side}/{number}/" + ("conv/" if f"{side}/{number}/conv/bias" in case else "")
            adapter.transformation.set_weights([case[path + "kernel"], case[path + "bias"]])
    distiller.policy.noise = lambda size: tf.constant(case["gumbel_noise"])
    distiller.observe_student = with_unbiased_variances(distiller)
    seen = {}
    for name in STEPS:
        setattr(distiller, name, recording(seen, name, getattr(distiller, name)))
    distiller.policy.logits = recording(seen, "policy_logits", distiller.policy.logits)
    distiller.compile(Recorder(), policy_optimizer=Recorder(), run_eagerly=True)
    distiller.train_on_batch(case["image"], case["label"])
    return case, distiller, seen


def with_unbiased_variances(distiller):
    """Runs the student as PyTorch does, whose moving variances are those of samples.

    Keras' are those of populations. Routing, in inference mode, shows the difference.
    """
    observe, layers = distiller.observe_student, distiller.student.layers
    layers = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]

    def run(batch):
        before = [layer.moving_variance.numpy() for layer in layers]
        observed = observe(batch)
        for layer, old in zip(layers, before):
            count = batch.size * np.prod(layer.output.shape[1:-1])
            new = layer.moving_variance.numpy() - 0.9 * old
            layer.moving_variance.assign(0.9 * old + new * count / (count - 1))
        return observed

    return run


def recording(seen, name, function):
    def call(*args, **kwargs):
        value = function(*args, **kwargs)
        seen.setdefault(name, value)
        return value

    return call


def close(found, expected, rtol=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5 * np.abs(expected).max())


def test_there_are_files():
    assert golden_numbers.files("sakd_step_*.npz")


def test_decisions(step):
    case, _, seen = step
    close(seen["policy_logits"], case["policy_logits"])
    np.testing.assert_array_equal(seen["decide"], case["actions"])


def test_outputs(step):
    case, _, seen = step
    close(seen["observe_student"]["logits"], case["student_logits"])
    close(seen["observe_teacher"]["logits"], case["teacher_logits"])
    close(seen["route"], case["route_logits"])


def test_objectives(step):
    case, distiller, seen = step
    close(seen["student_loss"], case["cross_entropy"])
    (_, logits_loss), (weight, loss) = seen["distillation_terms"].values()
    close(logits_loss, case["logits_loss"])
    close(loss, case["distillation_loss"])
    assert weight == (1000 if distiller.distillation_losses[1].id == "at" else 1)
    close(seen["objective"], case["student_objective"])
    close(seen["routing_objective"], case["routing_objective"])


def test_gradients(step):
    case, distiller, _ = step
    policy = distiller.policy_optimizer.gradients
    close(policy[id(distiller.policy.dense.kernel)], case["grad_policy_kernel"], 1e-3)
    close(policy[id(distiller.policy.dense.bias)], case["grad_policy_bias"], 1e-3)
    student = distiller.optimizer.gradients
    kernel, bias = distiller.student.get_layer("logits").weights
    close(student[id(kernel)], case["grad_student/fc.weight"].T, 1e-3)
    close(student[id(bias)], case["grad_student/fc.bias"], 1e-3)
    stem = distiller.student.trainable_variables[0]
    close(student[id(stem)], case["grad_student/conv1.weight"].transpose(2, 3, 1, 0), 1e-3)
