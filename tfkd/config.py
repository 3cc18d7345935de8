"""What a run's config holds, and the helpers with which the files in `configs/` write one."""

import ast
import contextlib
import inspect
import math
import re

from ml_collections import ConfigDict, config_dict

from tfkd import distillers, layers, losses, models
from tfkd.errors import UsageError, unknown

#: The method that trains the student on its labels alone: the baseline of every comparison.
ALONE = "alone"

#: What stands for the student's own kind among the classifiers that learn with it.
PEER = "student"

#: Settings of the spot-adaptive study on CIFAR-100: its scale of the routing loss, which is 1 with
#: the other losses. https://arxiv.org/abs/2205.02399 and its code.
SPOT_ADAPTIVE_STUDY = {
    f"sakd+{loss}": {"sakd": {"routing_scale": 2.0}} for loss in ("at", "rkd", "vid")
}

#: An adversary for small grey images: with the default widths its step costs some 35 times that of
#: a resnet8. Its learning rate is for runs of a thousand steps rather than of a hundred thousand.
SMALL_ADVERSARY = {
    "acn": {
        "generator_width": 16,
        "generator_blocks": 2,
        "discriminator_width": 16,
        "generator_optimizer": {"learning_rate": 1e-3},
        "discriminator_optimizer": {"learning_rate": 1e-3},
    }
}


def split_at_commas(text):
    """Splits a list as a flag gives it; commas in parentheses, as of a tuple, do not split."""
    return [item for item in re.split(r",(?![^(]*\))", text) if item]


def parse_arguments(text, **defaults):
    """Reads the part of `--config=file.py:key=value,key=value` after the colon.

    Args:
        text: String, `key=value` pairs separated by commas; a lone `key` means True.
        **defaults: The keys that exist, and their values where the text does not name them. A
            value is read as the type of its default.

    Returns:
        A dictionary of all keys.

    Raises:
        UsageError: If a key is unknown or a value has another type.

    Example:
    ```python
    parse_arguments("method=at,runlocal", method="kd", runlocal=False)
    # {"method": "at", "runlocal": True}
    ```
    """
    values = dict(defaults)
    for item in split_at_commas(text or ""):
        key, _, value = item.partition("=")
        if key == "teacher_preprocessing":
            raise UsageError(f"{key} is no argument of a config: {TEACHER_IMAGES}.")
        if key not in defaults:
            raise unknown("config argument", key, defaults)
        kind = type(defaults[key])
        if kind is bool:
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise UsageError(f"Config argument {key} is true or false; received {value!r}.")
            values[key] = value.lower() in ("", "true", "1")
            continue
        try:
            values[key] = kind(value)
        except ValueError as error:
            raise UsageError(
                f"Config argument {key} takes a value like {defaults[key]!r}; received {value!r}."
            ) from error
    return values


def from_arguments(arguments, settings=None, **defaults):
    """Returns the config that every file in `configs/` starts from.

    Args:
        arguments: String, what follows the colon of `--config=file.py:...`.
        settings: As in `default_config`.
        **defaults: The file's own `method`, `teacher` and `student`, and further arguments.

    Returns:
        The tuple `(config, chosen)`: a complete `ConfigDict`, and a dictionary of the arguments,
        `runlocal` (make a smoke run) among them.

    Raises:
        UsageError: If an argument is unknown or names nothing.
    """
    chosen = parse_arguments(arguments, **{"method": "kd", **defaults, "runlocal": False})
    config = default_config(chosen["method"], chosen["teacher"], chosen["student"], settings)
    if chosen["runlocal"]:
        config.method.preparation_epochs = 1
    return config, chosen


def default_config(method, teacher, student, settings=None):
    """Returns a complete config, which a file in `configs/` then adapts to its task.

    Args:
        method: String, see `method_config`.
        teacher: String, the id of a zoo model, or the path of a saved `.keras` model.
        student: String, the id of a zoo model.
        settings: `{id: {argument: value}}` of losses and methods whose defaults do not suit the
            task.

    Returns:
        A `ConfigDict`. `schedule.milestones` are fractions of the run. `optimizer` and `schedule`
        are those of teacher and student alike, but for the teacher's own learning rate.
    """
    trained = teacher.endswith(".keras")
    return ConfigDict(
        {
            "data": {
                "name": "digits",
                "batch_size": 64,
                "validation": 0.1,
                "train_examples": config_dict.placeholder(int),
                "augment": config_dict.placeholder(tuple),
                "mixup": 0.0,
                "cutmix": 0.0,
                "image_size": config_dict.placeholder(int),
                # False: pixels of 0 to 255, for models that bring their own preprocessing.
                "normalize": True,
                # Of folders of images, as in tfkd.data.load.
                "test": 0.1,
                "skip_broken": False,
            },
            "teacher": {
                "model": "" if trained else teacher,
                "path": teacher if trained else "",
                "epochs": 30,
                "learning_rate": 0.05,
                # What a given teacher takes, where it is not what the student takes: its image
                # size; its mean, std and white, as in tfkd.layers.TeacherPreprocessing.
                "image_size": config_dict.placeholder(int),
                "mean": config_dict.placeholder(tuple),
                "std": config_dict.placeholder(tuple),
                "scale": config_dict.placeholder(float),
            },
            # Arguments as tfkd.models.create takes them, such as the width of mobilenet_v2.
            "student": {"model": student, "arguments": {}},
            "method": method_config(method, settings),
            "settings": settings or {},
            "optimizer": {
                "learning_rate": 0.05,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 5e-4,
            },
            "schedule": {
                "name": "steps",
                "milestones": (150 / 240, 180 / 240, 210 / 240),
                "factor": 0.1,
                "warmup": 0.0,
            },
            "epochs": 30,
            # Batches whose gradients make one step of the optimizers.
            "accumulation_steps": 1,
            "select": "last",
            "check": True,
            # What tfkd.callbacks.Diagnostics measures after every epoch.
            "diagnostics": False,
            "seed": 0,
        }
    )


def method_config(name, settings=None):
    """Returns the part of a config that describes the method.

    Args:
        name: String: `"alone"` (the labels only), the id of a method such as `"ackd"`, the id of a
            loss, or several ids joined by `+` (`"kd+at"`, `"sakd+at+rkd"`). Arguments follow
            after colons: those of the method (`"ackd:attention=logit"`), or of one of its losses
            (`"kd+at:at.weight=500"`).
        settings: `{id: {argument: value}}`, in place of the defaults of losses and methods; of a
            method also `{name of an optimizer: settings}`. Under several ids,
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
        takes = _takes(cls)
        # Those that are None by default are in a config only where they are set.
        unset = [p.name for p in takes.values() if p.default is None and p.name not in _NOT_SET]
        arguments = {**_defaults(cls), **dict.fromkeys(unset)}
        optimizers = dict(cls.extra_optimizers)
        if ids and "losses" not in takes:
            raise UsageError(f"Method {distiller!r} takes no losses; received {'+'.join(ids)}.")
        if not ids and "losses" in takes:
            ids = list(takes["losses"].default)
        if "students" in takes:
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


def flatten(tree, prefix=""):
    """Returns the values of nested dictionaries, with keys as `--config.KEY=` has them.

    Args:
        tree: Dictionary, such as `config.to_dict()`.
        prefix: String, what keys begin with.

    Returns:
        `{"optimizer.learning_rate": value}`.
    """
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


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
    parameters = _takes(cls).values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if isinstance(parameter.default, (bool, int, float, str)) and parameter.name != "dtype"
    }


def check(config):
    """Checks the numbers of a run's config.

    Args:
        config: `ConfigDict` of a run.

    Raises:
        UsageError: If one is outside its range.
    """
    missing = [key for key in default_config(ALONE, "", "") if key not in config]
    if missing:
        raise UsageError(
            f"The config has no {', '.join(missing)}: start it with "
            "tfkd.config.from_arguments(...), as those in configs/ do."
        )
    _check_method(config)
    preparation = config.method.preparation_epochs
    finite = math.isfinite
    rules = {
        "epochs": (config.epochs, lambda x: x >= 1, "at least 1"),
        "teacher.epochs": (config.teacher.epochs, lambda x: x >= 1, "at least 1"),
        "method.preparation_epochs": (
            1 if preparation is None else preparation,
            lambda x: x >= 1,
            "at least 1",
        ),
        "teacher.learning_rate": (
            config.teacher.learning_rate,
            lambda x: x > 0 and finite(x),
            "above 0 and finite",
        ),
        "optimizer.learning_rate": (
            config.optimizer.learning_rate,
            lambda x: x > 0 and finite(x),
            "above 0 and finite",
        ),
        "optimizer.momentum": (config.optimizer.momentum, lambda x: 0 <= x < 1, "from 0 to 1"),
        "optimizer.weight_decay": (
            config.optimizer.weight_decay,
            lambda x: x >= 0 and finite(x),
            "at least 0 and finite",
        ),
        "schedule.factor": (
            config.schedule.factor,
            lambda x: x >= 0 and finite(x),
            "at least 0 and finite",
        ),
        "accumulation_steps": (config.accumulation_steps, lambda x: x >= 1, "at least 1"),
        # What NumPy and Python take alike; peers' seeds lie 1000 apart.
        "seed": (config.seed, lambda x: 0 <= x < 2**31, "at least 0, and below 2147483648"),
    }
    for name, (value, allowed, range_) in rules.items():
        if not allowed(value):
            raise UsageError(f"--config.{name} must be {range_}; received {value}.")
    if needs_indices(config) and (config.data.mixup or config.data.cutmix):
        raise UsageError(
            f"Method {config.method.name!r} remembers every training image, and mixup and cutmix "
            "make new ones: set --config.data.mixup=0.0 and --config.data.cutmix=0.0."
        )
    inputs = {
        name: config.teacher[name] for name in _OWN_INPUTS if config.teacher[name] is not None
    }
    if inputs and not config.teacher.path:
        raise UsageError(
            f"--config.teacher.{next(iter(inputs))} describes the images of a given teacher "
            "(:teacher=path.keras); one that is trained here takes the student's."
        )
    if config.diagnostics and config.data.validation == 0:
        raise UsageError(
            "--config.diagnostics looks at validation images: set --config.data.validation above 0."
        )
    if config.select not in ("last", "best"):
        raise UsageError(f"--config.select must be last or best; received {config.select!r}.")


def _check_method(config):
    """Checks that the method's name and the rest of its part belong together."""
    method, fresh = config.method, method_config(config.method.name, config.settings.to_dict())
    if method.distiller != fresh.distiller or set(method.losses) != set(fresh.losses):
        raise UsageError(
            f"--config.method.name is {method.name!r}, and the rest of config.method is that of "
            "another method: it is picked after the colon of --config, as in "
            f"configs/digits.py:method={method.name}."
        )


_OWN_INPUTS = ("image_size", "mean", "std", "scale")

#: What stands on the command line for a distiller's `teacher_preprocessing`.
TEACHER_IMAGES = (
    "the images that a given teacher takes are described by "
    f"{', '.join(f'--config.teacher.{name}' for name in _OWN_INPUTS)}"
)


def teacher_preprocessing(config, data, teacher):
    """Returns what makes the teacher's images of the student's.

    Args:
        config: `ConfigDict` of a run.
        data: The `tfkd.data.Data`, whose normalisation is undone where the teacher has its own.
        teacher: `keras.Model`, for its number of channels; or None.

    Returns:
        A `tfkd.layers.TeacherPreprocessing`, or None where the config asks for nothing.
    """
    size, mean, std, scale = (config.teacher[name] for name in _OWN_INPUTS)
    if teacher is None or (size, mean, std, scale) == (None,) * 4:
        return None
    own_values = (mean, std, scale) != (None,) * 3
    return layers.TeacherPreprocessing(
        size=size,
        mean=mean,
        std=std,
        scale=1.0 if scale is None else scale,
        student_mean=data.mean if own_values else None,
        student_std=data.std if own_values else None,
        channels=teacher.input_shape[-1],
    )


def _check_size_of_images(config, student, teacher):
    """Raises a `UsageError` where images must be resized for the teacher, with the flag for it."""
    shapes = [getattr(model, "input_shape", None) for model in (student, teacher)]
    if not all(isinstance(shape, tuple) and len(shape) == 4 for shape in shapes):
        return
    (_, *given), (_, *wanted) = shapes
    set_to = config.teacher.image_size
    if set_to is not None:
        given = [set_to, set_to, wanted[-1]]
    if wanted[0] != wanted[1] or all(b is None or a == b for a, b in zip(given, wanted)):
        return
    if shapes[0][-1] not in (1, wanted[-1]):
        return  # Only one channel can become another number of them.
    size = wanted[0] or given[0]
    made = f", and --config.teacher.image_size={set_to} makes" if set_to else ", the student"
    raise UsageError(
        f"Teacher {config.teacher.path or config.teacher.model} takes images of "
        f"{_by(wanted)}{made} {_by(given)}: set --config.teacher.image_size={size}, and where "
        "values are normalised otherwise --config.teacher.mean, .std and .scale too."
    )


def _by(shape):
    return "x".join("any" if size is None else str(size) for size in shape)


def needs_indices(config):
    """Whether a loss of the config must know which training example a sample is."""
    known = losses.available()
    return any(known[identifier].needs_indices for identifier in config.method.losses)


def needs_teacher(method):
    """Whether a method has a teacher.

    Args:
        method: `ConfigDict`, as from `method_config`.
    """
    if method.distiller is None:
        return method.name != ALONE
    return "teacher" in _takes(distillers.available()[method.distiller])


def peers(config):
    """Returns the kinds of models that learn together with the student, a list of zoo ids.

    Args:
        config: `ConfigDict` of a run.

    Raises:
        UsageError: If one is no model of the zoo.
    """
    names = config.method.arguments.get("peers", "")
    found = [config.student.model if name == PEER else name for name in names.split("+") if name]
    for name in found:
        if name not in models.available():
            raise unknown("peer", name, [PEER, *models.available()])
    if not found and "peers" in config.method.arguments:
        raise UsageError(
            f"Method {config.method.name!r} needs peers: one or more models joined by +, such as "
            f"peers={PEER} or peers=resnet8+resnet14."
        )
    return found


def make_distiller(config, data, student, teacher=None, others=()):
    """Builds the distiller that `config.method` describes.

    Args:
        config: `ConfigDict` of a run.
        data: The `tfkd.data.Data` that it will train on.
        student: `keras.Model`.
        teacher: `keras.Model`; None where the method has none.
        others: List of `keras.Model`s of the kinds that `peers` names.

    Returns:
        A `tfkd.Distiller`, not yet compiled.
    """
    chosen = [
        losses.get(identifier, **arguments)
        for identifier, arguments in config.method.losses.to_dict().items()
    ]
    for loss in chosen:
        if loss.needs_indices:
            loss.set_examples(data.train_labels())
    arguments = config.method.arguments.to_dict()
    cls = distillers.KnowledgeDistiller
    if config.method.distiller is not None:
        cls = distillers.available()[config.method.distiller]
    takes = _takes(cls)
    if "losses" in takes:
        arguments["losses"] = chosen
    if "image_mean" in takes:
        arguments |= {"image_mean": data.mean, "image_std": data.std}
    if "students" in takes:
        arguments.pop("peers")
        return cls([student, *others], **arguments)
    preprocessing = teacher_preprocessing(config, data, teacher)
    _check_size_of_images(config, student, teacher)
    return cls(student, teacher, teacher_preprocessing=preprocessing, **arguments)


def _takes(cls):
    """The parameters of a class's constructor."""
    return inspect.signature(cls.__init__).parameters
