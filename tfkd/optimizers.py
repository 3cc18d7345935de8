"""The optimizer and learning-rate schedules of the published protocols."""

import inspect
import math

import keras
from keras import ops

from tfkd.errors import UsageError, check_positive, unknown


@keras.saving.register_keras_serializable(package="tfkd")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent as the published distillation studies run it.

    `velocity ← momentum · velocity + gradient + weight_decay · variable`,
    `variable ← variable − learning_rate · velocity`

    It differs from `keras.optimizers.SGD` in two places that change numbers: weight decay is
    part of the gradient, so momentum carries it, and the learning rate is applied after the
    velocity, so that a drop of the rate acts at once rather than over the next ten steps.

    Args:
        learning_rate: Number or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: Number in [0, 1).
        nesterov: Whether to look ahead along the velocity.
        weight_decay: Number of at least 0, for every variable, biases and batch normalizations
            included.
        name: String, optional.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`.

    Example:
    ```python
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4))
    ```
    """

    def __init__(
        self,
        learning_rate=0.05,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        name="SGD",
        **kwargs,
    ):
        super().__init__(learning_rate, momentum, nesterov, name=name, **kwargs)
        # Not under Keras' name: that would decay a second time, outside the gradient.
        self.decay_in_gradient = weight_decay

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; called by `apply`."""
        value = ops.convert_to_tensor(variable)
        learning_rate = ops.cast(learning_rate, value.dtype)
        step = ops.cast(gradient, value.dtype)
        if self.decay_in_gradient:
            step = step + self.decay_in_gradient * value
        if self.momentum:
            slot = self.momentums[self._get_variable_index(variable)]
            velocity = self.momentum * ops.convert_to_tensor(slot) + step
            self.assign(slot, velocity)
            step = step + self.momentum * velocity if self.nesterov else velocity
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal optimizer."""
        return {**super().get_config(), "weight_decay": self.decay_in_gradient}


@keras.saving.register_keras_serializable(package="tfkd")
class DOT(SGD):
    """Gradient descent with a momentum of its own for the labels and for the distillation.

    `v ← (momentum − delta) · v + g + weight_decay · variable`, of the gradient `g` of the loss on
    the labels and of regularizers; `u ← (momentum + delta) · u + h`, of the gradient `h` of the
    distillation losses; `variable ← variable − learning_rate · (v + u)`

    Distillation so goes ahead where the two pull in different directions. With a delta of 0 it is
    `tfkd.optimizers.SGD`. Distillers whose students have one objective of labels and distillation
    give it both gradients: `KnowledgeDistiller`, `IAKD`, `TeacherFree` and `MutualDistiller`.
    Variables on which only one of them depends, such as connectors of losses, and other gradients
    get the steps of `SGD`.

    A step costs a second pass backward, and the optimizer keeps two velocities.

    Args:
        learning_rate: Number or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: Number in [0, 1).
        delta: Number of at least 0, at most `momentum` and below `1 − momentum`. Defaults to
            0.075, as published for CIFAR-100.
        weight_decay: Number of at least 0, for every variable.
        name: String, optional.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`, but for those that clip or
            accumulate gradients.

    Raises:
        UsageError: If `delta` leaves a momentum outside of [0, 1), or an argument is one that does
            not suit two gradients.

    Deviations: none from the code.

    Example:
    ```python
    distiller.compile(tfkd.optimizers.DOT(0.05, momentum=0.9, delta=0.075, weight_decay=5e-4))
    ```

    References:
        - [DOT: A Distillation-Oriented Trainer](https://arxiv.org/abs/2307.08436), and its
          [code](https://github.com/megvii-research/mdistiller).
    """

    def __init__(
        self,
        learning_rate=0.05,
        momentum=0.9,
        delta=0.075,
        weight_decay=0.0,
        name="DOT",
        **kwargs,
    ):
        refused = [key for key in _NOT_OF_TWO_GRADIENTS if kwargs.get(key)]
        if refused:
            raise UsageError(f"DOT keeps two gradients apart, and does not take {refused[0]}.")
        if not 0 <= delta <= momentum or momentum + delta >= 1:
            raise UsageError(
                f"DOT needs momentums momentum ± delta from 0 to below 1; received "
                f"momentum={momentum} and delta={delta}."
            )
        super().__init__(learning_rate, momentum, weight_decay=weight_decay, name=name, **kwargs)
        self.delta = delta

    def build(self, variables):
        """Creates both velocities of every variable."""
        if self.built:
            return
        super().build(variables)
        self.distillation_momentums = self.add_optimizer_variables(variables, "distillation")

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; called by `apply`.

        Args:
            gradient: Tensor of the variable's shape; or `(2, ...)`, the gradient of the labels and
                that of the distillation.
            variable: The variable.
            learning_rate: Scalar.
        """
        if len(gradient.shape) == len(variable.shape):
            super().update_step(gradient, variable, learning_rate)
            return
        value = ops.convert_to_tensor(variable)
        of_labels, of_distillation = ops.unstack(ops.cast(gradient, value.dtype), num=2)
        of_labels = of_labels + self.decay_in_gradient * value
        index, step = self._get_variable_index(variable), 0.0
        for slots, momentum, part in (
            (self.momentums, self.momentum - self.delta, of_labels),
            (self.distillation_momentums, self.momentum + self.delta, of_distillation),
        ):
            velocity = momentum * ops.convert_to_tensor(slots[index]) + part
            self.assign(slots[index], velocity)
            step = step + velocity
        self.assign_sub(variable, ops.cast(learning_rate, value.dtype) * step)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal optimizer."""
        return {**super().get_config(), "delta": self.delta}


_NOT_OF_TWO_GRADIENTS = (
    *("nesterov", "clipnorm", "global_clipnorm", "clipvalue", "gradient_accumulation_steps"),
)


def takes_two_gradients(optimizer):
    """Whether an optimizer, or the one inside of a `LossScaleOptimizer`, is a `DOT`."""
    return isinstance(getattr(optimizer, "inner_optimizer", optimizer), DOT)


#: The optimizers of tfkd by the names that configs have for them.
OWN = {"sgd": SGD, "dot": DOT}

_OF_SGD = ("learning_rate", "weight_decay", "momentum", "nesterov", "global_clipnorm")

#: `{name: arguments}` of the optimizers of students in configs.
OF_STUDENTS = {
    "sgd": _OF_SGD,
    "dot": (*_OF_SGD, "delta"),
    "adamw": ("learning_rate", "weight_decay", "global_clipnorm"),
}


def create(name, student_optimizer=None, relative_learning_rate=None, **settings):
    """Makes an optimizer from plain settings, as configs and distillers give them.

    Args:
        name: `"sgd"` or `"dot"` for those of `tfkd.optimizers`, or the name of a Keras optimizer.
        student_optimizer: The student's optimizer; needed for `relative_learning_rate`.
        relative_learning_rate: Positive number that multiplies the student's learning rate, its
            schedule included; in place of `learning_rate`.
        **settings: Arguments of the optimizer.

    Returns:
        A Keras optimizer.

    Raises:
        UsageError: If there is no such optimizer, or it has no such argument.

    Example:
    ```python
    create("adam", learning_rate=1e-4, beta_1=0.5)
    create("sgd", student_optimizer, relative_learning_rate=0.5, weight_decay=1e-3)
    ```
    """
    if relative_learning_rate is not None:
        check_positive("relative_learning_rate", relative_learning_rate)
        # One that scales the loss has its learning rate inside.
        inner = getattr(student_optimizer, "inner_optimizer", student_optimizer)
        rate = inner.get_config()["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
            settings["learning_rate"] = RelativeSchedule(rate, relative_learning_rate)
        else:
            settings["learning_rate"] = relative_learning_rate * rate
    known = [
        key.lower()
        for key, kind in vars(keras.optimizers).items()
        if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)
    ]
    if str(name).lower() not in [*known, *OWN]:
        hidden = {"optimizer", "lossscaleoptimizer"}
        raise unknown("optimizer", name, sorted({*known, *OWN} - hidden))
    try:
        if name in OWN:
            return OWN[name](**settings)
        return keras.optimizers.get({"class_name": name, "config": settings})
    except (TypeError, ValueError) as error:
        raise UsageError(f"Optimizer {name!r}: {str(error).splitlines()[0]}") from error


def resolve(argument, optimizer, student_optimizer, scales_loss=False):
    """Returns an optimizer that `compile` got as an argument.

    Args:
        argument: String, the name of the argument.
        optimizer: A Keras optimizer, its name, or a dictionary of settings for `create`.
        student_optimizer: The student's optimizer, to which settings may be relative.
        scales_loss: Whether the optimizer must scale its loss, as under `mixed_float16`.

    Returns:
        A Keras optimizer.

    Raises:
        UsageError: If the argument is none of these.
    """
    if isinstance(optimizer, dict):
        optimizer = create(student_optimizer=student_optimizer, **optimizer)
    try:
        optimizer = keras.optimizers.get(optimizer)
    except ValueError as error:
        raise UsageError(
            f"{argument} must be a Keras optimizer, its name, or a dictionary of settings; "
            f"received {optimizer!r}."
        ) from error
    if scales_loss and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


@keras.saving.register_keras_serializable(package="tfkd")
class RelativeSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a factor.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`.
        factor: Positive number.
    """

    def __init__(self, schedule, factor):
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step):
        """Returns the learning rate of a step, counted from 0."""
        return self.factor * self.schedule(step)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "factor": self.factor,
        }

    @classmethod
    def from_config(cls, config):
        """Makes a schedule from what `get_config()` returned."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["factor"])


SCHEDULES = ("constant", "steps", "cosine")


def schedule(name, learning_rate, steps, milestones=(), factor=0.1, warmup=0.0):
    """Makes a learning-rate schedule over a whole training run.

    Args:
        name: `"constant"`, `"steps"` (multiplied by `factor` at each milestone) or `"cosine"`
            (to 0 at the end).
        learning_rate: Positive number, the rate at the start or after the warm-up.
        steps: Integer, the number of training steps of the run.
        milestones: Increasing fractions of the run, in (0, 1).
        factor: Number by which each milestone multiplies the rate.
        warmup: Fraction of the run, in [0, 1), over which the rate first grows from 0 linearly.

    Returns:
        A number, or a `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        UsageError: If the name is unknown or a milestone or the warm-up is no such fraction.

    Example:
    ```python
    # The CRD benchmark: a tenth after epochs 150, 180 and 210 of 240.
    tfkd.optimizers.schedule("steps", 0.05, 240 * 703, milestones=(150/240, 180/240, 210/240))
    ```
    """
    if name not in SCHEDULES:
        raise unknown("learning-rate schedule", name, SCHEDULES)
    numbers = all(isinstance(at, (int, float)) for at in milestones)
    if (
        not numbers
        or list(milestones) != sorted(milestones)
        or not all(0 < at < 1 for at in milestones)
    ):
        raise UsageError(
            "Milestones of the learning rate are increasing fractions of the run, between 0 and "
            f"1; received {tuple(milestones)}."
        )
    if not 0 <= warmup < 1:
        raise UsageError(f"warmup is a fraction of the run, from 0 to below 1; received {warmup}.")
    if name == "constant" and not warmup:
        return learning_rate
    return RunSchedule(name, learning_rate, steps, tuple(milestones), factor, warmup)


@keras.saving.register_keras_serializable(package="tfkd")
class RunSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate as a function of the step; made by `schedule()`, which documents it."""

    def __init__(self, name, learning_rate, steps, milestones, factor, warmup):
        self.name = name
        self.learning_rate = learning_rate
        self.steps = steps
        self.milestones = tuple(milestones)
        self.factor = factor
        self.warmup = warmup

    def __call__(self, step):
        """Returns the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, "float32")
        warmup = round(self.warmup * self.steps)
        if self.name == "steps":
            for milestone in self.milestones:
                # Rounded, so that a milestone at an epoch's end falls on its last step exactly.
                passed = step >= round(milestone * self.steps)
                rate = ops.where(passed, rate * self.factor, rate)
        elif self.name == "cosine":
            progress = (step - warmup) / max(1, self.steps - warmup)
            rate = rate * 0.5 * (1 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        if warmup:
            rate = rate * ops.minimum(1.0, (step + 1) / warmup)
        return rate

    def get_config(self):
        """Returns what `from_config()` needs to make an equal schedule."""
        return {
            "name": self.name,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "milestones": list(self.milestones),
            "factor": self.factor,
            "warmup": self.warmup,
        }


def drops(optimizer, steps):
    """Returns when an optimizer's learning rate drops in steps, as increasing parts of a run.

    Args:
        optimizer: A Keras optimizer.
        steps: Integer, the steps of the run; None if they are not known.

    Returns:
        A list of numbers in (0, 1); empty where the rate is constant or falls otherwise.

    Raises:
        UsageError: If the drops are counted in steps and those of the run are not known.
    """
    # Under mixed_float16 Keras puts one that scales the loss around the user's.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = optimizer.get_config()["learning_rate"]
    rate = keras.optimizers.schedules.deserialize(rate) if isinstance(rate, dict) else rate
    while isinstance(rate, RelativeSchedule):
        rate = rate.schedule
    if isinstance(rate, RunSchedule) and rate.name == "steps":
        return list(rate.milestones)
    if isinstance(rate, keras.optimizers.schedules.PiecewiseConstantDecay):
        if steps is None:
            raise UsageError(
                "The learning rate drops after numbers of steps, and the data does not tell how "
                "many a run has: pass milestones, as fractions of the run."
            )
        return [step / steps for step in rate.boundaries if 0 < step < steps]
    return []
