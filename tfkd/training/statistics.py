"""The moving statistics that models update in training mode."""

import contextlib

import keras
import tensorflow as tf


def statistics(models):
    """Returns the variables that models update as they run, such as moving averages.

    Args:
        models: Iterable of `keras.layers.Layer`s.
    """
    variables = [variable for model in models for variable in model.non_trainable_variables]
    return [variable for variable in variables if keras.backend.is_float_dtype(variable.dtype)]


@contextlib.contextmanager
def restore_on_exit(variables, keep=False):
    """Restores the values of variables at the end of the context.

    Args:
        variables: List of variables.
        keep: Boolean, Python's or a scalar tensor, whether they keep their new values instead.
    """
    before = [tf.identity(variable.value) for variable in variables]
    yield
    for variable, value in zip(variables, before):
        variable.assign(tf.where(keep, variable.value, value))
