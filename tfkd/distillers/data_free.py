"""DataFree: the base class of methods that train on images made of noise."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfkd import layers, pictures, runtime, taps
from tfkd.distillers.distiller import Distiller
from tfkd.errors import check_positive_integer


class DataFree(Distiller):
    """Base class that trains a student on what a teacher says about images made of noise.

    A generator makes the images, and is trained by the teacher alone; it is no part of the
    student. Of the data that `fit` is given only the number and the size of batches count: neither
    images nor labels are looked at. `without_data()` makes such data where there is none.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)` of images.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)` of the same images,
            normalized to a mean of 0 and a standard deviation of 1.
        noise_size: Integer, how many numbers the generator makes an image of.
        generator_width: Integer; see `tfkd.layers.NoiseGenerator`.
        name: String, optional.

    Raises:
        UsageError: If there is no teacher, or the models take no images of one size.
    """

    label_terms = ()
    student_loss_weight = 0.0
    extra_optimizers = {"generator_optimizer": {"name": "adam", "learning_rate": 1e-3}}
    #: The loss by which the student learns, a `DistillationLoss`.
    imitation = None

    def __init__(self, student, teacher, noise_size=100, generator_width=64, name=None):
        super().__init__(student, teacher, name=name)
        check_positive_integer("noise_size", noise_size)
        check_positive_integer("generator_width", generator_width)
        self.noise_size = noise_size
        self.generator_width = generator_width
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape):
        """Creates the generator of images of this shape."""
        # In float32 under any policy, as games of networks are.
        self.generator = layers.NoiseGenerator(
            input_shape[1:], self.generator_width, dtype="float32", name="generator"
        )
        self.generator.build((None, self.noise_size))
        student, teacher = self.tap_shapes(input_shape)
        self.imitation.build([student[taps.LOGITS]], [teacher[taps.LOGITS]])

    def distillation_parts(self):
        """Returns the loss that teacher and student share, for `check`."""
        return [(self.imitation, [(taps.LOGITS, taps.LOGITS)])]

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        return {
            "optimizer": (self.optimizer, self.student.trainable_variables),
            "generator_optimizer": (self.generator_optimizer, self.generator.trainable_variables),
        }

    def without_data(self, batch_size, steps):
        """Returns data for `fit` where there are no images.

        Args:
            batch_size: Integer, how many images a step makes.
            steps: Integer, the steps of an epoch.

        Returns:
            A `tf.data.Dataset` of batches of the right shapes, all zeros.
        """
        self.ensure_built()
        images = tf.zeros((batch_size, *self.generator.image_shape))
        labels = tf.zeros((batch_size,), "int32")
        return tf.data.Dataset.from_tensors((images, labels)).repeat(steps)

    def draw_noise(self, size):
        """Returns noise `(size, noise_size)`, the same whatever the number of replicas.

        Args:
            size: Integer tensor, the number of this replica's images.
        """
        return runtime.draw_per_sample(
            lambda total: keras.random.normal((total, self.noise_size), seed=self.seed_generator),
            size,
        )

    def generate(self, batch):
        """Returns as many new images as a batch has, `(batch, height, width, channels)`."""
        return self.generator(self.draw_noise(batch.size), training=True)

    def run_teacher(self, images):
        """Returns `{tap: tensor}` of the teacher, in inference mode; gradients reach the images."""
        return self._observers.teacher(images, training=False)

    def compute_losses(self, batch, images=None, teacher=None):
        """Runs the student on generated images; it imitates the teacher.

        Args:
            batch: The `Batch`.
            images: What `generate` returned; None for new ones.
            teacher: What `run_teacher` returned for them; None to run it.
        """
        images = tf.stop_gradient(self.generate(batch) if images is None else images)
        generated = dataclasses.replace(
            batch,
            inputs=images,
            sample_weight=None,
            given=None,
            teacher_images=None,
            teacher=None,
        )
        if teacher is not None:
            generated.teacher = {tap: tf.stop_gradient(x) for tap, x in teacher.items()}
        teacher = self.observe_teacher(generated)
        batch.teacher = teacher
        logits = self.observe_student(generated)[taps.LOGITS]
        value = self.distillation_loss(self.imitation, generated, [logits], [teacher[taps.LOGITS]])
        return logits, {"imitation_loss": (1.0, value)}

    def logs_of_generated(self, batch, logits):
        """Returns the logs of a step, whose metrics take the teacher's classes for the labels.

        Args:
            batch: The `Batch`, after `compute_losses`.
            logits: The student's logits for the generated images.
        """
        classes = logits.shape[-1]
        labels = ops.argmax(batch.teacher[taps.LOGITS], axis=-1)
        if tuple(getattr(batch.labels, "shape", ()))[1:] == (classes,):
            labels = ops.one_hot(labels, classes)
        return self.logs(dataclasses.replace(batch, labels=labels, sample_weight=None), logits)

    def epoch_pictures(self, history, inputs, labels, class_names):
        """Returns a grid of generated images, each with the teacher's class."""
        # The same noise after every epoch.
        noise = keras.random.normal((16, self.noise_size), seed=0)
        images = self.generator(noise, training=False)
        found = np.argmax(self.run_teacher(images)[taps.LOGITS], axis=-1)
        images = np.array(images)
        low, high = images.min(), images.max()
        images = (images - low) / max(high - low, 1e-6)
        captions = [class_names[number] for number in found]
        rows = [("", images[i : i + 8], captions[i : i + 8]) for i in (0, 8)]
        return {"generated.png": pictures.ImageGrid(rows, [""] * 8)}
