"""The base class of losses that weigh several teachers."""

import keras
from keras import ops

from tfkd.errors import UsageError
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.knowledge_distillation import kl_divergence
from tfkd.losses.numerics import keep_selected, selection
from tfkd.schedules import number_or_schedule


class WeightedTeachers(DistillationLoss):
    """A weighted sum of the divergences from several teachers.

    `temperature² · mean_i Σ_k w_ik · KL(softmax(t_ik / temperature) ‖ softmax(s_i / temperature))`,
    on logits `s` of the student and `t_k` of teacher `k`, all `(batch, classes)`. A subclass says
    what the weights `w` are, in `teacher_weights()`. No gradient flows through them.

    Args:
        temperature: Positive number, or schedule of such.
        weight: Number or schedule.
        spots: Defaults to `"teachers"`: the logits of every teacher.
    """

    spots = "teachers"
    compares_classes = True

    def __init__(self, temperature=4.0, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.temperature = number_or_schedule("temperature", temperature, positive=True)

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks that there are several teachers, of the student's classes."""
        if len(teacher_taps_shape) < 2:
            raise UsageError(
                f"Loss {self.name!r} weighs several teachers, and received the logits of "
                f"{len(teacher_taps_shape)}: pass teacher=[first, second] to the distiller."
            )
        super().build(student_taps_shape, teacher_taps_shape)

    def teacher_weights(self, student_logits, teacher_logits, labels, masks):
        """Returns the weights of the teachers.

        Args:
            student_logits: List of the student's logits `(batch, classes)`, one for each teacher.
            teacher_logits: List of the teachers' logits `(batch, classes)`.
            labels: Integer tensor `(batch,)`, or None where the loss needs none.
            masks: List of masks `(batch,)`, one for each teacher, or None each.

        Returns:
            A float32 tensor `(batch, teachers)`, or `(teachers,)` for one weight in all samples.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement teacher_weights().")

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Computes the unweighted loss; see `DistillationLoss.call`."""
        self.check_labels(labels)
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        # Zeros in place of what is left out: it may not be finite.
        student, teachers = (
            [keep_selected(x, selection(mask, x)) for x, mask in zip(logits, masks)]
            for logits in (student_taps, teacher_taps)
        )
        teachers = [ops.stop_gradient(logits) for logits in teachers]
        weights = ops.stop_gradient(self.teacher_weights(student, teachers, labels, masks))
        temperature = self.value_of(self.temperature)
        values = [
            masked_mean(weights[..., k] * kl_divergence(own, teacher, temperature), mask)
            for k, (own, teacher, mask) in enumerate(zip(student, teachers, masks))
        ]
        return temperature**2 * sum(values)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        temperature = keras.saving.serialize_keras_object(self.temperature)
        return {**super().get_config(), "temperature": temperature}
