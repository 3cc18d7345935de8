"""Exports a student for deployment, and measures the result."""

import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfkd import files, models, runtime, tables
from tfkd.errors import UsageError
from tfkd.export.formats import CALIBRATION_IMAGES, FORMATS, _quiet, check_format
from tfkd.export.reference import Reference, size_on_disk
from tfkd.runs import work_directory
from tfkd.stderr import without_lines

#: What TensorFlow Lite's converter and interpreter tell, whatever their level of logs.
_CHATTER = (b"fully_quantize: ", b"INFO: Created TensorFlow Lite ")

#: What tables of original and exported models show, `{title: function of the measurements}`.
MEASUREMENTS = {
    "size on disk": lambda row: "" if row["bytes"] is None else f"{row['bytes'] / 1024:,.0f} kB",
    "test accuracy %": lambda row: f"{100 * row['test_accuracy']:.2f}",
    "equal predictions %": lambda row: (
        f"{100 * row['equal_predictions']:.2f}" if "equal_predictions" in row else ""
    ),
    "largest difference": lambda row: (
        f"{row['largest_difference']:.1e}" if "largest_difference" in row else ""
    ),
    "ms, 1 image": lambda row: f"{row['milliseconds_per_image']:.2f}",
    "ms, batch": lambda row: f"{row['milliseconds_per_batch']:.2f} ({row['batch_size']})",
}


def export(
    model, data, path, format="keras", quantize=None, probabilities=False, preprocessing=None
):
    """Writes a model in another format, checks and measures it.

    The exported model takes uint8 images as they are in the data set, or as `image_size` has
    resized them, and normalises them as the pipelines of `data` do. It outputs float32 logits, in
    `int8` files int8 logits with their scale. A model of a mixed precision is exported in float32.

    Args:
        model: `keras.Model` with one input, the images that `data.test` yields, and one output,
            logits; or the path of a `.keras` file.
        data: A `tfkd.data.Data`. Its `mean` and `std` go into the exported model; `int8` reads
            some validation images, or training images where there are none; all test images are
            used to compare.
        path: Where to write. A file, or for `saved_model` a directory; what was there is replaced
            once the new one is whole and agrees with the original. Beside it, `{path}.labels.txt`
            has the names of the classes, one a line, in the order of the outputs.
        format: `"keras"`, `"saved_model"`, `"tflite"` or `"onnx"`.
        quantize: `"dynamic"`, `"float16"`, `"int8"` or None; only for `"tflite"`.
        probabilities: Boolean, whether to export a softmax of the logits.
        preprocessing: `keras.Layer` between normalisation and model, such as a
            `tfkd.layers.TeacherPreprocessing`; None for none.

    Returns:
        The tuple `(original, exported)` of dictionaries: `bytes`, `test_accuracy`,
        `milliseconds_per_image` (one image at a time), `milliseconds_per_batch`, `batch_size` and
        `threads`; of the exported one also `path`, `format`, `quantize`, `probabilities`,
        `equal_predictions` (a share) and `largest_difference` (of an output).

    Raises:
        UsageError: If an argument is none of the above, a package is missing, the converter does
            not support an operation of the model, or a float export disagrees with the original.
            `path` is then unchanged.

    Example:
    ```python
    data = tfkd.data.load("digits")
    original, exported = tfkd.export.export("my.keras", data, "my.tflite", "tflite", "int8")
    print(tfkd.export.table({"my.keras": original, "my.tflite": exported}))
    ```
    """
    check_format(format, quantize)
    path = pathlib.Path(path)
    _check_path(path, format)
    size = None
    if not isinstance(model, keras.Model):
        size = pathlib.Path(model).stat().st_size if pathlib.Path(model).exists() else None
        model = models.load(model)
    _check_model(model, data, preprocessing)
    model = _in_float32(model)

    reference = Reference(model, data, preprocessing, probabilities)
    original = {"bytes": size, "test_accuracy": reference.accuracy(reference.outputs)}
    exporting = _Exporting(model, data, quantize, probabilities, preprocessing)
    exported = {
        "path": str(path),
        "format": format,
        "quantize": quantize,
        "probabilities": probabilities,
    }

    def save(temporary):
        exporting.save(format, temporary)
        run = FORMATS[format].load(temporary)
        exported.update(bytes=size_on_disk(temporary), **reference.compare(run))
        for found, times in zip((original, exported), reference.times(run)):
            found.update(times)
        if quantize is None:
            reference.check(exported, path)

    with without_lines(*_CHATTER):
        files.write(path, save)
    work_directory.write_class_names(labels_path(path), data.class_names)
    return original, exported


def labels_path(path):
    """Returns the path of the file beside an exported model that names its classes."""
    return path.with_name(f"{path.name}.labels.txt")


def export_run(
    workdir, format, quantize=None, model="student", output=None, probabilities=False, data_dir=None
):
    """Exports a model of a complete run, and adds the measurements to the run's `export.json`.

    Args:
        workdir: Path of the run's work directory.
        format: As `export` takes it.
        quantize: As `export` takes it.
        model: String: `"student"`, `"teacher"` or another model of the run.
        output: Path to write to; None for one in `{workdir}/export`.
        probabilities: As `export` takes it.
        data_dir: Where TFDS keeps its data sets; None for its default.

    Returns:
        The tuple `(original, exported)`, as `export` returns it.

    Raises:
        UsageError: As `export`; or if the run is not complete, or has no such model.
    """
    check_format(format, quantize)
    run = work_directory.WorkDirectory(workdir)
    source = run.path / f"{model}.keras"
    network = run.model(model)
    name = model + (f"-{quantize}" if quantize else "") + FORMATS[format].ending
    output = pathlib.Path(output) if output else run.path / "export" / name
    if output.resolve() in [path.resolve() for path in run.path.glob("*.keras")]:
        raise UsageError(
            f"--output={output} is a model that the run has trained: choose another path."
        )
    _check_path(output, format)
    report = run.path / "export.json"
    found = _read_report(report)
    data, preprocessing = run.seen_by(model, network, run.data(data_dir))
    original, exported = export(
        network, data, output, format, quantize, probabilities, preprocessing
    )
    original["bytes"] = source.stat().st_size
    exported["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__}
    key = f"{format}-{quantize}" if quantize else format
    found[model] = {**found.get(model, {}), "original": original, key: exported}
    files.write_text(report, json.dumps(found, indent=2) + "\n")
    return original, exported


def table(rows):
    """Returns the measurements of `export` as a Markdown table.

    Args:
        rows: `{name: dictionary}`, of originals and exported models alike. Each is a column, so
            that three models fit into 80 characters.
    """
    lines = [[title, *map(show, rows.values())] for title, show in MEASUREMENTS.items()]
    return tables.markdown([["", *rows], *lines])


def _check_path(path, format):
    """Refuses to replace anything but an earlier export, and names that loaders do not accept."""
    if format == "saved_model":
        if path.is_file():
            raise UsageError(f"{path} is a file: a saved model is a directory.")
        if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
            raise UsageError(f"{path} holds something other than a saved model: choose another.")
        return
    if path.suffix != FORMATS[format].ending:
        raise UsageError(
            f"{path}: the name of a file of format {format!r} ends in {FORMATS[format].ending}."
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory: it must be a file.")


def _check_model(model, data, preprocessing):
    """Refuses models that do not classify the images of the data set."""
    given = data.input_shape
    if preprocessing is not None:
        given = preprocessing.compute_output_shape((None, *given))[1:]
    # A subclassed model says nothing of itself.
    inputs = getattr(model, "inputs", None) or [keras.KerasTensor((None, *given))]
    shapes = [tuple(tensor.shape[1:]) for tensor in inputs]
    fits = len(shapes) == 1 and len(shapes[0]) == len(given)
    if not fits or any(size not in (None, there) for size, there in zip(shapes[0], given)):
        raise UsageError(
            f"Model {model.name!r} takes {' and '.join(map(str, shapes))}; the images of data set "
            f"{data.name!r} are {tuple(given)}."
        )
    outputs = keras.tree.flatten(model(keras.KerasTensor((None, *given))))
    if [tuple(tensor.shape) for tensor in outputs] != [(None, data.num_classes)]:
        raise UsageError(
            f"Model {model.name!r} outputs {' and '.join(str(t.shape) for t in outputs)}: it must "
            f"output the logits of the {data.num_classes} classes of data set {data.name!r}."
        )


def _read_report(path):
    if not path.exists():
        return {}
    try:
        return files.read_json(path)
    except ValueError as error:
        raise UsageError(f"{path} is damaged: remove it.") from error


def _in_float32(model):
    """Returns a model that computes in float32: the model itself, or a copy with its weights."""
    if all(layer.compute_dtype == "float32" for layer in runtime.all_layers(model)):
        return model

    def copy(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copied = keras.models.clone_model(model, clone_function=copy, recursive=True)
    copied.set_weights(model.get_weights())
    return copied


class _Exporting:
    """A model to export, in any format.

    Args:
        model, data, quantize, probabilities, preprocessing: As `export` takes them.
    """

    def __init__(self, model, data, quantize, probabilities, preprocessing):
        self.model, self.data = model, data
        self.quantize = quantize
        self.probabilities = probabilities
        self.preprocessing = preprocessing

    def save(self, format, path):
        """Writes the model to a path."""
        try:
            with _quiet():
                FORMATS[format].save(self, path)
        except (OSError, UsageError):
            raise
        except Exception as error:
            # Converters raise exceptions of many kinds, with messages of many lines.
            reason = next(iter(str(error).strip().splitlines()), "")[:300]
            raise UsageError(
                f"Model {self.model.name!r} cannot be exported as {format!r} "
                f"({type(error).__name__}: {reason}): choose another format."
            ) from error

    def with_normalisation(self, dtype="uint8"):
        """Returns the model behind the data set's normalisation.

        Args:
            dtype: String, the type of the pixels.
        """
        # The arithmetic of tfkd.data, so that the outputs are the same.
        mean, std = np.array(self.data.mean), np.array(self.data.std)
        pixels = keras.Input(self.data.input_shape, dtype=dtype, name="pixels")
        images = keras.layers.Rescaling(
            (1 / (255 * std)).tolist(), (-mean / std).tolist(), dtype="float32", name="normalise"
        )(pixels)
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        outputs = self.model(images)
        if self.probabilities:
            outputs = keras.layers.Softmax(dtype="float32", name="probabilities")(outputs)
        return keras.Model(pixels, outputs, name=f"{self.model.name}_of_pixels")

    def calibration_images(self):
        """Yields images for the ranges of int8, from all over the validation or training split."""
        split = "validation" if self.data.sizes["validation"] else "train"
        step = max(1, self.data.sizes[split] // CALIBRATION_IMAGES)
        examples = self.data.pixels(split).unbatch().shard(step, 0).take(CALIBRATION_IMAGES)
        stretched = None
        for image, _ in examples.as_numpy_iterator():
            image = image.astype("float32")
            if stretched is None and image.max() > image.min():
                stretched = (image - image.min()) / (image.max() - image.min()) * 255
            yield [image[None]]
        if stretched is not None:
            # Black and white must be among them: then the input's scale is 1, its zero point 0, and
            # pixels are taken as they are.
            yield [stretched[None]]
