"""Stands in for a teacher whose outputs come with the data."""

import keras
from keras import layers

from tfkd.errors import UsageError
from tfkd.taps import LOGITS


@keras.saving.register_keras_serializable(package="tfkd")
class _Recorded(layers.Layer):
    """Has a shape, and cannot be computed."""

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor((inputs.shape[0], *self.shape), self.compute_dtype)

    def call(self, inputs, training=None):
        raise UsageError(
            f"The teacher's outputs {self.name!r} are recorded, and a batch came without them: "
            'labels must be {"label": labels, "teacher": {tap: outputs}}, as '
            "tfkd.data.Data.with_teacher_outputs makes them."
        )

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


def recorded(student, classes=None, name="recorded", **features):
    """Makes the teacher of a student whose teacher's outputs come with the data.

    For teachers that are no Keras model here: an ensemble, a PyTorch model, a model behind an
    interface. It has no weights and cannot run.

    Args:
        student: `keras.Model`, whose images it takes.
        classes: Integer, the size of the teacher's logits; `None` for that of the student's.
        name: String, the model's name.
        **features: Shapes of further outputs, such as `pooled=(64,)`, one example each.

    Returns:
        A functional `keras.Model` for a distiller's `teacher`.

    Raises:
        UsageError: If the shapes of the student are not known.

    Example:
    ```python
    teacher = tfkd.models.recorded(student)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    distiller.compile("adam")
    distiller.fit(images, {"label": labels, "teacher": {"logits": logits}})
    ```
    """
    shape = getattr(student, "input_shape", None)
    if shape is None or len(getattr(student, "output_shape", None) or ()) != 2:
        raise UsageError(
            f"recorded needs a student whose shapes are known; call {student!r} on a batch first."
        )
    image = keras.Input(shape[1:], name="image")
    x = image
    for tap, feature in features.items():
        x = _Recorded(feature, name=tap)(x)
    logits = _Recorded((classes or student.output_shape[-1],), name=LOGITS)(x)
    return keras.Model(image, logits, name=name)
