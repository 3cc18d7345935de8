"""Checks the arguments of constructors and of `compile`."""

import inspect

import keras

from tfkd import losses as losses_module
from tfkd.errors import UsageError, unknown


def check_constructor_arguments(cls, given):
    """Raises a `UsageError` for unknown arguments of a distiller's constructor.

    Args:
        cls: A subclass of `Distiller`.
        given: `{name: value}` of the keyword arguments.
    """
    known = _constructor_arguments(cls)
    for name, value in given.items():
        if name not in known:
            what = f"argument of {cls.__name__}"
            raise unknown_argument(cls, what, name, value, known, given.get("losses"))


def check_no_teacher(cls, teacher):
    """Raises a `UsageError` where a method without a teacher, `cls`, is given one."""
    if teacher is not None:
        raise UsageError(
            f"{cls.__name__} takes no teacher: leave it out, or take tfkd.KnowledgeDistiller."
        )


def _constructor_arguments(cls):
    """Returns the arguments of a constructor, including those that it passes on."""
    known = {}
    for base in cls.__mro__:
        if "__init__" in base.__dict__:
            parameters = [*inspect.signature(base.__init__).parameters.values()][1:]
            known |= {one.name: one.kind for one in parameters}
            if inspect.Parameter.VAR_KEYWORD not in known.values():
                break
            known = {name: kind for name, kind in known.items() if kind not in _VARIADIC}
    return list(known)


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def unknown_argument(cls, what, name, value, known, chosen=None):
    """Returns the `UsageError` for an unknown argument.

    Args:
        cls: The subclass of `Distiller` that it was given to.
        what: String, the kind of the name, such as `"argument of IAKD"`.
        name: The name as given.
        value: Its value.
        known: Iterable of the names that exist.
        chosen: The `losses` given with it, or None.
    """
    of_constructor = _constructor_arguments(cls)
    if name == "teachers" and "teacher" in of_constructor:
        return UsageError(f"Unknown {what} {name!r}: several are a list, teacher=[first, second].")
    if "losses" not in of_constructor:
        return unknown(what, name, known)
    if name == "alpha" and "student_loss_weight" in of_constructor and "dkd" not in _ids(chosen):
        # The weight of the labels in the Keras example of distillation.
        return UsageError(
            f"Unknown {what} {name!r}: the labels have the weight student_loss_weight=0.1, and "
            "each loss its own, as in losses=[tfkd.losses.get('kd', weight=0.9)]."
        )
    available = losses_module.available()
    for identifier in dict.fromkeys((*_ids(chosen), "kd", *available)):
        parameters = inspect.signature(available[identifier]).parameters
        if name in parameters and name != "kwargs":
            return UsageError(
                f"Unknown {what} {name!r}: it is one of a loss, as in "
                f'losses=[tfkd.losses.get("{identifier}", {name}={value!r})].'
            )
    return unknown(what, name, known)


def _ids(chosen):
    """Returns the ids of losses as they were given to a distiller."""
    if isinstance(chosen, (str, losses_module.DistillationLoss)):
        chosen = [chosen]
    found = [getattr(loss, "id", loss) for loss in chosen or ()]
    return [one for one in found if one in losses_module.available()]


def check_compile_arguments(cls, given):
    """Raises a `UsageError` for unknown arguments of `compile`.

    Args:
        cls: The class of the distiller.
        given: Dictionary of the further arguments.
    """
    known = [*cls.extra_optimizers]
    for method in (cls.compile, keras.Model.compile):
        names = [*inspect.signature(method).parameters][1:]
        known += [name for name in names if name not in (*known, "args", "kwargs")]
    for name, value in given.items():
        if name not in known:
            raise unknown_argument(cls, f"argument of {cls.__name__}.compile", name, value, known)


def has_duplicates(optimizers):
    """Whether a Keras optimizer occurs twice; names and settings make a new one each time.

    Args:
        optimizers: List of the optimizers given to `compile`.
    """
    objects = [id(one) for one in optimizers if isinstance(one, keras.optimizers.Optimizer)]
    return len(set(objects)) < len(objects)
