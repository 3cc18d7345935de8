"""The config of a run, and helpers for the files in `configs/`."""

import copy
import importlib
import math
import pathlib
import re

from ml_collections import ConfigDict, config_dict

import tfkd_cli
from tfkd import files, models, optimizers, runtime
from tfkd.errors import UsageError, check_one_of, unknown
from tfkd.methods import (
    ALONE,
    TEACHER_IMAGE_KEYS,
    TEACHER_IMAGES,
    method_config,
    needs_indices,
    split_at_commas,
)

#: What is in a `config.json` beside the config: of a run, and of a search.
NOT_OF_THE_CONFIG = ("precision", "tuner")

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


#: Weights of two losses for images of 8x8; the published ones are for 32x32. Both average over the
#: positions of a normalised map, so that on maps with a 16th of the positions a difference counts
#: 16 times in its square (at), or 4 times (ft).
SMALL_MAPS = {"at": {"weight": 1000 / 16}, "ft": {"weight": 200 / 4}}


def branches_ramp(epochs):
    """Returns settings of the methods of branches for runs shorter than the published ones.

    Args:
        epochs: Integer, the epochs of a run.

    Returns:
        `{id: {"ramp": epochs}}`, with the published share of a run, 80 of 300 epochs.
    """
    return {method: {"ramp": 80 / 300 * epochs} for method in ("one", "okddip", "pcl")}


def find(name):
    """Returns the path of a config file.

    Args:
        name: String, the path of a Python or JSON file, or the name of a config that comes with
            tfkd.

    Raises:
        UsageError: If there is neither.

    Example:
    ```python
    tfkd.config.find("digits")  # ".../configs/digits.py"
    ```
    """
    if pathlib.Path(name).suffix in (".py", ".json") or pathlib.Path(name).is_file():
        return name
    known = tfkd_cli.configs()
    if name not in known:
        raise unknown("config", name, known)
    return str(known[name])


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
        teacher: String, the name of a model that is trained first, as `tfkd.models.named` takes
            it; or the path of a saved `.keras` model, which is a trained one, or several paths
            joined by `+`.
        student: String, the name of a model, as `tfkd.models.named` takes it.
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
                # Fixed augmentations of every image; None for another one in each epoch.
                "views": config_dict.placeholder(int),
                # Whether each of several students sees crops and flips of its own.
                "peer_views": False,
                "image_size": config_dict.placeholder(int),
                # False: pixels of 0 to 255, for models that bring their own preprocessing.
                "normalize": True,
                # Of folders of images, as in tfkd.data.load.
                "test": 0.1,
                "skip_broken": False,
                # Whether every class counts the same in the losses, however many images it has.
                "balanced": False,
            },
            "teacher": {
                "model": "" if trained else teacher,
                "arguments": {} if trained else _arguments(teacher),
                "path": teacher if trained else "",
                "epochs": 30,
                "learning_rate": 0.05,
                # How many images it is trained on; None for those of the student.
                "train_examples": config_dict.placeholder(int),
                # As the student's.
                "head_epochs": 0,
                # The policy it is built in; None for that of --precision.
                "precision": config_dict.placeholder(str),
                # Whether it runs once over all views of the training images, before training.
                "cache": False,
                # The inputs of a given teacher, where they differ from the student's: its image
                # size; its mean, std and white, as in tfkd.layers.TeacherPreprocessing.
                "image_size": config_dict.placeholder(int),
                # True: images of that size are cut from the original ones by the student's box and
                # flip. Otherwise the student's are resized.
                "from_original": config_dict.placeholder(bool),
                "mean": config_dict.placeholder(tuple),
                "std": config_dict.placeholder(tuple),
                "scale": config_dict.placeholder(float),
            },
            # Arguments as tfkd.models.named takes them, such as the width of mobilenet_v2, or the
            # weights of keras_applications:MobileNetV3Small.
            "student": {
                "model": student,
                "arguments": _arguments(student),
                # Epochs in which its last layer alone is trained before all of it, where the
                # others begin with the weights of another task.
                "head_epochs": 0,
                # A saved model of the same kind, whose weights it begins with.
                "weights": config_dict.placeholder(str),
            },
            "method": method_config(method, settings),
            "settings": settings or {},
            "optimizer": {
                # sgd; adamw, without momentum, nesterov and delta; dot, which has a momentum of
                # its own for the gradients of labels and of distillation.
                "name": "sgd",
                "learning_rate": 0.05,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 5e-4,
                # By how much the momentums of dot differ from the one above.
                "delta": 0.075,
                # The largest norm of all gradients together; None for no limit.
                "global_clipnorm": config_dict.placeholder(float),
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
            # After every so many epochs the student of that moment is kept, too.
            "keep_every": config_dict.placeholder(int),
            # Epochs without a better validation accuracy after which training ends; None for all.
            "patience": config_dict.placeholder(int),
            # Of the student's labels, as keras.losses.CategoricalCrossentropy has it.
            "label_smoothing": 0.0,
            "check": True,
            # What tfkd.callbacks.Diagnostics measures after every epoch.
            "diagnostics": False,
            # Whether TensorBoard gets a profile of some steps.
            "profile": False,
            "seed": 0,
        }
    )


def _arguments(model):
    """Returns the arguments of a model that flags can set."""
    return {
        key: config_dict.placeholder(str) if value is None else value
        for key, value in models.default_arguments(model).items()
    }


def teacher_paths(config):
    """Returns the files of the given teachers, a list; empty where one is trained.

    Args:
        config: `ConfigDict` of a run, whose `teacher.path` is one path or several joined by `+`.
    """
    found = re.split(r"(?<=\.keras)\+", config.teacher.path) if config.teacher.path else []
    return [pathlib.Path(path) for path in found]


def of_teacher(config):
    """Returns the config of the run that trains the teacher of others, on its labels alone.

    Args:
        config: `ConfigDict` of a run whose teacher is none that is given.

    Returns:
        A `ConfigDict`, whose student is that teacher.
    """
    one = copy.deepcopy(config)
    one.method = method_config(ALONE)
    one.student.model = config.teacher.model
    one.student.arguments = config.teacher.arguments
    one.student.head_epochs = config.teacher.head_epochs
    one.student.weights = None
    # Smooth labels make a teacher that teaches less.
    one.label_smoothing = 0.0
    one.epochs = config.teacher.epochs
    one.optimizer.learning_rate = config.teacher.learning_rate
    if config.teacher.train_examples is not None:
        one.data.train_examples = config.teacher.train_examples
    return one


def become_teacher_of_study(config, model):
    """Turns a study's config into that of its teacher: a model trained alone, on all images.

    Args:
        config: `ConfigDict` of the students; changed. Its images have new crops in every epoch.
        model: String, the name of the teacher, as `tfkd.models.named` takes it.
    """
    config.method = method_config(ALONE)
    config.student.model = model
    config.data.train_examples = config.data.views = None
    config.teacher.cache = False


def from_json(path):
    """Returns the config of a run's `config.json`, or of a search's `best_config.json`.

    `tfkd train --config=FILE.json` and the other commands call it. What the file leaves out is as
    in `default_config`.

    Args:
        path: Path of the file. `"imports"` in it names the modules that define losses or methods
            of the user's own, `"config"` holds the values; without `"config"` the file itself
            holds them.

    Returns:
        A `ConfigDict`.

    Raises:
        UsageError: If the file cannot be read, holds no config, or names an unknown method or a
            module that cannot be imported.

    Example:
    ```python
    config = tfkd.config.from_json("runs/digits-tuned/best_config.json")
    config.epochs = 20
    ```
    """
    path = pathlib.Path(path)
    try:
        found = files.read_json(path)
        values = found.get("config", found)
        method, student, teacher = values["method"]["name"], values["student"], values["teacher"]
        teacher = teacher.get("path") or teacher.get("model", "")
        student = student["model"]
        imports = found.get("imports", [])
        named = [method, student, teacher, *imports]
        if not isinstance(imports, list) or not all(isinstance(name, str) for name in named):
            raise TypeError("names that are no text")
    except OSError as error:
        raise UsageError(f"Config {path} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} holds no config: it must be like the config.json of a run, or the "
            "best_config.json of a search."
        ) from error
    remedy = f"import it in a Python config that returns tfkd.config.from_json({str(path)!r})"
    for module in imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"{path} needs your module {module!r}, which cannot be imported ({error}): set "
                f"PYTHONPATH to its folder, or {remedy}."
            ) from error
    values = {key: value for key, value in values.items() if key not in NOT_OF_THE_CONFIG}
    values = _with_tuples(values)
    beside = path.resolve().parent / teacher
    if "config" in found and values["teacher"].get("path") and beside.exists():
        # The teacher of a search, wherever its directory has been moved.
        values["teacher"]["path"] = str(beside)
    try:
        config = default_config(method, teacher, student, values.get("settings"))
        config.update(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error} If a module of yours defines it, {remedy}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    return config


def _with_tuples(value):
    """Returns a value out of JSON, which has no tuples, with tuples for lists, as in configs."""
    if isinstance(value, dict):
        return {key: _with_tuples(below) for key, below in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


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


def check(config):
    """Checks the numbers of a run's config.

    Args:
        config: `ConfigDict` of a run.

    Raises:
        UsageError: If one is outside its range.
    """
    complete = default_config(ALONE, "", "")
    missing = [key for key in complete if key not in config]
    if missing:
        raise UsageError(
            f"The config has no {', '.join(missing)}: start it with "
            "tfkd.config.from_arguments(...), as those in configs/ do."
        )
    values = flatten(config.to_dict())
    for key, value in flatten(complete.to_dict()).items():
        if value is not None and values.get(key, value) is None:
            raise UsageError(f"--config.{key} needs a value; received None.")
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
        "keep_every": (
            1 if config.keep_every is None else config.keep_every,
            lambda x: x >= 1,
            "at least 1",
        ),
        "student.head_epochs": (config.student.head_epochs, lambda x: x >= 0, "at least 0"),
        "teacher.head_epochs": (config.teacher.head_epochs, lambda x: x >= 0, "at least 0"),
        "patience": (config.patience, lambda x: x is None or x >= 1, "at least 1"),
        "label_smoothing": (config.label_smoothing, lambda x: 0 <= x < 1, "from 0 to below 1"),
        "optimizer.global_clipnorm": (
            config.optimizer.global_clipnorm,
            lambda x: x is None or (x > 0 and finite(x)),
            "above 0 and finite",
        ),
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
        name: config.teacher[name]
        for name in TEACHER_IMAGE_KEYS
        if config.teacher[name] is not None
    }
    if inputs and not config.teacher.path:
        raise UsageError(
            f"--config.teacher.{next(iter(inputs))} describes the images of a given teacher "
            "(:teacher=path.keras); one that is trained here takes the student's."
        )
    if config.teacher.from_original and config.teacher.image_size is None:
        raise UsageError(
            "--config.teacher.from_original cuts the teacher's images in its own size: set "
            "--config.teacher.image_size too."
        )
    if config.teacher.from_original and len(teacher_paths(config)) > 1:
        raise UsageError(
            "--config.teacher.from_original is for one teacher; several get the student's images, "
            "each resized to its own size."
        )
    for name in ("diagnostics", "patience"):
        if config[name] and config.data.validation == 0:
            raise UsageError(
                f"--config.{name} looks at validation images: set --config.data.validation above 0."
            )
    if config.teacher.precision is not None:
        check_one_of("--config.teacher.precision", config.teacher.precision, runtime.PRECISIONS)
    check_one_of("--config.optimizer.name", config.optimizer.name, optimizers.OF_STUDENTS)
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
