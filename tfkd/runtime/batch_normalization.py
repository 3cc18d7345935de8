"""Batch normalization while tfkd runs a model: fused, and over the global batch of all replicas."""

import contextlib
import functools

import keras
import tensorflow as tf

from tfkd.runtime.keras_fixes import all_layers, is_deterministic
from tfkd.runtime.replicas import num_replicas

_FUSED = [True]


def set_fused_batch_normalization(enabled):
    """Sets whether models that tfkd runs use TensorFlow's fused batch normalization.

    It is faster, and differs from Keras' in rounding only. On by default.

    Args:
        enabled: Boolean.
    """
    _FUSED[0] = bool(enabled)


@contextlib.contextmanager
def batch_normalization_of(*models, jit_compile=False):
    """Runs the batch normalizations of models as tfkd does, as long as the context is open.

    Keras computes `BatchNormalization` on TensorFlow from a dozen elementwise operations. In this
    context it is one, where it can be: for images with channels last, without mask. And under
    several replicas it uses the statistics of the global batch; without that each replica
    normalizes by the statistics of its own part, and N replicas differ from one.

    The switch is on the layers themselves, and gone at the end: what is saved, and what other code
    runs, is Keras' own layer. A `tf.function` keeps what it has traced in the context.

    Args:
        *models: `keras.Model`s or layers; None is left out.
        jit_compile: Whether XLA compiles what runs. It fuses Keras' operations by itself, and does
            not take the fused one everywhere.

    Example:
    ```python
    with tfkd.runtime.batch_normalization_of(model):
        logits = model(images, training=False)
    ```
    """
    layers = [layer for model in models if model is not None for layer in _layers_of(model)]
    # A layer that occurs twice, or in an outer context, keeps the first switch.
    switched = []
    synchronized = num_replicas() > 1
    for layer in layers:
        fused = _FUSED[0] and not jit_compile and _is_keras_own(layer)
        for name, function, wanted in (
            ("call", _call, fused),
            # Not by its argument `synchronized`, which would be saved with the model.
            ("_moments", _synchronized_moments, synchronized),
        ):
            if wanted and name not in vars(layer):
                setattr(layer, name, functools.partial(function, layer))
                switched.append((layer, name))
    try:
        yield
    finally:
        for layer, name in switched:
            delattr(layer, name)


@contextlib.contextmanager
def batch_statistics(model):
    """Normalizes by the statistics of the batch in a model that runs in inference mode.

    As long as the context is open, its batch normalizations neither read nor update their moving
    statistics; all else of the model is in inference mode. A subclass with a `call` of its own is
    left as it is.

    Args:
        model: A `keras.Model` or layer.
    """
    layers = [layer for layer in _layers_of(model) if _is_keras_own(layer)]
    outer = [vars(layer).get("call") for layer in layers]
    for layer, call in zip(layers, outer):
        layer.call = functools.partial(_call_by_batch, layer, call is not None)
    try:
        yield
    finally:
        for layer, call in zip(layers, outer):
            if call is None:
                del layer.call
            else:
                layer.call = call


def _layers_of(model):
    return [
        layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)
    ]


def _is_keras_own(layer):
    return type(layer).call is keras.layers.BatchNormalization.call


def _call(layer, inputs, training=None, mask=None):
    """Computes a layer's outputs by the fused operation where it computes the same."""
    training = bool(training and layer.trainable)
    if mask is not None or not _can_fuse(layer, inputs, training):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    inputs = tf.convert_to_tensor(inputs)
    statistics = ([], []) if training else (layer.moving_mean, layer.moving_variance)
    outputs, mean, variance = _fused(layer, inputs, *statistics)
    if training:
        # The operation divides by one less than the count; Keras' variance is the population's.
        count = tf.cast(tf.size(inputs) // mean.shape[0], "float32")
        variance *= tf.maximum(count - 1.0, 1.0) / count
        for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _call_by_batch(layer, fuse, inputs, training=None, mask=None):
    """Computes a layer's outputs by the statistics of the batch, and leaves the moving ones."""
    if fuse and mask is None and _can_fuse(layer, inputs, training=True):
        return _fused(layer, tf.convert_to_tensor(inputs), [], [])[0]
    inputs = tf.cast(inputs, "float32")
    mean, variance = layer._moments(inputs, mask)
    scale, offset = layer.gamma if layer.scale else None, layer.beta if layer.center else None
    outputs = keras.ops.batch_normalization(
        inputs, mean, variance, layer.axis, offset, scale, layer.epsilon
    )
    return tf.cast(outputs, layer.compute_dtype)


def _fused(layer, inputs, mean, variance):
    """Returns outputs, mean and variance; without given statistics those of the batch."""
    channels = layer.moving_mean.shape
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma if layer.scale else tf.ones(channels),
        offset=layer.beta if layer.center else tf.zeros(channels),
        mean=mean,
        variance=variance,
        epsilon=layer.epsilon,
        is_training=isinstance(mean, list),
    )
    return tf.cast(outputs, layer.compute_dtype), mean, variance


def _can_fuse(layer, inputs, training):
    if layer.renorm or layer.synchronized or len(inputs.shape) != 4 or layer.axis not in (-1, 3):
        return False
    if layer.variable_dtype != "float32" or inputs.dtype not in (
        tf.float32,
        tf.float16,
        tf.bfloat16,
    ):
        return False
    if training:
        # The gradient flows through the statistics of all replicas, which the operation takes as
        # constants.
        return num_replicas() == 1
    # GPUs have no deterministic gradient of it in inference mode.
    return not (is_deterministic() and tf.config.list_physical_devices("GPU"))


def _synchronized_moments(layer, inputs, mask):
    """Returns mean and variance of the global batch, in place of Keras' own method.

    Keras' variance over replicas is a difference of two large numbers, unlike on one device.
    """
    context = tf.distribute.get_replica_context()
    if context is None:
        return type(layer)._moments(layer, inputs, mask)
    axes, total = layer._reduction_axes, tf.distribute.ReduceOp.SUM
    if mask is None:
        weights = 1.0
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[layer.axis], inputs.dtype)
    else:
        mask = tf.cast(mask, "bool")[..., tf.newaxis]
        inputs, weights = tf.where(mask, inputs, 0.0), tf.cast(mask, inputs.dtype)
        count = tf.reduce_sum(weights)
    count, sums = context.all_reduce(total, [count, tf.reduce_sum(weights * inputs, axes)])
    mean = tf.math.divide_no_nan(sums, count)
    shape = [1] * len(inputs.shape)
    shape[layer.axis] = mean.shape[0]
    squares = tf.reduce_sum(weights * tf.square(inputs - tf.reshape(mean, shape)), axes)
    return mean, tf.math.divide_no_nan(context.all_reduce(total, squares), count)
