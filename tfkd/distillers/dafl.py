"""DAFL: no data; images of which a teacher is certain are made (Chen et al., 2019)."""

import math

import tensorflow as tf
from keras import ops

from tfkd import losses, pictures, runtime, taps
from tfkd.distillers.data_free import DataFree
from tfkd.errors import check_nonnegative


def uncertainty(logits):
    """Returns the cross-entropy with the class that is predicted, a tensor `(batch,)`.

    Args:
        logits: Float32 tensor `(batch, classes)`.
    """
    return -ops.max(ops.log_softmax(logits), axis=-1)


def imbalance(prediction):
    """Returns the negative entropy of a prediction in decimal digits, least where all are equal.

    Args:
        prediction: Float32 tensor of probabilities `(classes,)`.

    Returns:
        A scalar, from `−log₁₀(classes)` to 0.
    """
    return ops.sum(prediction * ops.log(ops.maximum(prediction, 1e-30))) / math.log(10)


class DAFL(DataFree):
    """Data-free learning: a student imitates its teacher on images made of noise.

    A generator `G` makes images `x̂ = G(noise)` that look like data to the teacher: it is certain
    of each, sees all classes, and its features are strong. The student imitates the teacher on
    the same images, through which no gradient flows:

        L_G = one_hot_weight · mean CE(z_t, argmax z_t) + balance_weight · Σ_c p̄_c log₁₀ p̄_c
              − activation_weight · mean |h_t|
        L   = temperature² · KL(softmax(z_t / T) ‖ softmax(z_s / T))

    with the teacher's logits `z_t` and pooled features `h_t` of `x̂`, and its mean prediction `p̄`
    over the batch of all replicas. Of the data that `fit` is given only the number and the size
    of batches count.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)` of images.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)` of the same images,
            normalized to a mean of 0 and a standard deviation of 1.
        one_hot_weight: Number of at least 0. Defaults to 0.05, as published for CIFAR-10.
        balance_weight: Number of at least 0. Defaults to 5, as published for the same.
        activation_weight: Number of at least 0. Defaults to 0.01, as published for the same.
        temperature: Positive number or schedule. Defaults to 1, as in the published code.
        noise_size: Integer, how many numbers an image is made of. Published: 1000.
        generator_width: Integer; see `tfkd.layers.NoiseGenerator`. Published: 64.
        teacher_features: The teacher's tap with its features. None for its pooled vector.
        name: String, optional.

    Raises:
        UsageError: If there is no teacher, a number is out of its range, or the models take no
            images of one size.

    Example:
    ```python
    distiller = tfkd.DAFL(student, teacher)
    distiller.compile(tfkd.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(distiller.without_data(batch_size=256, steps=100), epochs=50)
    distiller.student.save("student.keras")
    ```

    Logs: `loss`, the student's; `one_hot_loss`, `balance_loss` and `activation_loss`, the
    generator's, unweighted; metrics of training take the teacher's classes for the labels, those
    of validation have the data's.

    Deviations: the optimizer of the generator is Adam at 1e-3 where the published one has 0.02, in
    batches of 1024 and 240,000 steps; `compile(generator_optimizer=...)` takes any.

    References:
        - [Data-Free Learning of Student Networks](https://arxiv.org/abs/1904.01186), and its
          [code](https://github.com/huawei-noah/Efficient-Computing).
    """

    id = "dafl"

    def __init__(
        self,
        student,
        teacher,
        one_hot_weight=0.05,
        balance_weight=5.0,
        activation_weight=0.01,
        temperature=1.0,
        noise_size=100,
        generator_width=64,
        teacher_features=None,
        name=None,
    ):
        super().__init__(student, teacher, noise_size, generator_width, name)
        self.weights_of_generator = {
            "one_hot": one_hot_weight,
            "balance": balance_weight,
            "activation": activation_weight,
        }
        for part, weight in self.weights_of_generator.items():
            check_nonnegative(f"{part}_weight", weight)
        self.imitation = losses.KnowledgeDistillation(temperature, weight=1.0, name="imitation")
        self.teacher_features = teacher_features or taps.at_spots(self.teacher, "pooled")[0]
        self.watch(teacher=[self.teacher_features])

    def train_step(self, data):
        """Takes one step of the generator and one of the student, on the same images."""
        batch = self.unpack(data)
        with tf.GradientTape() as tape:
            images = self.generate(batch)
            teacher = self.run_teacher(images)
            objective = self.auxiliary_objective(batch, self.attract(batch, teacher))
        self.update(tape, objective, *self.optimizers()["generator_optimizer"])
        return self.logs_of_generated(batch, self.learn(batch, images, teacher))

    def attract(self, batch, teacher):
        """Returns the terms of the generator's objective.

        Args:
            batch: The `Batch`.
            teacher: What `run_teacher` returned.
        """
        logits, features = (
            ops.cast(teacher[tap], "float32") for tap in (taps.LOGITS, self.teacher_features)
        )
        # As in `distillation_loss`: all replicas compute the same value.
        mean = ops.mean(ops.softmax(runtime.gather_batch(logits)), axis=0)
        together = imbalance(mean) / runtime.num_replicas()
        values = {
            "one_hot": ops.mean(uncertainty(logits)),
            "balance": batch.sum_as_mean(together),
            "activation": -ops.mean(ops.abs(features)),
        }
        weights = self.weights_of_generator
        return {f"{part}_loss": (weights[part], value) for part, value in values.items()}

    def pictures(self, history):
        """Returns `{"dafl.png": ...}`: what generator and student reach."""
        contents = {
            "the student's divergence": {"generated images": "loss"},
            "the teacher's uncertainty": {"generated images": "one_hot_loss"},
            "accuracy": {
                "of the teacher's classes, generated images": "accuracy",
                "of the labels, validation images": "val_accuracy",
            },
        }
        free = [title for title in contents if title != "accuracy"]
        return {"dafl.png": pictures.Panels(history, contents, free)}
