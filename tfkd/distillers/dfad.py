"""DFAD: no data; images on which both models differ are made (Fang et al., 2019)."""

import dataclasses

import tensorflow as tf
from keras import ops

from tfkd import losses, pictures, taps
from tfkd.distillers.data_free import DataFree
from tfkd.errors import check_positive_integer
from tfkd.losses import masked_mean


class AbsoluteDifference(losses.DistillationLoss):
    """Mean absolute difference of logits `(batch, classes)`, over samples and classes."""

    compares_classes = True

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two logits; see the class."""
        return masked_mean(ops.mean(ops.abs(student_tap - teacher_tap), axis=-1), sample_mask)


class DFAD(DataFree):
    """Data-free adversarial distillation: images on which the student is still wrong.

    A generator makes images of noise on which student and teacher differ, and the student learns
    not to: they play against each other for `mean |z_s − z_t|`, the mean absolute difference of
    their logits `(batch, classes)`. In each step the student takes `student_steps` steps on new
    images each, then the generator takes one. Of the data that `fit` is given only the number and
    the size of batches count.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)` of images.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)` of the same images,
            normalized to a mean of 0 and a standard deviation of 1.
        student_steps: Integer of at least 1. Defaults to 5, as in the published code.
        noise_size: Integer, how many numbers an image is made of.
        generator_width: Integer; see `tfkd.layers.NoiseGenerator`.
        name: String, optional.

    Raises:
        UsageError: If there is no teacher, a number is out of its range, or the models take no
            images of one size.

    Example:
    ```python
    distiller = tfkd.DFAD(student, teacher)
    distiller.compile(tfkd.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(distiller.without_data(batch_size=256, steps=50), epochs=100)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, the student's in the last of its steps; `difference`, that of the generator's
    images, which it makes as large as it can; metrics of training take the teacher's classes for
    the labels, those of validation have the data's.

    Deviations: the generator is that of `DAFL`; optimizer and sizes are ours.

    References:
        - [Data-Free Adversarial Distillation](https://arxiv.org/abs/1912.11006), and its
          [code](https://github.com/VainF/Data-Free-Adversarial-Distillation).
    """

    id = "dfad"

    def __init__(
        self, student, teacher, student_steps=5, noise_size=100, generator_width=64, name=None
    ):
        super().__init__(student, teacher, noise_size, generator_width, name)
        check_positive_integer("student_steps", student_steps)
        self.student_steps = student_steps
        self.imitation = AbsoluteDifference(name="imitation")

    def train_step(self, data):
        """Takes the student's steps, each on new images, and one of the generator."""
        whole = self.unpack(data)
        for _ in range(self.student_steps):
            batch = dataclasses.replace(whole, values={}, parts={}, activity=[])
            logits = self.learn(batch)
        with tf.GradientTape() as tape:
            images = self.generate(whole)
            generated = dataclasses.replace(whole, inputs=images, activity=[])
            student = self.run_student(generated, self.student, self.student)
            teacher = self.run_teacher(images)[taps.LOGITS]
            student, teacher = (ops.cast(logits, "float32") for logits in (student, teacher))
            apart = ops.mean(ops.abs(student - teacher))
            objective = self.auxiliary_objective(batch, {"difference": (-1.0, apart)})
        self.update(tape, objective, *self.optimizers()["generator_optimizer"])
        return self.logs_of_generated(batch, logits)

    def pictures(self, history):
        """Returns `{"dfad.png": ...}`: the game, and what the student reaches."""
        contents = {
            "difference of the logits": {
                "the student's images": "loss",
                "the generator's images": "difference",
            },
            "accuracy": {
                "of the teacher's classes, generated images": "accuracy",
                "of the labels, validation images": "val_accuracy",
            },
        }
        return {"dfad.png": pictures.Panels(history, contents, ["difference of the logits"])}
