"""Weights and temperatures that change with the epoch."""

import math
import numbers

import keras
from keras import ops

from tfkd.errors import UsageError, check_positive


class Schedule:
    """A number that depends on the epoch; the base class of every schedule.

    Losses take one wherever they take a scheduled number, `weight` and `temperature`:

    ```python
    loss = tfkd.losses.KnowledgeDistillation(weight=tfkd.schedules.LinearWarmUp(0, 0.9, epochs=20))
    ```

    They take schedules of `keras.optimizers.schedules` too, and call them on the epoch.

    Subclasses implement `__call__()` in `keras.ops`, and `get_config()`, which returns the
    arguments of their constructor; they are registered with
    `keras.saving.register_keras_serializable`.

    Attributes:
        bounds: The least and the greatest value; empty where they are not known. Where a number
            must be positive, they must be.
    """

    bounds = ()

    def __call__(self, epoch):
        """Returns the value at an epoch.

        Args:
            epoch: Number or scalar tensor, counted from 0; 2.5 is halfway through the third.

        Returns:
            A float32 scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement __call__().")

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes a schedule from what `get_config()` returned."""
        return cls(**config)

    def __repr__(self):
        arguments = (f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


@keras.saving.register_keras_serializable(package="tfkd")
class Constant(Schedule):
    """The same value at every epoch.

    Args:
        value: Number.

    Raises:
        UsageError: If `value` is no finite number.

    Example:
    ```python
    tfkd.schedules.Constant(0.9)(epoch=7)  # 0.9
    ```
    """

    def __init__(self, value):
        _check_number("Constant: value", value)
        self.value = value
        self.bounds = (value, value)

    def __call__(self, epoch):
        """Returns the value; see `Schedule`."""
        return ops.convert_to_tensor(self.value, "float32")

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {"value": self.value}


class _Ramp(Schedule):
    """Goes from `start` to `end` in `epochs` and stays there."""

    def __init__(self, start, end, epochs):
        kind = type(self).__name__
        _check_number(f"{kind}: start", start)
        _check_number(f"{kind}: end", end)
        check_positive(f"{kind}: epochs", epochs)
        self.start = start
        self.end = end
        self.epochs = epochs
        self.bounds = (min(start, end), max(start, end))

    def __call__(self, epoch):
        """Returns the value at an epoch; see `Schedule`."""
        progress = self._progress(ops.cast(epoch, "float32"))
        # In this form both ends are exact.
        return (1 - progress) * self.start + progress * self.end

    def _progress(self, epoch):
        """Returns the progress at an epoch, from 0 to 1."""
        return ops.clip(epoch / self.epochs, 0.0, 1.0)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {"start": self.start, "end": self.end, "epochs": self.epochs}


@keras.saving.register_keras_serializable(package="tfkd")
class LinearWarmUp(_Ramp):
    """Goes from `start` to `end` by equal steps, and stays there.

    `start + (end - start) · min(epoch / epochs, 1)`

    Args:
        start: Number, the value of the first epoch.
        end: Number, the value from epoch number `epochs`, counted from 0, on.
        epochs: Number greater than 0.

    Raises:
        UsageError: If `start` or `end` is no finite number, or `epochs` is not positive.

    Example:
    ```python
    schedule = tfkd.schedules.LinearWarmUp(0.0, 1.0, epochs=4)
    [float(schedule(epoch)) for epoch in range(6)]  # [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    ```
    """


@keras.saving.register_keras_serializable(package="tfkd")
class Cosine(_Ramp):
    """Goes from `start` to `end` along half a cosine: slowly at both ends.

    `start + (end - start) · (1 - cos(π · min(epoch / epochs, 1))) / 2`

    Args:
        start: Number, the value of the first epoch.
        end: Number, the value from epoch number `epochs`, counted from 0, on.
        epochs: Number greater than 0.

    Raises:
        UsageError: If `start` or `end` is no finite number, or `epochs` is not positive.

    Example:
    ```python
    schedule = tfkd.schedules.Cosine(8.0, 2.0, epochs=3)
    [float(schedule(epoch)) for epoch in range(5)]  # [8.0, 6.5, 3.5, 2.0, 2.0]
    ```
    """

    def _progress(self, epoch):
        return 0.5 * (1 - ops.cos(math.pi * super()._progress(epoch)))


@keras.saving.register_keras_serializable(package="tfkd")
class GaussianWarmUp(_Ramp):
    """Goes from near `start` to `end` along half a Gaussian curve, and stays there.

    `start + (end - start) · exp(-5 · (1 - min(epoch / epochs, 1))²)`, which begins 0.7 % on the
    way. Methods of several students use it with 80 epochs, so that students that know nothing yet
    do not teach.

    Args:
        start: Number, near the value of the first epoch.
        end: Number, the value from epoch number `epochs`, counted from 0, on.
        epochs: Number greater than 0.

    Raises:
        UsageError: If `start` or `end` is no finite number, or `epochs` is not positive.

    Example:
    ```python
    schedule = tfkd.schedules.GaussianWarmUp(0.0, 1.0, epochs=2)
    [round(float(schedule(epoch)), 4) for epoch in range(4)]  # [0.0067, 0.2865, 1.0, 1.0]
    ```

    References:
        - [Temporal Ensembling for Semi-Supervised Learning](https://arxiv.org/abs/1610.02242),
          section 2.
    """

    def _progress(self, epoch):
        return ops.exp(-5 * ops.square(1 - super()._progress(epoch)))


@keras.saving.register_keras_serializable(package="tfkd")
class LinearRestarts(_Ramp):
    """Goes from `start` to `end` by equal steps, and again from every milestone on.

    Between two neighbours `a` and `b` of `0`, the milestones and `epochs`:
    `start + (end - start) · (epoch - a) / (b - a)`. From `epochs` on, `end`.

    Args:
        start: Number, the value of the first epoch and at every milestone.
        end: Number, which the value approaches before every milestone.
        milestones: Increasing epochs, counted from 0 and between 0 and `epochs`, such as those at
            which the learning rate drops.
        epochs: Number greater than 0, the epochs of the training.

    Raises:
        UsageError: If `start` or `end` is no finite number, or the epochs do not increase.

    Example:
    ```python
    schedule = tfkd.schedules.LinearRestarts(0.5, 1.0, milestones=(2,), epochs=6)
    [float(schedule(epoch)) for epoch in range(6)]  # [0.5, 0.75, 0.5, 0.625, 0.75, 0.875]
    ```
    """

    def __init__(self, start, end, milestones, epochs):
        super().__init__(start, end, epochs)
        self.milestones = tuple(milestones)
        limits = [0, *self.milestones, epochs]
        if any(not before < after for before, after in zip(limits, limits[1:])):
            raise UsageError(
                f"LinearRestarts: milestones must increase between 0 and epochs={epochs}; received "
                f"{self.milestones}."
            )

    def _progress(self, epoch):
        limits = [0, *self.milestones, self.epochs]
        progress = 0.0
        for before, after in zip(limits, limits[1:]):
            here = ops.clip((epoch - before) / (after - before), 0.0, 1.0)
            progress = ops.where(epoch >= before, here, progress)
        return progress

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {**super().get_config(), "milestones": list(self.milestones)}


@keras.saving.register_keras_serializable(package="tfkd")
class OfKeras(Schedule):
    """A learning-rate schedule of Keras, called on the epoch instead of the step.

    Losses and distillers make one where they are given a Keras schedule as a weight or a
    temperature. Its bounds are not known.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`, whose steps are epochs.

    Example:
    ```python
    decay = keras.optimizers.schedules.ExponentialDecay(1.0, decay_steps=1, decay_rate=0.5)
    [float(tfkd.schedules.OfKeras(decay)(epoch)) for epoch in range(3)]  # [1.0, 0.5, 0.25]
    ```
    """

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, epoch):
        """Returns the value at an epoch; see `Schedule`."""
        return ops.cast(self.schedule(ops.cast(epoch, "float32")), "float32")

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config):
        """Makes a schedule from what `get_config()` returned."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]))


@keras.saving.register_keras_serializable(package="tfkd")
class CurriculumTemperature(keras.layers.Layer, Schedule):
    """A temperature that learns to make a loss of softened logits harder, more so each epoch.

    `minimum + (maximum − minimum) · sigmoid(θ)`, with one number `θ` that is trained with the
    student, by a gradient times `−(1 − cos(π · min(epoch + 1, epochs) / epochs)) / 2`: reversed, so
    that it raises the loss that the student lowers, and not at all at first. Weight decay applies
    to `θ` as to every weight. It belongs to one loss, whose trainable weight it is.

    Args:
        minimum: Number greater than 0, the least temperature. Defaults to 1.
        maximum: Number, the greatest temperature. Defaults to 21.
        initial: Number, `θ` at the start. Defaults to 1, as published: a temperature of 15.6, far
            above the usual 4, at which `initial=-1.73` begins.
        epochs: Number greater than 0, until which the reversal grows. Defaults to 10, as published
            for CIFAR-100; 5 for ImageNet.

    Raises:
        UsageError: If `initial` is no finite number, another argument is not positive, or
            `maximum` is not above `minimum`.

    Deviations: the one temperature for all samples of the published code; the paper has one for
    each sample, too. The published code counts epochs from 1, this from 0, with equal values.

    Example:
    ```python
    loss = tfkd.losses.KnowledgeDistillation(tfkd.schedules.CurriculumTemperature())
    float(loss.value_of(loss.temperature))  # 15.6, the temperature in force
    ```

    References:
        - [Curriculum Temperature for Knowledge Distillation](https://arxiv.org/abs/2211.16231),
          and its code.
    """

    def __init__(self, minimum=1.0, maximum=21.0, initial=1.0, epochs=10, **kwargs):
        super().__init__(dtype=kwargs.pop("dtype", "float32"), **kwargs)
        kind = type(self).__name__
        check_positive(f"{kind}: minimum", minimum)
        check_positive(f"{kind}: maximum", maximum)
        _check_number(f"{kind}: initial", initial)
        if not minimum < maximum:
            raise UsageError(
                f"{kind}: maximum must be above minimum={minimum}; received {maximum}."
            )
        self.minimum = minimum
        self.maximum = maximum
        self.initial = initial
        self.bounds = (minimum, maximum)
        self.reversal = Cosine(0.0, -1.0, epochs)
        self.parameter = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(initial), name="temperature"
        )

    def __call__(self, epoch):
        """Returns the value; see `Schedule`."""
        return super().__call__(ops.convert_to_tensor(epoch, "float32"))

    def call(self, epoch):
        """Computes the temperature."""
        factor = self.reversal(epoch + 1)
        # The value of the parameter itself, with its gradient times the factor.
        parameter = factor * self.parameter + ops.stop_gradient((1 - factor) * self.parameter)
        return self.minimum + (self.maximum - self.minimum) * ops.sigmoid(parameter)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {
            **super().get_config(),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "initial": self.initial,
            "epochs": self.reversal.epochs,
        }


def from_keras(value):
    """Returns an `OfKeras` of a learning-rate schedule of Keras, and any other value as it is."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return OfKeras(value)
    return value


def number_or_schedule(name, value, positive=False, nonnegative=False):
    """Checks an argument that can be a number or a schedule.

    Args:
        name: String, the argument's name, for the message.
        value: Number, `Schedule`, `keras.optimizers.schedules.LearningRateSchedule`, or a
            schedule as `keras.saving` serialises it.
        positive: Whether only numbers greater than 0 make sense.
        nonnegative: Whether only numbers of at least 0 make sense.

    Returns:
        The number or the `Schedule`.

    Raises:
        UsageError: If it is neither, or takes values that make no sense.
    """
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    value = from_keras(value)
    values = value.bounds if isinstance(value, Schedule) else (value,)
    if not all(
        _is_number(number) and (number > 0 or not positive) and (number >= 0 or not nonnegative)
        for number in values
    ):
        wanted = "a number"
        if positive or nonnegative:
            wanted += " greater than 0" if positive else " of at least 0"
        raise UsageError(f"{name} must be {wanted}, or a schedule of such; received {value!r}.")
    return value


def _is_number(value):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _check_number(name, value):
    if not _is_number(value):
        raise UsageError(f"{name} must be a number; received {value!r}.")
