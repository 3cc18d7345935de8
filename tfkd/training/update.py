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
        objective: Scalar.
        optimizer: A Keras optimizer.
        variables: List of the variables that it updates.
        unconnected: `"none"` or `"zero"`, the gradient of variables on which the objective does
            not depend.
        clip_norm: Number, the limit of the norm of the whole gradient; None for none.
        accumulation: The optimizer's `Accumulation`; None to take a step at once.
    """
    # Under mixed_float16 the scale enters where the gradient starts, so that nothing
    # underflows on the way back; the optimizer divides it out again.
    scale = optimizer.scale_loss(tf.ones_like(objective))
    gradients = tape.gradient(objective, variables, output_gradients=scale)
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
