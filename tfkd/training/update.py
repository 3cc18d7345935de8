"""One step of one optimizer, whatever the precision, the replicas and the accumulation."""

import tensorflow as tf
from keras import ops

from tfkd import runtime


def update(
    tape, objective, optimizer, variables, unconnected="none", clip_norm=None, accumulation=None
):
    """Takes one step of one optimizer on its own variables; see `Distiller.update`.

    Args:
        tape: The `tf.GradientTape` that recorded the objective.
        objective: Scalar; or the pair of what labels and distillation add to it, for an optimizer
            that takes their gradients apart. The tape must be a persistent one then.
        optimizer: A Keras optimizer.
        variables: List of the variables that it updates.
        unconnected: `"none"` or `"zero"`, the gradient of variables on which the objective does
            not depend.
        clip_norm: Number, the limit of the norm of the whole gradient; None for none.
        accumulation: The optimizer's `Accumulation`; None to take a step at once.
    """
    # Under mixed_float16 the scale enters where the gradient starts, so that nothing
    # underflows on the way back; the optimizer divides it out again.
    objectives = objective if isinstance(objective, tuple) else (objective,)
    scale = optimizer.scale_loss(tf.ones_like(objectives[0]))
    parts = [tape.gradient(one, variables, output_gradients=scale) for one in objectives]
    gradients = [_joined(found) for found in zip(*parts)]
    if unconnected == "zero":
        pairs = zip(gradients, variables)
        gradients = [ops.zeros_like(v) if g is None else g for g, v in pairs]
    pairs = [(g, v) for g, v in zip(gradients, variables) if g is not None]
    if clip_norm is None and accumulation is None and not runtime.needs_whole_gradient(optimizer):
        optimizer.apply_gradients(pairs)
        return
    gradients, variables = zip(*pairs)

    def step(gradients):
        if clip_norm is not None:
            norm = tf.linalg.global_norm(gradients) / scale
            factor = clip_norm / ops.maximum(norm, clip_norm)
            gradients = [factor * gradient for gradient in gradients]
        runtime.apply_whole_gradient(optimizer, gradients, variables, scale)

    gradients = runtime.sum_over_replicas(list(gradients))
    if accumulation is None:
        step(gradients)
    else:
        accumulation.apply(gradients, variables, step)


def _joined(gradients):
    """Returns the gradients of the parts of an objective as one tensor `(parts, ...)`.

    Where the objective has one part, or one part alone depends on the variable, it is that
    gradient; where none does, None.
    """
    found = [gradient for gradient in gradients if gradient is not None]
    if len(found) > 1:
        return ops.stack(found)
    return found[0] if found else None
