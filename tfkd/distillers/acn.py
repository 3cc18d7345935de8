"""ACN: mutual learning on images that a GAN makes to divide (Zhang et al., 2021)."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfkd import layers, pictures, runtime, schedules
from tfkd.distillers.mutual import MutualDistiller
from tfkd.errors import (
    UsageError,
    check_boolean,
    check_nonnegative,
    check_number,
    check_one_of,
    check_positive,
    check_positive_integer,
    check_share,
)
from tfkd.losses import masked_mean
from tfkd.models import mean_prediction
from tfkd.training.statistics import restore_on_exit, statistics

#: `{name: default residual_weight}`.
RESIDUALS = {"weak_skip": 0.5, "weak_residual": 0.1}
STATISTICS = ("separate", "shared")
MEANS = ("batch", "accepted")

#: The logs beside those of mutual learning.
LOGS = (
    "divergent_loss",
    "divergent_mutual_loss",
    "real_divergence",
    "generated_divergence",
    "accepted_share",
    "generator_loss",
    "adversarial_loss",
    "rewarded_divergence",
    "discriminator_loss",
    "label_restriction",
    "distance_restriction",
    "discriminator_real_accuracy",
    "discriminator_fake_accuracy",
)

#: The phases: the classifiers learn from each other on real images; a GAN learns to divide them;
#: they learn from each other on its images too; or the last two in one step.
WARM_UP, SEARCH, LEARN, BOTH = "warm_up", "search", "learn", "both"
#: The phases in which a drawn value is measured; in the others its log is 0.
MEASURED_IN = {
    "real_divergence": (WARM_UP, LEARN, BOTH),
    "generated_divergence": (LEARN, BOTH),
    "accepted_share": (LEARN, BOTH),
    "discriminator_real_accuracy": (SEARCH, BOTH),
    "discriminator_fake_accuracy": (SEARCH, BOTH),
}


def divergence(logits, temperature=1.0):
    """Returns the Jensen-Shannon divergence of predictions for the same samples.

    `H(mean of the predictions) - mean of the H(prediction)`, with the entropy `H`.

    Args:
        logits: List of float32 tensors `(batch, classes)`.
        temperature: Positive number that divides them.

    Returns:
        A tensor `(batch,)` in nats, from 0 (equal) to `ln(number of predictions)`.
    """
    logs = ops.stack([ops.log_softmax(tensor / temperature) for tensor in logits])
    mean = ops.log_softmax(mean_prediction(logits, temperature) / temperature)
    # As a mean of KL divergences, so that rounding keeps it near 0 or above.
    return ops.mean(ops.sum(ops.exp(logs) * (logs - mean), axis=-1), axis=0)


def weakly_residual(images, generated, residual, weight):
    """Combines images with generated ones through a weakly residual connection.

    Args:
        images: Tensor `(batch, height, width, channels)` in [-1, 1].
        generated: Tensor of the same shape and range.
        residual: `"weak_skip"`, `weight · images + (1 - weight) · generated`; or
            `"weak_residual"`, `images + weight · generated`.
        weight: Number in [0, 1].

    Returns:
        A tensor of the same shape, clipped to [-1, 1].
    """
    kept, added = (weight, 1.0 - weight) if residual == "weak_skip" else (1.0, weight)
    return ops.clip(kept * images + added * generated, -1.0, 1.0)


class ACN(MutualDistiller):
    """Adversarial co-distillation: classifiers teach each other on images made to divide them.

    After a warm-up of mutual learning, every step has two parts. In the adversarial part a
    generator `G` makes of training images `x` and noise `z` divergent images
    `x̂ = clip(a·x + b·G(x, z))` that the classifiers see differently, within restrictions, and a
    discriminator `D` tells them from real ones; the classifiers are in inference mode and do not
    change:

        L_D = softplus(−D(x)) + softplus(D(x̂))
        L_G = softplus(−D(x̂)) − divergence_weight · min(Div, divergence_cap · ln n)
              − label_weight · ln p̄_y(x̂) + distance_weight · mean(max(0, |x̂ − x| − distance_limit))

    with `Div` the Jensen-Shannon divergence of their `n` predictions for `x̂` and `p̄` the mean of
    these. In the other part the classifiers learn, from labels and each other, on real and on
    divergent images:

        L = Σ_i CE(z_i(x), y) + divergent_weight · Σ_i CE(z_i(x̂), y)
            + mutual_weight · temperature² · Σ_i [KL(q_i(x) ‖ p_i(x)) + KL(q_i(x̂) ‖ p_i(x̂))]

    with `q_i` the mean of the others' predictions. Of the `x̂` only accepted ones count: those that
    divide the classifiers, while at least one of them sees the right class.

    Args:
        students: As in `MutualDistiller`; images of at least 8×8 pixels, of one size.
        image_mean: Number, or one for each channel: the mean that was subtracted from pixels in
            [0, 1] to make the students' inputs.
        image_std: Number, or one for each channel: what they were then divided by.
        temperature: Positive number or schedule, of what classifiers teach each other.
        mutual_weight: Number of at least 0 or schedule.
        divergent_weight: Number of at least 0 or schedule, of the labels of divergent images.
        targets: As in `MutualDistiller`.
        warm_up: Integer, the epochs of mutual learning before; generator and discriminator idle.
        adversarial_every: 0: every step has both parts. `k` of at least 2: after the warm-up every
            `k`-th epoch, the first one included, has the adversarial part alone, and the epochs
            between have the other one alone.
        residual: `"weak_skip"`, `a = residual_weight` and `b = 1 - residual_weight`; or
            `"weak_residual"`, `a = 1` and `b = residual_weight`.
        residual_weight: Number in [0, 1]. None for 0.5 and 0.1, respectively.
        divergence_weight: Number of at least 0.
        divergence_temperature: Positive number, of the predictions in `Div`.
        divergence_cap: Number in (0, 1], the part of `ln n` beyond which more divergence is not
            rewarded; 1 for no cap.
        label_weight: Number of at least 0; 0 lets images leave their class.
        distance_weight: Number of at least 0; 0 lets images go anywhere.
        distance_limit: Number of at least 0, the change of a pixel, in [-1, 1], that is free.
        filter_divergent: Whether only accepted images are learnt from.
        acceptance_threshold: Number of at least 0, the divergence in nats that is asked of them.
        divergent_mean: `"batch"`, terms on `x̂` are means over the batch to which images that are
            not accepted contribute 0, so that every accepted image weighs what a real one does; or
            `"accepted"`, means over the accepted ones, each of which weighs the more the fewer
            there are.
        generated_statistics: `"separate"`, the batch normalizations of the classifiers normalize
            divergent images by their own statistics, and only real ones enter the moving
            averages; or `"shared"`, both enter.
        generator_clip_norm: Positive number, the norm to which the generator's gradient is
            clipped; None for none.
        noise_size: Integer.
        generator_width: Integer, the filters of its first convolution; see
            `tfkd.layers.ImageGenerator`.
        generator_blocks: Integer.
        discriminator_width: Integer; see `tfkd.layers.PatchDiscriminator`.
        name: String, optional.

    Raises:
        UsageError: If an argument is none of those above, or the students do not fit each other.

    Example:
    ```python
    data = tfkd.data.load("fashion_mnist", batch_size=128)
    students = [tfkd.models.create("resnet8", 10, data.input_shape, seed=seed) for seed in (0, 1)]
    distiller = tfkd.ACN(students, image_mean=data.mean, image_std=data.std)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(data.train, validation_data=data.validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: those of `MutualDistiller`; `divergent_loss` and `divergent_mutual_loss`, the sums over
    the classifiers on accepted images, as `divergent_mean` says; `real_divergence` and
    `generated_divergence`, of the predictions they learn from, and with `val_` of those in
    inference mode, as the generator sees them; `accepted_share`; of the adversarial part
    `generator_loss` and its parts, unweighted, `adversarial_loss`, `rewarded_divergence`,
    `label_restriction` and `distance_restriction`; `discriminator_loss`,
    `discriminator_real_accuracy` and `discriminator_fake_accuracy`. Epochs without the part have
    0.

    Deviations: of the paper only abstract and highlights were read, and no code of it is public.
    Generated divergent examples, the two phases, the weakly residual connection and the
    restricted adversarial search are named there; their formulas, the architectures, all losses,
    weights, the warm-up, the optimizers and the alternation are reconstructions. docs/acn.md says
    which is which.

    References:
        - [Adversarial co-distillation learning for image
          recognition](https://doi.org/10.1016/j.patcog.2020.107659), abstract.
        - [Deep Mutual Learning](https://arxiv.org/abs/1706.00384).
    """

    id = "acn"
    needs_image_range = True
    extra_optimizers = {
        name: {"name": "adam", "learning_rate": 2e-4, "beta_1": 0.5}
        for name in ("generator_optimizer", "discriminator_optimizer")
    }

    def __init__(
        self,
        students,
        image_mean=None,
        image_std=None,
        temperature=3.0,
        mutual_weight=1.0,
        divergent_weight=1.0,
        targets="mean",
        warm_up=5,
        adversarial_every=0,
        residual="weak_skip",
        residual_weight=None,
        divergence_weight=10.0,
        divergence_temperature=1.0,
        divergence_cap=0.5,
        label_weight=0.5,
        distance_weight=10.0,
        distance_limit=0.3,
        filter_divergent=True,
        acceptance_threshold=0.02,
        divergent_mean="batch",
        generated_statistics="separate",
        generator_clip_norm=1.0,
        noise_size=16,
        generator_width=64,
        generator_blocks=4,
        discriminator_width=64,
        name=None,
    ):
        super().__init__(students, temperature, mutual_weight, targets, name)
        _check_options(locals())
        self._scale, self._offset = _range_of(image_mean, image_std)
        self.divergent_weight = schedules.number_or_schedule(
            "divergent_weight", divergent_weight, nonnegative=True
        )
        self.warm_up, self.adversarial_every = warm_up, adversarial_every
        self.residual = residual
        self.residual_weight = RESIDUALS[residual] if residual_weight is None else residual_weight
        self.divergence_weight = divergence_weight
        self.divergence_temperature = divergence_temperature
        self.divergence_cap = divergence_cap
        self.label_weight = label_weight
        self.distance_weight, self.distance_limit = distance_weight, distance_limit
        self.filter_divergent = filter_divergent
        self.acceptance_threshold = acceptance_threshold
        self.divergent_mean = divergent_mean
        self.generated_statistics = generated_statistics
        self.generator_clip_norm = generator_clip_norm
        self.noise_size = noise_size
        # In float32 under any policy: the classifiers may be in half precision, the game is not.
        self.generator = layers.ImageGenerator(
            generator_width, generator_blocks, dtype="float32", name="generator"
        )
        self.discriminator = layers.PatchDiscriminator(
            discriminator_width, dtype="float32", name="discriminator"
        )
        self.seed_generator = keras.random.SeedGenerator()
        self.declare_logs(LOGS)
        self._steps = {}
        self.phase = self.phase_of(0)

    def build(self, input_shape):
        """Creates generator and discriminator for images of this shape."""
        if len(input_shape) != 4:
            raise UsageError(
                "ACN generates images (batch, height, width, channels); the students take inputs "
                f"of shape {tuple(input_shape)}."
            )
        channels = input_shape[-1]
        for name, values in (("image_mean", self._offset), ("image_std", self._scale)):
            if np.size(values) not in (1, channels):
                raise UsageError(
                    f"{name} must be a number or one for each of the {channels} channels; received "
                    f"{np.size(values)}."
                )
        images = (None, *input_shape[1:])
        self.generator.build([images, (None, self.noise_size)])
        self.discriminator.build(images)
        super().build(input_shape)

    def compile(self, *args, **kwargs):
        """Configures training; see `MutualDistiller.compile`.

        Args:
            *args: As there.
            **kwargs: As there, and `generator_optimizer` and `discriminator_optimizer`: each a
                Keras optimizer, its name, or a dictionary of settings as
                `tfkd.optimizers.create` takes them. They default to Adam with a learning rate of
                2e-4 and `beta_1` of 0.5.
        """
        super().compile(*args, **kwargs)
        self._steps = {}

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        return {
            **self.student_optimizers(),
            "generator_optimizer": (
                self.generator_optimizer,
                self.generator.trainable_variables,
            ),
            "discriminator_optimizer": (
                self.discriminator_optimizer,
                self.discriminator.trainable_variables,
            ),
        }

    # Phases.

    def phase_of(self, epoch):
        """Returns the phase of an epoch: `"warm_up"`, `"search"`, `"learn"` or `"both"`."""
        if epoch < self.warm_up:
            return WARM_UP
        if self.adversarial_every == 0:
            return BOTH
        return LEARN if (epoch - self.warm_up) % self.adversarial_every else SEARCH

    def start_epoch(self, epoch):
        """Begins an epoch, with the compiled step of its phase."""
        super().start_epoch(epoch)
        phase = self.phase_of(epoch)
        if phase == self.phase:
            return
        # Keras compiles one step; here each phase has its own, without the cost of the others. A
        # condition within one step does not work under several replicas.
        self._steps[self.phase] = self.train_function
        self.phase, self.train_function = phase, self._steps.get(phase)
        self.make_train_function()

    def train_step(self, data):
        """Takes the steps of the phase: generator and discriminator, then the classifiers."""
        if self.phase == WARM_UP:
            return super().train_step(data)
        batch = self.unpack(data)
        noise = self.draw_noise(batch.size)
        if self.phase in (SEARCH, BOTH):
            self.search(batch, noise)
        if self.phase == SEARCH:
            logits, terms = self.compute_losses(batch, noise)
            self.objective(batch, terms)
        else:
            logits = self.learn(batch, noise)
        return self.logs(batch, logits)

    def compute_losses(self, batch, noise=None):
        """Runs the classifiers on the images of the phase.

        Args:
            batch: The `Batch`.
            noise: From `draw_noise()`; None to draw it.

        Returns:
            The first classifier's logits for the real images, and the terms; see `Distiller`.
        """
        if self.phase == WARM_UP:
            return super().compute_losses(batch)
        if self.phase == SEARCH:
            # They do not learn; their loss is logged.
            logits = self.observe_students(batch, training=False)
            self.track_accuracies(batch, logits)
            loss = self.student_loss(batch, logits[0])
            # As in the other epochs, of which it is one loss of several.
            self.track("student_loss", loss, batch)
            return logits[0], {"student_loss": (1.0, loss)}
        noise = self.draw_noise(batch.size) if noise is None else noise
        # The generator does not learn here.
        divergent = self.from_range(
            tf.stop_gradient(self.generate(self.to_range(batch.inputs), noise))
        )
        generated = dataclasses.replace(batch, inputs=divergent, peer_images=None)
        logits = self.observe_students(batch)
        shared = self.generated_statistics == "shared"
        with restore_on_exit(statistics(self.students), keep=shared):
            divergent_logits = self.observe_students(generated)
        self.track_accuracies(batch, logits)
        terms = self.teach_each_other(batch, logits)
        return logits[0], terms | self.teach_on_divergent(generated, divergent_logits)

    # The adversarial part.

    def draw_noise(self, size, seed=None):
        """Returns noise `(size, noise_size)`, the same whatever the number of replicas.

        Args:
            size: Integer tensor, the number of this replica's samples.
            seed: Integer, for the same noise every time; None for the distiller's generator.
        """
        seed = self.seed_generator if seed is None else seed
        return runtime.draw_per_sample(
            lambda total: keras.random.normal((total, self.noise_size), seed=seed), size
        )

    def to_range(self, inputs):
        """Returns the students' inputs as images in [-1, 1]."""
        return ops.clip(ops.cast(inputs, "float32") * self._scale + self._offset, -1.0, 1.0)

    def from_range(self, images):
        """Returns images in [-1, 1] as the students' inputs."""
        return (images - self._offset) / self._scale

    def generate(self, images, noise):
        """Returns divergent images, `(batch, height, width, channels)` in [-1, 1].

        Args:
            images: Tensor of this shape and range.
            noise: Tensor `(batch, noise_size)`.
        """
        generated = self.generator([images, noise])
        return weakly_residual(images, generated, self.residual, self.residual_weight)

    def search(self, batch, noise):
        """Takes one step of the discriminator, and one of the generator against it."""
        images = self.to_range(batch.inputs)
        with tf.GradientTape() as tape:
            divergent = self.generate(images, noise)
            with tape.stop_recording():
                self.tell_apart(batch, images, divergent)
            inputs = self.from_range(divergent)
            logits = [ops.cast(one(inputs, training=False), "float32") for one in self.students]
            terms = self.restrict(batch, images, divergent, logits)
            verdict = self.discriminator(divergent)
            terms["adversarial_loss"] = (1.0, _mean(batch, ops.softplus(-verdict)))
            objective = self.auxiliary_objective(batch, terms)
        self.track("generator_loss", sum(weight * value for weight, value in terms.values()), batch)
        own = self.optimizers()["generator_optimizer"]
        self.update(tape, objective, *own, clip_norm=self.generator_clip_norm)

    def tell_apart(self, batch, images, divergent):
        """Takes one step of the discriminator."""
        with tf.GradientTape() as tape:
            both = self.discriminator(ops.concatenate([images, divergent]), training=True)
            real, fake = ops.split(both, 2)
            loss = _mean(batch, ops.softplus(-real) + ops.softplus(fake))
            objective = self.auxiliary_objective(batch, {"discriminator_loss": (1.0, loss)})
        self.update(tape, objective, *self.optimizers()["discriminator_optimizer"])
        self.track(
            "discriminator_real_accuracy", _mean(batch, ops.cast(real > 0, "float32")), batch
        )
        self.track(
            "discriminator_fake_accuracy", _mean(batch, ops.cast(fake < 0, "float32")), batch
        )

    def restrict(self, batch, images, divergent, logits):
        """Returns the reward for divergence and the restrictions, as terms of the objective."""
        cap = self.divergence_cap * math.log(len(logits))
        apart = divergence(logits, self.divergence_temperature)
        labels = batch.class_numbers(logits[0].shape[-1])
        mean = ops.log_softmax(mean_prediction(logits))
        of_class = ops.take_along_axis(mean, labels[:, None], axis=-1)[:, 0]
        distance = ops.relu(ops.abs(divergent - images) - self.distance_limit)
        return {
            "rewarded_divergence": (-self.divergence_weight, _mean(batch, ops.minimum(apart, cap))),
            "label_restriction": (self.label_weight, _mean(batch, -of_class)),
            "distance_restriction": (
                self.distance_weight,
                _mean(batch, ops.mean(distance, axis=(1, 2, 3))),
            ),
        }

    # The part of the classifiers.

    def teach_each_other(self, batch, logits):
        """Returns the terms of labels and peers on real images; see `MutualDistiller`."""
        self._track_divergence("real_divergence", batch, logits)
        return super().teach_each_other(batch, logits)

    def teach_on_divergent(self, batch, logits):
        """Returns the terms of labels and peers on divergent images.

        Args:
            batch: The `Batch`, with divergent images.
            logits: List of the classifiers' logits for them.
        """
        self._track_divergence("generated_divergence", batch, logits)
        accepted = self.accept(batch, logits)
        weight = batch.sample_weight
        if weight is None:
            share = batch.mean_over_replicas(ops.mean(accepted))
            weight = accepted
        else:
            # Samples of weight 0 do not count.
            present = ops.cast(weight > 0, "float32")
            parts = ops.mean(accepted * present), ops.mean(present)
            parts = [batch.mean_over_replicas(part) for part in parts]
            share = tf.math.divide_no_nan(*parts)
            weight = accepted * ops.cast(weight, "float32")
        self.track("accepted_share", share, batch)
        chosen = dataclasses.replace(batch, sample_weight=weight)
        # An image of weight 0 contributes 0 even where a classifier's output is not finite.
        counted = weight[:, None] > 0
        own = sum(
            self.student_loss(chosen, ops.where(counted, tensor, ops.zeros_like(tensor)))
            for tensor in logits
        )
        mutual = self.mutual_loss(batch, logits, accepted)
        if self.divergent_mean == "accepted":
            # Sums over the accepted over the batch's size, made means over the accepted.
            own, mutual = (tf.math.divide_no_nan(term, share) for term in (own, mutual))
        return {
            "divergent_loss": (self.value_of(self.divergent_weight), own),
            "divergent_mutual_loss": (self.mutual.value_of(self.mutual.weight), mutual),
        }

    def accept(self, batch, logits):
        """Returns 1 for images that divide the classifiers and keep their class, 0 for others.

        Args:
            batch: The `Batch`.
            logits: List of the classifiers' logits for its images.

        Returns:
            A float32 tensor `(batch,)`.
        """
        if not self.filter_divergent:
            return ops.ones_like(logits[0][:, 0])
        labels = batch.class_numbers(logits[0].shape[-1])
        recognised = [ops.argmax(tensor, axis=-1) == labels for tensor in logits]
        apart = divergence(logits, self.divergence_temperature)
        divided = apart >= self.acceptance_threshold
        return ops.cast(ops.logical_and(ops.any(recognised, axis=0), divided), "float32")

    def _track_divergence(self, name, batch, logits):
        self.track(name, _mean(batch, divergence(logits, self.divergence_temperature)), batch)

    def test_step(self, data):
        """Evaluates all classifiers, and their divergence on real and divergent images."""
        batch = self.unpack(data)
        logits = self.observe_students(batch, training=False)
        # A fixed seed, so that evaluation does not advance the generator of training.
        noise = self.draw_noise(batch.size, seed=0)
        divergent = runtime.run_padded(
            lambda tensors: self.from_range(self.generate(self.to_range(tensors[0]), tensors[1])),
            (batch.inputs, noise),
        )
        generated = dataclasses.replace(batch, inputs=divergent, activity=[])
        generated = self.observe_students(generated, training=False)
        self._track_divergence("real_divergence", batch, logits)
        self._track_divergence("generated_divergence", batch, generated)
        self.track_accuracies(batch, logits)
        return self.evaluated(batch, logits[0])

    # Pictures and warnings.

    def examples(self, inputs, seed=0):
        """Returns divergent images of some inputs, and the predictions for both.

        It changes no variable.

        Args:
            inputs: Tensor or array `(batch, height, width, channels)`, as the students take it.
            seed: Integer, of the noise.

        Returns:
            A dictionary of arrays: `real` and `divergent`, images in [0, 1]; and
            `real_predictions` and `divergent_predictions`, probabilities
            `(classifiers, batch, classes)`.
        """
        images = self.to_range(inputs)
        noise = keras.random.normal((len(inputs), self.noise_size), seed=seed)
        divergent = self.generate(images, noise)
        found = {}
        for name, shown in (("real", images), ("divergent", divergent)):
            logits = [one(self.from_range(shown), training=False) for one in self.students]
            found[name] = np.array(shown) / 2 + 0.5
            found[f"{name}_predictions"] = np.array(ops.softmax(ops.cast(logits, "float32")))
        return found

    def epoch_pictures(self, history, inputs, labels, class_names):
        """Returns a grid of real and divergent images, and the divergence so far."""
        found = self.examples(inputs)
        rows = []
        for name in ("real", "divergent"):
            predicted = found[f"{name}_predictions"].argmax(-1).T
            captions = [" / ".join(class_names[number] for number in one) for one in predicted]
            rows.append((name, found[name], captions))
        titles = [class_names[int(label)] for label in labels]
        return {
            "divergent.png": pictures.ImageGrid(rows, titles),
            "divergence.png": self._divergence_panels(history),
        }

    def _divergence_panels(self, history):
        contents = {
            "divergence in training mode": {
                "generated images": "generated_divergence",
                "real images": "real_divergence",
            },
            "discriminator accuracy, images accepted": {
                "right of real images": "discriminator_real_accuracy",
                "right of generated images": "discriminator_fake_accuracy",
                "share of images accepted": "accepted_share",
            },
            "divergence of validation images": {
                "generated images": "val_generated_divergence",
                "real images": "val_real_divergence",
            },
        }
        measured = [
            {
                log: value
                for log, value in logs.items()
                if log not in MEASURED_IN or self.phase_of(epoch) in MEASURED_IN[log]
            }
            for epoch, logs in enumerate(history)
        ]
        free = [title for title in contents if title.startswith("divergence")]
        return pictures.Panels(measured, contents, free)

    def warnings(self, inputs):
        """Returns a warning where inputs do not fit `image_mean` and `image_std`."""
        images = np.array(inputs, "float32") * self._scale + self._offset
        outside = float(np.mean(np.abs(images) > 1.01))
        if outside < 0.02:
            return []
        pixels = images / 2 + 0.5
        return [
            f"{outside:.0%} of the pixels are outside of [0, 1] once image_mean and image_std are "
            f"undone (they reach from {pixels.min():.3g} to {pixels.max():.3g}) and would be "
            "clipped: pass those by which the inputs were normalized."
        ]


def _mean(batch, values):
    """Returns the mean of a tensor `(batch,)`, by the samples' weights."""
    return masked_mean(values, batch.sample_weight)


def _range_of(mean, std):
    """Returns `(scale, offset)` that bring normalized inputs to [-1, 1], as float32 arrays."""
    mean, std = (0.0 if mean is None else mean), (1.0 if std is None else std)
    try:
        mean, std = np.array(mean, "float32"), np.array(std, "float32")
    except (TypeError, ValueError) as error:
        raise UsageError(
            "image_mean and image_std must be numbers, or one for each channel; received "
            f"{mean!r} and {std!r}."
        ) from error
    if not np.all(np.isfinite(mean)) or not np.all(std > 0) or max(mean.ndim, std.ndim) > 1:
        raise UsageError(
            "image_mean and image_std must be numbers, or one for each channel, and image_std "
            f"above 0; received {mean.tolist()} and {std.tolist()}."
        )
    return 2 * std, 2 * mean - 1


_CHECKS = {
    check_nonnegative: (
        "divergence_weight",
        "label_weight",
        "distance_weight",
        "distance_limit",
        "acceptance_threshold",
    ),
    check_positive: ("divergence_temperature", "generator_clip_norm"),
    check_share: ("divergence_cap", "residual_weight"),
    check_positive_integer: (
        "noise_size",
        "generator_width",
        "generator_blocks",
        "discriminator_width",
    ),
    check_boolean: ("filter_divergent",),
}


def _check_options(options):
    """Checks the constructor's arguments that are numbers or names, given as a dictionary."""
    check_one_of("residual", options["residual"], RESIDUALS)
    check_one_of("divergent_mean", options["divergent_mean"], MEANS)
    check_one_of("generated_statistics", options["generated_statistics"], STATISTICS)
    for check, names in _CHECKS.items():
        for name in names:
            if options[name] is not None or name not in ("residual_weight", "generator_clip_norm"):
                check(name, options[name])
    for name, wanted, accepts, kinds in (
        ("divergence_cap", "above 0, and at most 1 for no cap", lambda x: x > 0, (int, float)),
        ("warm_up", "a whole number of epochs, at least 0", lambda x: x >= 0, int),
        (
            "adversarial_every",
            "0, for both parts in every step, or a whole number of epochs of at least 2",
            lambda x: x == 0 or x >= 2,
            int,
        ),
    ):
        check_number(name, options[name], wanted, accepts, kinds)
