"""Models that are not of the zoo, by name: files, functions, keras.applications, KerasHub."""

import importlib
import inspect
import pathlib
import zipfile

import keras

from tfkd import taps
from tfkd.errors import UsageError, unknown

APPLICATIONS, HUB = "keras_applications", "keras_hub"

#: The names that models have beside the ids of the zoo.
FORMS = ("path.keras", "module:function", f"{APPLICATIONS}:NAME", f"{HUB}:PRESET")


def is_elsewhere(name):
    """Whether a name is one of `FORMS`, and not the id of a zoo model."""
    return name.endswith(".keras") or ":" in name


def default_arguments(name):
    """Returns the arguments that a name of `FORMS` takes, with their defaults.

    Args:
        name: String.
    """
    kind = name.partition(":")[0]
    return {APPLICATIONS: {"weights": None}, HUB: {"load_weights": True}}.get(kind, {})


def make(name, num_classes, input_shape, seed, mean, std, arguments):
    """Makes a model of `FORMS`; see `tfkd.models.named`."""
    kind, _, rest = name.partition(":")
    if seed is not None:
        keras.utils.set_random_seed(seed)
    if name.endswith(".keras"):
        if not pathlib.Path(name).exists():
            raise UsageError(f"Model {name} does not exist: correct the path.")
        model = load(name)
    elif kind in (APPLICATIONS, HUB):
        inputs, pixels = _pixels(input_shape, mean, std)
        build = _application if kind == APPLICATIONS else _from_hub
        logits = build(rest, num_classes, pixels, **arguments)
        # A slash would be one of a path.
        model = keras.Model(inputs, logits, name=rest.replace("/", "_").strip("._"))
    else:
        model = _from_function(kind, rest, num_classes, input_shape, arguments)
    _check_fits(name, model, num_classes, input_shape)
    return model


def import_definitions(name):
    """Imports what defines the layers of a model of `FORMS`, before a file of it is loaded."""
    kind = name.partition(":")[0]
    if kind == HUB:
        _hub(name)
    elif ":" in name and kind != APPLICATIONS:
        _imported(name, kind)


def load(path, remedy="give a whole .keras file"):
    """Returns a saved Keras model; code in its file is not run.

    Args:
        path: Path of a `.keras` file.
        remedy: String, what would be right where it cannot be read.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        UsageError: If the file holds no Keras model that can be read.
    """
    path = pathlib.Path(path)
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        # Keras passes on the exceptions of the archive, HDF5 and JSON readers.
        reason = _first_line(error)
        if "safe_mode" in str(error):
            # Keras' message tells how to run it all the same.
            reason = "it holds Python code, such as a Lambda layer's function, which is not run"
            remedy = "save the model with a layer class in its place, which your config imports"
        elif "Could not locate class" in str(error):
            reason = reason.partition(". ")[0]
            remedy = (
                "import the module that registers the class first, on the command line by "
                "--imports=MODULE"
            )
        elif path.is_dir():
            reason = "it is a directory"
        elif not zipfile.is_zipfile(path):
            # Keras says that there is no such file.
            reason = "it is no whole .keras archive"
        raise UsageError(f"{path} cannot be read as a Keras model ({reason}): {remedy}.") from error


def _pixels(input_shape, mean, std):
    """Returns an input of normalised images, and its pixels of 0 to 255 in three channels."""
    inputs = keras.Input(tuple(input_shape), name="image")
    # Floats, not NumPy's: they are saved.
    scale, offset = ([255.0 * float(number) for number in numbers] for numbers in (std, mean))
    pixels = inputs
    if any(abs(number - 1.0) > 1e-6 for number in scale) or any(offset):
        pixels = keras.layers.Rescaling(scale, offset, name="pixels")(pixels)
    if input_shape[-1] == 1:
        pixels = keras.layers.Concatenate(name="channels")([pixels] * 3)
    return inputs, pixels


def _application(name, num_classes, pixels, weights=None):
    """Runs a network of `keras.applications`, with a classifier of one layer, on pixels."""
    known = [key for key, kind in vars(keras.applications).items() if inspect.isfunction(kind)]
    if name not in known:
        raise unknown(f"model of {APPLICATIONS}", name, known)
    build = getattr(keras.applications, name)
    # A model that brings its preprocessing inside has one that does nothing.
    images = inspect.getmodule(build).preprocess_input(pixels)
    try:
        backbone = build(
            include_top=False,
            weights=weights,
            input_tensor=images,
            input_shape=tuple(images.shape[1:]),
            pooling="avg",
        )
    except Exception as error:
        # Keras passes on whatever the download or the reader of the weights raises.
        raise UsageError(f"Model {APPLICATIONS}:{name}: {_first_line(error)}") from error
    return keras.layers.Dense(num_classes, name="logits")(backbone.output)


def _from_hub(preset, num_classes, pixels, load_weights=True):
    """Runs a classifier of KerasHub on pixels, normalised as its preset says."""
    name = f"{HUB}:{preset}"
    hub = _hub(name)
    try:
        model = hub.models.ImageClassifier.from_preset(
            preset, num_classes=num_classes, load_weights=load_weights
        )
    except Exception as error:
        # KerasHub passes on whatever the download raises.
        raise UsageError(
            f"Model {name} cannot be loaded ({_first_line(error)}): a preset is a name of "
            "keras.io/keras_hub/presets, for which there must be a network, or a directory."
        ) from error
    wanted, given = tuple(model.input_shape), tuple(pixels.shape)
    if any(a != b for a, b in zip(wanted, given) if a is not None):
        raise _other_images(name, wanted[1:], given[1:])
    converter = getattr(model.preprocessor, "image_converter", None)
    if converter is not None and converter.scale is not None:
        offset = 0.0 if converter.offset is None else converter.offset
        pixels = keras.layers.Rescaling(converter.scale, offset, name="normalized")(pixels)
    # As a plain model: KerasHub's own has training of its own, which is not saved.
    return keras.Model(model.inputs, model.outputs[0], name="classifier")(pixels)


def _hub(name):
    try:
        return importlib.import_module("keras_hub")
    except ImportError as error:
        raise UsageError(
            f"Model {name} needs KerasHub ({_first_line(error)}): pip install tfkd[hub] brings it."
        ) from error


def _imported(name, module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"Model {name}: module {module!r} cannot be imported ({_first_line(error)}): it must "
            "be in the current directory, or in one of PYTHONPATH."
        ) from error


def _from_function(module, name, num_classes, input_shape, arguments):
    """Calls a function of the user's."""
    full = f"{module}:{name}"
    found = _imported(full, module)
    function = getattr(found, name, None)
    if not callable(function):
        own = [key for key, value in vars(found).items() if inspect.isfunction(value)]
        raise unknown(f"function of module {module!r}", name, own)
    arguments = {"num_classes": num_classes, "input_shape": tuple(input_shape), **arguments}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"Model {full}: the function must take {', '.join(arguments)} by these names ({error})."
        ) from error
    model = function(**arguments)
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"Model {full}: the function must return a keras.Model; it returned a "
            f"{type(model).__name__}."
        )
    if not model.built:
        # A subclassed model has no weights before its first call.
        model(keras.ops.zeros((1, *input_shape)))
    return model


def _check_fits(name, model, num_classes, input_shape):
    """Refuses a model of other images or classes than those of the data."""
    if taps.output(model) is None:
        return  # Of a subclassed model nothing is known before it runs.
    if len(model.outputs) != 1:
        raise UsageError(
            f"Model {name} has {len(model.outputs)} outputs: it must have one, the logits."
        )
    wanted, given = tuple(model.input_shape[1:]), tuple(input_shape)
    if len(wanted) != 3 or any(a != b for a, b in zip(wanted, given) if a is not None):
        raise _other_images(name, wanted, given)
    classes = model.output_shape[-1]
    if classes != num_classes:
        raise UsageError(
            f"Model {name} has {classes} classes, and the data {num_classes}: its last layer must "
            f"have {num_classes} outputs."
        )


def _other_images(name, wanted, given):
    text, data = ("x".join(map(str, shape)) for shape in (wanted, given))
    line = f"Model {name} takes images of {text}, and those of the data are {data}"
    if wanted[:-1] != given[:-1] and len(wanted) == 3 and wanted[0] == wanted[1]:
        line += f": set --config.data.image_size={wanted[0]}"
    return UsageError(f"{line}.")


def _first_line(error):
    """Returns what an error of another library says, as far as it is a line."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
