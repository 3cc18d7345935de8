"""Batch normalization over the global batch of several replicas."""

import functools

import keras
import tensorflow as tf

from tfkd.runtime.keras_fixes import all_layers
from tfkd.runtime.replicas import num_replicas


def synchronize_batch_normalization(model):
    """Makes batch normalization use the statistics of the global batch under several replicas.

    Without it each replica normalizes by the statistics of its own part, and N replicas differ
    from one. A single device is not affected.

    Args:
        model: A `keras.Model`; changed in place, and only where there are several replicas.
    """
    if num_replicas() > 1:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                # Not by its argument `synchronized`, which would be saved with the model.
                layer._moments = functools.partial(_synchronized_moments, layer)


def _synchronized_moments(layer, inputs, mask):
    """Returns mean and variance of the global batch, in place of Keras' own method.

    Keras' variance over replicas is a difference of two large numbers, unlike on one device.
    """
    context = tf.distribute.get_replica_context()
    if mask is not None or context is None:
        return type(layer)._moments(layer, inputs, mask)
    axes, total = layer._reduction_axes, tf.distribute.ReduceOp.SUM
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[layer.axis], inputs.dtype)
    count, sums = context.all_reduce(total, [count, tf.reduce_sum(inputs, axes)])
    mean = sums / count
    shape = [1] * len(inputs.shape)
    shape[layer.axis] = mean.shape[0]
    squares = tf.reduce_sum(tf.square(inputs - tf.reshape(mean, shape)), axes)
    return mean, context.all_reduce(total, squares) / count
