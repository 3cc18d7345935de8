"""The methods by which `keras.distillation.Distiller` runs a loss of ours."""

import keras

from tfkd.errors import UsageError


class KerasInterface(keras.distillation.DistillationLoss):
    """The methods by which `keras.distillation.Distiller` runs a `tfkd` loss.

    It can run a loss that distils at one spot, needs neither labels nor sample indices and no
    preparation. The spot is `"logits"`, or one pair of layer names.

    Example:
    ```python
    loss = tfkd.losses.RelationalKnowledgeDistillation(spots=[("pooled", "pooled")])
    distiller = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=[loss],
        distillation_loss_weights=[loss.weight],
    )
    ```
    """

    @property
    def student_layer_name(self):
        """Name of the student's layer to distil at; None for its output."""
        return None if isinstance(self.spots, str) else self.spots[0][0]

    @property
    def teacher_layer_name(self):
        """Name of the teacher's layer to distil at; None for its output."""
        return None if isinstance(self.spots, str) else self.spots[0][1]

    def validate_model_compatibility(self, teacher, student):
        """Checks that `keras.distillation.Distiller` can run this loss, and makes connectors.

        Args:
            teacher: The teacher, a `keras.Model`.
            student: The student, a `keras.Model`.

        Raises:
            UsageError: If the loss needs what `keras.distillation` does not offer.
        """
        several_spots = not isinstance(self.spots, str) and len(self.spots) != 1
        needs = {
            "labels": self.needs_labels,
            "sample indices": self.needs_indices,
            "a preparation stage": self.preparation is not None,
            "several spots": several_spots,
            "to know the epoch": self._epoch is not None,
        }
        if any(needs.values()):
            needed = " and ".join(what for what, needed in needs.items() if needed)
            raise UsageError(
                f"keras.distillation cannot run loss {self.name!r}, which needs {needed}: use "
                "tfkd.KnowledgeDistiller."
            )
        if isinstance(self.spots, str) and self.spots != "logits":
            raise UsageError(
                f"keras.distillation does not know the spots {self.spots!r} of loss "
                f"{self.name!r}: pass spots=[('student layer', 'teacher layer')]."
            )
        self.read_models(
            student, teacher, [("logits", "logits")] if isinstance(self.spots, str) else self.spots
        )
        if not self.built:
            # Here, because the optimizer takes the variables that exist when training starts.
            student_layer, teacher_layer = self.student_layer_name, self.teacher_layer_name
            self.build(
                [_output("student", student, student_layer).shape],
                [_output("teacher", teacher, teacher_layer).shape],
            )

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """Computes the unweighted loss.

        `keras.distillation.Distiller` multiplies it by its own `distillation_loss_weights`, 1 by
        default, and never runs connectors in training mode.

        Args:
            teacher_outputs: The teacher's tensor.
            student_outputs: The student's tensor.
            **kwargs: Ignored.

        Returns:
            A float32 scalar.
        """
        return self([student_outputs], [teacher_outputs])


def _output(side, model, layer):
    """Returns the symbolic output of a model, or of one of its layers."""
    if layer is None:
        return model.output
    try:
        return model.get_layer(layer).output
    except ValueError as error:
        raise UsageError(f"In the {side} model: {error}") from error
