"""Batch: one replica's part of a batch, and what a step records about it."""

import dataclasses

import tensorflow as tf
from keras import ops

from tfkd import runtime
from tfkd.errors import UsageError


@dataclasses.dataclass
class Batch:
    """One replica's part of a batch.

    Attributes:
        inputs: Inputs of the student, `(batch, height, width, channels)` for images.
        labels: The labels as the data set gives them.
        sample_weight: Float tensor `(batch,)`, or None. Class weights arrive here too.
        indices: Integer tensor `(batch,)`, the samples' positions in the training set; None
            where the data has none.
        size: Integer tensor, the number of samples.
        share: The share of the global batch on this replica: a float32 scalar, 1.0 on one device.
        given: `{tap: tensor}`, the teacher's outputs that came with the data, or None.
        teacher_images: Images for the teacher that came with the data, where they are others than
            the student's; or None.
        peer_images: Tuple of images for the students after the first, where they are others than
            its own; or None.
        teacher: `{tap: tensor}` of the teacher, once it has run; see
            `Distiller.observe_teacher`.
        values: `{name: scalar}`, the logs of the step; see `Distiller.track`.
        parts: `{name: scalar}`, the weighted parts of all objectives, checked for divergence.
        objectives: The tuple of what labels (and regularizers) and, where there is any,
            distillation add to the students' objective; see `Distiller.objective`.
        activity: List of the activity regularization of each student that has run.
    """

    inputs: object
    labels: object
    sample_weight: object
    indices: object
    size: object
    share: object
    given: dict = None
    teacher_images: object = None
    peer_images: tuple = None
    teacher: dict = None
    values: dict = dataclasses.field(default_factory=dict)
    parts: dict = dataclasses.field(default_factory=dict)
    objectives: tuple = ()
    activity: list = dataclasses.field(default_factory=list)

    @property
    def for_teacher(self):
        """What the teacher's inputs are made of."""
        return self.inputs if self.teacher_images is None else self.teacher_images

    def scaled(self, value):
        """Scales a mean over this replica's samples to its part of the global batch's mean.

        This and `sum_as_mean` are the only places where losses are scaled for replicas.
        """
        return value * self.share

    def sum_as_mean(self, value):
        """Turns a sum over this replica's samples into a mean, as `scaled` takes it.

        The objective then contains the sum over the global batch.
        """
        return tf.math.divide_no_nan(value, self.share)

    def mean_over_replicas(self, value):
        """Returns the mean over the global batch of a mean over this replica's samples.

        No gradient flows back.
        """
        return runtime.sum_over_replicas(self.scaled(value))

    def class_numbers(self, classes):
        """Returns the class number of each sample; labels may be one-hot.

        Args:
            classes: Integer, the number of classes.

        Returns:
            An int32 tensor `(batch,)`.

        Raises:
            UsageError: If the data has no labels.
        """
        check_present(self.labels)
        labels = self.labels
        if tuple(labels.shape[1:]) == (classes,) != (1,):
            labels = ops.argmax(labels, axis=-1)
        return ops.cast(ops.reshape(labels, [-1]), "int32")

    def accuracy(self, logits, binary=False):
        """Returns the share of right predictions.

        Args:
            logits: Tensor `(batch, classes)`.
            binary: Whether each logit is a yes or no of its own, and labels are zeros and ones.

        Returns:
            A float32 scalar.
        """
        if binary:
            labels = ops.cast(ops.reshape(self.labels, ops.shape(logits)), "float32")
            hits = (logits > 0) == (labels > 0.5)
        else:
            hits = ops.argmax(logits, axis=-1) == self.class_numbers(logits.shape[-1])
        return ops.mean(ops.cast(hits, "float32"))

    def loss_arguments(self, loss, weighted, sample_masks=None):
        """Returns the arguments of a distillation loss beside the taps.

        Args:
            loss: A `tfkd.losses.DistillationLoss`.
            weighted: Boolean, whether sample weights multiply the loss.
            sample_masks: List of masks `(batch,)` of zeros and ones, one per spot: the samples
                that a method lets the loss see. None for all.

        Returns:
            A dictionary of keyword arguments: labels, mask, and indices where it needs them.

        Raises:
            UsageError: If the batch lacks what the loss needs.
        """
        mask = self.sample_weight if weighted else None
        if loss.relational and mask is not None:
            mask = ops.cast(mask > 0, "float32")
        if sample_masks is not None:
            mask = (
                sample_masks
                if mask is None
                else [ops.cast(own, mask.dtype) * mask for own in sample_masks]
            )
        labels = _class_numbers(self.labels, loss) if loss.needs_labels else None
        arguments = {"labels": labels, "sample_mask": mask}
        if loss.needs_indices:
            if self.indices is None:
                raise UsageError(
                    f"Loss {loss.name!r} needs to know which training example a sample is: labels "
                    'as {"label": labels, "index": positions}, or '
                    "tfkd.data.load(..., indices=True)."
                )
            arguments["indices"] = self.indices
        return arguments


def check_present(labels):
    """Raises a `UsageError` where data has no labels."""
    if labels is None:
        raise UsageError("Training and evaluation need labels: pass batches (inputs, labels).")


def _class_numbers(labels, loss):
    """Returns labels as integers `(batch,)`, of which Keras also allows `(batch, 1)`."""
    if len(labels.shape) == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels.shape) != 1:
        raise UsageError(
            f"Loss {loss.name!r} needs the number of each sample's class, (batch,); received "
            f"labels of shape {tuple(labels.shape)}: train without one-hot labels, label "
            "smoothing, mixup and cutmix."
        )
    return labels
