"""KerasDistillationLoss: a loss of `keras.distillation` as one of ours."""

import contextlib
import re

import keras
from keras import ops

from tfkd import runtime
from tfkd.errors import UsageError
from tfkd.losses.distillation_loss import DistillationLoss


@contextlib.contextmanager
def _unscaled(distillation_loss):
    """Takes back the division by the number of replicas that Keras' loss objects make.

    Distillers scale all losses in one place, and functions given in place of objects are not
    divided at all.
    """
    losses = getattr(distillation_loss, "loss", None)

    def unscaled(loss):
        if not isinstance(loss, keras.losses.Loss) or loss.reduction in (None, "none", "sum"):
            return loss
        return lambda y_true, y_pred: loss(y_true, y_pred) * runtime.num_replicas()

    if losses is None or runtime.num_replicas() == 1:
        yield
        return
    distillation_loss.loss = keras.tree.map_structure(unscaled, losses)
    try:
        yield
    finally:
        distillation_loss.loss = losses


@keras.saving.register_keras_serializable(package="tfkd")
class KerasDistillationLoss(DistillationLoss):
    """Runs a `keras.distillation.DistillationLoss` wherever one of ours is accepted.

    `tfkd.losses.get()`, and so every distiller, wraps such a loss by itself. It then gets what
    our distillers offer: one forward pass per model, regularizers, sample weights of the
    labels' loss, the right scale under several replicas.

    Args:
        loss: A `keras.distillation.DistillationLoss`. One that is also a layer is trained with
            the student.
        weight: Number. Defaults to 1.
        spots: Defaults to the layers that the loss names, or to `"logits"` where it names none.
        name: String. Defaults to the name of the loss's class in snake case.
        **kwargs: Arguments of `DistillationLoss`.

    Raises:
        UsageError: If `loss` is not such a loss or already one of ours; in `call()`, if there
            is a sample mask, which its contract cannot express.

    Under several replicas, a loss of your own whose `compute_loss` calls a `keras.losses.Loss`
    object that it does not keep as `loss` divides by their number once too often: call a
    function of `keras.losses` instead.

    Note that `keras.distillation.LogitsDistillation()` as it is compares raw logits without a
    softmax; pass it `loss=keras.losses.KLDivergence()`, or use `tfkd`'s `"kd"`.

    Example:
    ```python
    loss = tfkd.losses.KerasDistillationLoss(
        keras.distillation.FeatureDistillation(
            "mse", teacher_layer_name="pooled", student_layer_name="pooled"
        )
    )
    value = loss([student_vector], [teacher_vector])
    ```
    """

    def __init__(self, loss, weight=1.0, spots=None, name=None, **kwargs):
        if not isinstance(loss, keras.distillation.DistillationLoss) or isinstance(
            loss, DistillationLoss
        ):
            raise UsageError(
                "KerasDistillationLoss wraps a keras.distillation.DistillationLoss; received "
                f"{type(loss).__name__}."
            )
        if spots is None:
            layers = (
                getattr(loss, "student_layer_name", None),
                getattr(loss, "teacher_layer_name", None),
            )
            spots = "logits" if layers == (None, None) else [[side or "logits" for side in layers]]
        snake_case = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__).lower()
        super().__init__(weight=weight, spots=spots, name=name or snake_case, **kwargs)
        self.loss = loss

    def build_spot(self, spot, student_shape, teacher_shape):
        """Checks the shapes; runs a loss that is a layer once, so that its weights exist."""
        elementwise = (
            keras.distillation.FeatureDistillation,
            keras.distillation.LogitsDistillation,
        )
        if isinstance(self.loss, elementwise) and student_shape[1:] != teacher_shape[1:]:
            raise UsageError(
                f"Loss {self.name!r} of keras.distillation compares element by element, and the "
                f"student's tap has shape {student_shape}, the teacher's {teacher_shape}: use "
                "'fitnet' of tfkd, which adapts one to the other."
            )
        if isinstance(self.loss, keras.layers.Layer):
            self.loss.compute_loss(
                ops.zeros((1, *teacher_shape[1:])), ops.zeros((1, *student_shape[1:]))
            )

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps by the wrapped loss."""
        if sample_mask is not None:
            raise UsageError(
                f"Loss {self.name!r} of keras.distillation cannot leave samples out: train "
                "without sample weights and without a mask, or use a loss of tfkd."
            )
        self.loss.validate_outputs(teacher_tap, student_tap)
        with _unscaled(self.loss):
            value = self.loss.compute_loss(teacher_tap, student_tap)
        return ops.cast(value, "float32")

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss}

    @classmethod
    def from_config(cls, config):
        """Makes a loss from what `get_config()` returned."""
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
