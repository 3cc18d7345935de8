"""Batch: what one replica gets of a batch, and what a step notes about it."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass
class Batch:
    """One replica's part of a batch.

    Attributes:
        inputs: What the models take, `(batch, height, width, channels)` for images.
        labels: The labels as the data set gives them.
        sample_weight: Float tensor `(batch,)`, or None. Class weights arrive here too.
        indices: Integer tensor `(batch,)`, the samples' positions in the training set; None
            where the data does not tell.
        size: Integer tensor, the number of samples.
        share: The part of the global batch that this replica holds: a float32 scalar, 1.0 on one
            device.
        teacher: `{tap: tensor}` of the teacher, once it has run; see
            `Distiller.observe_teacher`.
        values: `{name: scalar}`, what the step logs; see `Distiller.track`.
        parts: `{name: scalar}`, the weighted parts of all objectives, in which the step looks for
            divergence.
        activity: List of the activity regularization of each student that has run.
    """

    inputs: object
    labels: object
    sample_weight: object
    indices: object
    size: object
    share: object
    teacher: dict = None
    values: dict = dataclasses.field(default_factory=dict)
    parts: dict = dataclasses.field(default_factory=dict)
    activity: list = dataclasses.field(default_factory=list)

    def scaled(self, value):
        """Scales a mean over this replica's samples so that the replicas' add up to the batch's.

        This and `sum_as_mean` are the only places where losses are scaled for replicas.
        """
        return value * self.share

    def sum_as_mean(self, value):
        """Turns a sum over this replica's samples into what `scaled` takes, a mean.

        The objective then holds the sum over the global batch.
        """
        return tf.math.divide_no_nan(value, self.share)
