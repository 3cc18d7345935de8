"""Workarounds for Keras 3 under `tf.distribute`, and its private names."""

import keras
import tensorflow as tf
from tensorflow.python.framework import config

from tfkd.errors import UsageError
from tfkd.runtime.cluster import workers
from tfkd.runtime.replicas import num_replicas


def check_steps_per_execution(steps, strategy):
    """Raises a `UsageError` for several steps per execution under several replicas.

    Args:
        steps: The `steps_per_execution` of `compile`.
        strategy: The `tf.distribute.Strategy` that trains.
    """
    replicas = strategy.num_replicas_in_sync
    if steps != 1 and replicas > 1:
        raise UsageError(
            f"steps_per_execution={steps} fails in Keras under {replicas} replicas: leave it at 1, "
            "or train on one device."
        )


def check_accumulation(name, optimizer, steps, strategy):
    """Raises a `UsageError` for an optimizer whose own gradient accumulation fails.

    Args:
        name: String, the argument of `compile` for it.
        optimizer: A Keras optimizer.
        steps: Integer, the `accumulation_steps` of the distiller.
        strategy: The `tf.distribute.Strategy` that trains.
    """
    own = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps
    on_one = not isinstance(
        strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    )
    if own and steps > 1:
        raise UsageError(
            f"{name} accumulates over {own} steps and compile(accumulation_steps={steps}) does so "
            "too: give one of them, rather the latter."
        )
    if own and not on_one:
        raise UsageError(
            f"{name} has gradient_accumulation_steps={own}, which fails in Keras under "
            f"{type(strategy).__name__}: use compile(accumulation_steps={own}) instead."
        )


def needs_whole_gradient(optimizer):
    """Whether an optimizer needs the gradient summed over the replicas, not one replica's.

    It does to clip the gradient, or to detect an overflow of a scaled loss. Keras passes it one
    replica's gradient.

    Args:
        optimizer: A Keras optimizer.
    """
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return num_replicas() > 1 and (scales or _clips(optimizer))


def _clips(optimizer):
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)


def apply_whole_gradient(optimizer, gradients, variables, scale=1.0):
    """Takes a step of an optimizer on gradients that are already summed over the replicas.

    Args:
        optimizer: A Keras optimizer.
        gradients: List of tensors, the same on all replicas.
        variables: List of their variables.
        scale: Factor of the gradients that the optimizer divides out again.
    """
    if num_replicas() > 1:
        if _clips(optimizer):
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            clipped = inner._clip_gradients([gradient / scale for gradient in gradients])
            gradients = [scale * gradient for gradient in clipped]
        # The optimizer sums them over replicas. A second clipping changes nothing.
        gradients = [gradient / num_replicas() for gradient in gradients]
    optimizer.apply_gradients(zip(gradients, variables))


#: The first version of Keras whose `fit` and `evaluate` work under several workers; None as long
#: as there is none. tests/test_workers.py fails when that changes.
KERAS_TRAINS_WITH_WORKERS_FROM = None


def _keras_needs_help():
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    return KERAS_TRAINS_WITH_WORKERS_FROM is None or version < KERAS_TRAINS_WITH_WORKERS_FROM


def function_of_step(make_function, step, strategy):
    """Makes the function that Keras calls with an iterator, from a step that returns logs.

    Over several workers Keras averages each log along an axis, which scalars do not have. So the
    logs are packed into one vector, which also saves communication.

    Args:
        make_function: Keras' own function, of a step.
        step: Function of a batch that returns `{name: scalar}`.
        strategy: The `tf.distribute.Strategy` that runs it.

    Returns:
        A function of an iterator that returns `{name: scalar}`.
    """
    if workers(strategy) == 1 or not _keras_needs_help():
        return make_function(step)
    names = []

    def packed(data):
        logs = step(data)
        names[:] = logs
        return tf.stack([tf.cast(value, "float32") for value in logs.values()])[None]

    run = make_function(packed)
    return lambda iterator: dict(zip(names, tf.unstack(run(iterator), num=len(names))))


def all_layers(model):
    """Returns a model and all layers inside, those of nested and subclassed models too.

    Keras' `_flatten_layers`: the public `Model.layers` stops at the first level, and
    `keras.Layer` has no list of its sublayers.

    Args:
        model: A `keras.Model` or layer.
    """
    return list(model._flatten_layers())


def take_activity_losses(model):
    """Returns and clears the losses of activity regularizers and `add_loss` of the last pass.

    The public `Layer.losses` holds the weight regularizers too, and nothing public clears it.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        A float32 scalar; the number 0.0 where there are none.

    Raises:
        UsageError: If several replicas have mixed up what they noted.
    """
    layers = all_layers(model)
    losses = [loss for layer in layers for loss in layer._get_own_losses()]
    if losses and num_replicas() > 1 and any(map(_exchanges, layers)):
        raise UsageError(
            f"{model.name!r} regularizes the activity of layers beside batch normalization, whose "
            "replicas take turns: Keras keeps what they note in one list, in which they get mixed "
            "up. Train it on one device, or regularize weights instead."
        )
    model._clear_losses()
    return sum((tf.cast(loss, "float32") for loss in losses), start=0.0)


def _exchanges(layer):
    """Whether replicas wait for each other in a layer, in training mode."""
    return isinstance(layer, keras.layers.BatchNormalization)


def is_deterministic():
    """Whether TensorFlow's operations must be deterministic.

    TensorFlow has a public function that switches it on, and none that tells.
    """
    return config.is_op_determinism_enabled()
