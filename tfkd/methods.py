"""Methods by name: parses "ackd:attention=logit" into the `method` of a config."""

import ast
import contextlib
import inspect
import re

from ml_collections import ConfigDict, config_dict

from tfkd import distillers, losses, models
from tfkd.errors import UsageError, unknown

#: The method that trains the student on its labels alone: the baseline of every comparison.
ALONE = "alone"


#: Stands for the student's own model id among the classifiers that learn with it.
PEER = "student"


def split_at_commas(text):
    """Splits a list as a flag gives it; commas in parentheses, as of a tuple, do not split."""
    return [item for item in re.split(r",(?![^(]*\))", text) if item]


def method_config(name, settings=None):
    """Returns the part of a config that describes the method.

    Args:
        name: String: `"alone"` (the labels only), the id of a method such as `"ackd"`, the id of a
            loss, or several ids joined by `+` (`"kd+at"`, `"sakd+at+rkd"`). Arguments follow
            after colons: those of the method (`"ackd:attention=logit"`), or of one of its losses
            (`"kd+at:at.weight=500"`).
        settings: `{id: {argument: value}}`, in place of the defaults of losses and methods; of a
            method also `{name of an optimizer: settings}`, and of a loss that is alone the
            `student_loss_weight` of the labels beside it. Under several ids,
            `{"sakd+at": {id: {argument: value}}}`, they hold for methods that have all of these,
            and come after the others.

    Returns:
        A `ConfigDict` with `name`; `distiller`, the id of its class, or None for
        `KnowledgeDistiller`; the distiller's `arguments`, `peers` among them where several students
        learn together: ids of zoo models joined by `+`, `student` for one of the student's kind;
        `losses`, `{id: arguments}`;
        `optimizers`, `{name: settings}` of those beside the student's; and `preparation_epochs`
        for losses that are prepared before training (None for their own).

    Raises:
        UsageError: If there is no such method, or it has no such argument.

    Example:
    ```python
    method_config("ackd:attention=logit:temperature=3.0").arguments.attention  # "logit"
    ```
    """
    joined, *given = name.split(":")
    ids = [] if joined == ALONE else joined.split("+")
    methods, known = distillers.available(), losses.available()
    distiller = ids.pop(0) if ids and ids[0] in methods else None
    for identifier in ids:
        if identifier in methods:
            raise UsageError(
                f"{identifier!r} in {joined!r} is a method: it comes first, and what is joined to "
                "it are losses."
            )
        if identifier not in known:
            first = identifier == joined.split("+")[0]
            raise unknown("method", identifier, [*([ALONE, *methods] if first else []), *known])
    if len(set(ids)) < len(ids):
        raise UsageError(f"Method {name!r} names a loss twice.")
    arguments, optimizers = {}, {}
    if distiller is not None:
        cls = methods[distiller]
        takes = takes_arguments(cls)
        # Those that are None by default are in a config only where they are set.
        unset = [p.name for p in takes.values() if p.default is None and p.name not in _NOT_SET]
        arguments = {**_defaults(cls), **dict.fromkeys(unset)}
        optimizers = dict(cls.extra_optimizers)
        if ids and "losses" not in takes:
            raise UsageError(f"Method {distiller!r} takes no losses; received {'+'.join(ids)}.")
        if not ids and "losses" in takes:
            ids = list(takes["losses"].default or ["kd"])
        if cls.takes_students:
            arguments["peers"] = PEER
    elif ids:
        # The CRD benchmark: kd alone shares the weight with the labels; every other loss, kd as
        # its companion included, is added to them.
        arguments["student_loss_weight"] = 0.1 if ids == ["kd"] else 1.0
    chosen = {
        identifier: {**_defaults(known[identifier]), "spots": config_dict.placeholder(tuple)}
        for identifier in ids
    }
    if "kd" in chosen and (distiller is not None or len(ids) > 1):
        chosen["kd"]["weight"] = 1.0
    targets = {**chosen, **({} if distiller is None else {distiller: arguments})}
    for identifier, own in _in_force(settings or {}, targets):
        for key, value in own.items():
            if identifier == distiller and key in optimizers:
                optimizers[key] = {**optimizers[key], **value}
            elif key == "student_loss_weight" and identifier != distiller:
                if distiller is None and ids == [identifier]:
                    arguments[key] = value
            else:
                targets[identifier][key] = value
    for item in given:
        _set_argument(item, name, arguments, chosen)
    arguments = {name: value for name, value in arguments.items() if value is not None}
    return ConfigDict(
        {
            "name": name,
            "distiller": distiller,
            "arguments": arguments,
            "losses": chosen,
            "optimizers": optimizers,
            "preparation_epochs": config_dict.placeholder(int),
        }
    )


def method_variant(config, name):
    """Returns what describes another method in a config.

    Args:
        config: `ConfigDict` of a run.
        name: String, as `method_config` takes it.

    Returns:
        A `ConfigDict`: `config.method` itself where it has this name, otherwise that of the method
        with its defaults.
    """
    if name == config.method.name:
        return config.method
    variant = method_config(name, config.settings.to_dict())
    variant.preparation_epochs = config.method.preparation_epochs
    return variant


def _in_force(settings, ids):
    """Yields `(id, {argument: value})` of the settings that hold for a method with these ids."""
    joint = []
    for key, own in settings.items():
        if "+" not in key and key in ids:
            yield key, own
        elif "+" in key and ids.keys() >= set(key.split("+")):
            joint.extend(own.items())
    yield from joint


# Arguments of a method that are no plain values, or set elsewhere.
_NOT_SET = ("teacher_preprocessing", "image_mean", "image_std", "name")


def _set_argument(item, name, arguments, chosen):
    """Reads `argument=value` or `loss.argument=value` into the arguments of method or loss."""
    key, equals, value = item.partition("=")
    known = dict(arguments)
    for identifier, own in chosen.items():
        known.update({f"{identifier}.{argument}": default for argument, default in own.items()})
    if key == "teacher_preprocessing":
        raise UsageError(f"{key} is no argument of a method here: {TEACHER_IMAGES}.")
    if not known:
        raise UsageError(f"Method {name.partition(':')[0]!r} has no arguments; received {item!r}.")
    if key in known and not equals:
        raise UsageError(f"Method {name!r}: {key} needs a value, such as {key}={known[key]}.")
    if key not in known:
        raise unknown(f"argument of method {name.partition(':')[0]!r}", key, known)
    with contextlib.suppress(SyntaxError, ValueError):  # A word is itself.
        value = ast.literal_eval(value)
    default = known[key]
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    # A word may stand for a choice of which true and false are the others ("auto").
    fits = type(value) is type(default) or (isinstance(default, str) and type(value) is bool)
    if isinstance(default, (bool, int, float, str)) and not fits:
        kind = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
        raise UsageError(
            f"Method {name!r}: {key} must be {kind[type(default)]}, like {default!r}; received "
            f"{value!r}."
        )
    identifier, dot, argument = key.partition(".")
    (chosen[identifier] if dot else arguments)[argument if dot else key] = value


def _defaults(cls):
    """The arguments of a loss or method that are plain values, so that flags can override them."""
    parameters = takes_arguments(cls).values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if isinstance(parameter.default, (bool, int, float, str)) and parameter.name != "dtype"
    }


#: What a config says of the images of a given teacher; None where it takes the student's.
TEACHER_IMAGE_KEYS = ("image_size", "from_original", "mean", "std", "scale")


#: The flags of the command line for a distiller's `teacher_preprocessing`.
TEACHER_IMAGES = (
    "the images that a given teacher takes are described by "
    f"{', '.join(f'--config.teacher.{name}' for name in TEACHER_IMAGE_KEYS)}"
)


def needs_indices(config):
    """Whether a loss of the config must know which training example a sample is."""
    return any(loss.needs_indices for loss in _losses_of(config))


def weighs_teachers(config):
    """Whether a loss of the config weighs several teachers."""
    return any("teachers" in str(loss.teacher_spots or loss.spots) for loss in _losses_of(config))


def _losses_of(config):
    # A user's own loss is not known where a finished run is read, which trains nothing.
    known = losses.available()
    return [known[identifier] for identifier in config.method.losses if identifier in known]


def needs_teacher(method):
    """Whether a method has a teacher.

    Args:
        method: `ConfigDict`, as from `method_config`.
    """
    if method.distiller is None:
        return method.name != ALONE
    return distillers.available()[method.distiller].needs_teacher


def peers(config):
    """Returns the kinds of models that learn together with the student, a list of names.

    Args:
        config: `ConfigDict` of a run.

    Raises:
        UsageError: If one is neither of the zoo nor of the student's kind, or would begin with the
            student's weights.
    """
    names = config.method.arguments.get("peers", "")
    found = [config.student.model if name == PEER else name for name in names.split("+") if name]
    for name in found:
        if name not in [config.student.model, *models.available()]:
            raise unknown("peer", name, [PEER, *models.available()])
        if name.endswith(".keras"):
            raise UsageError(
                f"Method {config.method.name!r}: a peer from {name} would have the very weights of "
                "the student; name a function that makes the models, :student=module:function."
            )
    if not found and "peers" in config.method.arguments:
        raise UsageError(
            f"Method {config.method.name!r} needs peers: one or more models joined by +, such as "
            f"peers={PEER} or peers=resnet8+resnet14."
        )
    return found


def takes_arguments(cls):
    """The parameters of a class's constructor."""
    return inspect.signature(cls.__init__).parameters
