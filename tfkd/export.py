"""Exports a trained model with its normalisation inside, and measures what was exported.

    python -m tfkd.export --workdir=runs/digits-kd --format=tflite [--quantize=int8]

Whatever the format, what is written takes raw pixels: uint8 images `(batch, height, width,
channels)`. It is loaded again, run on the whole test set and timed, and a table shows it beside the
original. docs/export.md is the page.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable

import keras
import numpy as np
import scipy.special
import tensorflow as tf
from absl import flags

from tfkd import checkpoint, command_line, measure, tables, work_directory
from tfkd.errors import UsageError, check_no_arguments, unknown

#: Ways to make a `tflite` file smaller: weights of 8 bits; of 16; weights and arithmetic of 8.
QUANTIZATIONS = ("dynamic", "float16", "int8")

#: What tables tell of an original or an exported model, `{title: function of what was measured}`.
COLUMNS = {
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

#: How far an output of a float export may be from the original's, as a share of the largest. On a
#: CPU it is below 1e-5; GPUs multiply with a mantissa of ten bits (TF32) unless told otherwise.
TOLERANCE = 0.01

#: How many images show int8 the ranges of all values.
CALIBRATION_IMAGES = 200


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
            not know what the model does, or a float export disagrees with the original. What was
            at `path` is then as it was.

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
        model = work_directory.load_model(model)
    _check_model(model, data, preprocessing)
    model = _in_float32(model)

    truth = _Truth(model, data, preprocessing, probabilities)
    original = {"bytes": size, "test_accuracy": truth.accuracy(truth.outputs)}
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
        exported.update(bytes=_bytes(temporary), **truth.compare(run))
        for found, times in zip((original, exported), truth.times(run)):
            found.update(times)
        if quantize is None:
            truth.check(exported, path)

    checkpoint.write(path, save)
    work_directory.write_class_names(labels_path(path), data.class_names)
    return original, exported


def labels_path(path):
    """Returns the path of the file beside an exported model that names its classes."""
    return path.with_name(f"{path.name}.labels.txt")


def export_run(
    workdir, format, quantize=None, model="student", output=None, probabilities=False, data_dir=None
):
    """Exports a model of a complete run, and adds what it measured to the run's `export.json`.

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
    data = run.data(data_dir)
    preprocessing = run.preprocessing(model, network, data)
    original, exported = export(
        network, data, output, format, quantize, probabilities, preprocessing
    )
    original["bytes"] = source.stat().st_size
    exported["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__}
    key = f"{format}-{quantize}" if quantize else format
    found[model] = {**found.get(model, {}), "original": original, key: exported}
    checkpoint.write_text(report, json.dumps(found, indent=2) + "\n")
    return original, exported


def table(rows):
    """Returns what `export` has measured as a Markdown table.

    Args:
        rows: `{name: dictionary}`, of originals and exported models alike.
    """
    lines = [[name, *(show(row) for show in COLUMNS.values())] for name, row in rows.items()]
    return tables.markdown([["", *COLUMNS], *lines])


def check_format(format, quantize=None):
    """Checks that there is such a format, and what it needs.

    Args:
        format: String.
        quantize: String or None.

    Raises:
        UsageError: If there is no such format or quantisation, they do not go together, or a
            package is missing.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if quantize is not None:
        if quantize not in QUANTIZATIONS:
            raise unknown("quantization", quantize, QUANTIZATIONS)
        if format != "tflite":
            raise UsageError(
                f"Quantization {quantize!r} is for the format 'tflite' only; the format is "
                f"{format!r}."
            )
    for package in FORMATS[format].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"Format {format!r} needs {package}, which cannot be imported ({error}): pip "
                f"install 'tfkd[{format}]'."
            ) from error


def _check_path(path, format):
    """Refuses to replace what is no earlier export, and names that loaders do not take."""
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
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is damaged: remove it.") from error


def _in_float32(model):
    """Returns a model that computes in float32: the model itself, or a copy with its weights."""
    if all(layer.compute_dtype == "float32" for layer in model._flatten_layers()):
        return model

    def copy(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copied = keras.models.clone_model(model, clone_function=copy, recursive=True)
    copied.set_weights(model.get_weights())
    return copied


class _Exporting:
    """What is to be written, in any format.

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
            # Converters raise whatever they stumble over, over many lines.
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


@contextlib.contextmanager
def _quiet():
    """Keeps converters from telling every step."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _save_keras(exporting, path):
    exporting.with_normalisation().save(path)


def _save_saved_model(exporting, path):
    exporting.with_normalisation().export(str(path), format="tf_saved_model", verbose=False)


def _save_tflite(exporting, path):
    # With pixels in float32 the converter makes all arithmetic integer, and then their type uint8.
    full = exporting.quantize == "int8"
    model = exporting.with_normalisation("float32" if full else "uint8")
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if exporting.quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if exporting.quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if full:
            converter.representative_dataset = exporting.calibration_images
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
            converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())


def _save_onnx(exporting, path):
    model = exporting.with_normalisation()
    # Keras refuses a model that nobody has called, other than in its other formats.
    model(keras.KerasTensor(model.input_shape, dtype="uint8"))
    model.export(str(path), format="onnx", verbose=False)


#: What is wrong where a model was saved, and cannot be loaded.
_REGISTER = "register its own layers by keras.saving.register_keras_serializable"


def _load_keras(path):
    run = measure.forward(work_directory.load_model(path, _REGISTER))
    return lambda images: run(images).numpy()


def _load_saved_model(path):
    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(tf.constant(images)).numpy()


def _load_tflite(path):
    with warnings.catch_warnings():
        # It has announced its end in TensorFlow 2.20, and is in 2.21.
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path), num_threads=_threads())
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = target["quantization"]
    shape = None

    def run(images):
        nonlocal shape
        if images.shape != shape:
            interpreter.resize_tensor_input(source["index"], images.shape)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        outputs = interpreter.get_tensor(target["index"])
        if target["dtype"] == np.int8:
            return (outputs.astype("float32") - zero_point) * scale
        return outputs

    return run


def _load_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _threads():
    """Returns how many threads TensorFlow computes with, for the other runtimes to have as many."""
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    if chosen:
        return chosen
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclasses.dataclass
class Format:
    """A format, for what the others do not share with it.

    Attributes:
        ending: String, what the names of its files end in.
        save: Function of an `_Exporting` and a path that writes.
        load: Function of a path; it returns a function of uint8 images that returns outputs as an
            array.
        packages: Tuple of modules that the extra of the format's name installs.
    """

    ending: str
    save: Callable
    load: Callable
    packages: tuple = ()


#: `{name: Format}`.
FORMATS = {
    "keras": Format(".keras", _save_keras, _load_keras),
    "saved_model": Format("_saved_model", _save_saved_model, _load_saved_model),
    "tflite": Format(".tflite", _save_tflite, _load_tflite),
    "onnx": Format(".onnx", _save_onnx, _load_onnx, ("tf2onnx", "onnx", "onnxruntime")),
}


class _Truth:
    """What the original says of all test images, for exported models to be compared with.

    Args:
        model, data, preprocessing, probabilities: As `export` takes them.
    """

    def __init__(self, model, data, preprocessing, probabilities):
        forward = measure.forward(model)
        prepare = preprocessing or (lambda images: images)
        self._run = lambda images: forward(prepare(images)).numpy()
        self._images, self._pixels = data.test, data.pixels("test")
        self.labels = np.concatenate([labels for _, labels in self._pixels])
        self.outputs = _outputs(self._run, self._images)
        if probabilities:
            self.outputs = scipy.special.softmax(self.outputs, axis=-1)

    def compare(self, run):
        """Returns the accuracy of an exported model, and how near it is to the original.

        Args:
            run: Function of uint8 images that returns outputs as an array.
        """
        outputs = _outputs(run, self._pixels)
        equal = outputs.argmax(-1) == self.outputs.argmax(-1)
        return {
            "test_accuracy": self.accuracy(outputs),
            "equal_predictions": float(np.mean(equal)),
            "largest_difference": float(np.max(np.abs(outputs - self.outputs))),
        }

    def times(self, run):
        """Yields how long inference takes the original, and how long an exported model.

        Args:
            run: Function of uint8 images that returns outputs as an array.
        """
        runs = (self._run, self._images), (run, self._pixels)
        single, batch = [], []
        for function, batches in runs:
            images, _ = next(batches.as_numpy_iterator())
            single.append(functools.partial(function, images[:1]))
            batch.append(functools.partial(function, images))
        for one, many in zip(
            measure.median_seconds(*single, repeats=50), measure.median_seconds(*batch)
        ):
            yield {
                "milliseconds_per_image": 1000 * one,
                "milliseconds_per_batch": 1000 * many,
                "batch_size": len(images),
                "threads": _threads(),
            }

    def check(self, exported, path):
        """Raises a `UsageError` if a float export disagrees with the original."""
        difference, largest = exported["largest_difference"], float(np.max(np.abs(self.outputs)))
        # Not the other way round: a difference may be NaN.
        if not difference <= TOLERANCE * largest:
            raise UsageError(
                f"What was to become {path} disagrees with the original: outputs of up to "
                f"{largest:.3g} differ by up to {difference:.3g}, test accuracy is "
                f"{exported['test_accuracy']:.2%} instead of {self.accuracy(self.outputs):.2%}. "
                "It was not kept; choose another format."
            )

    def accuracy(self, outputs):
        """Returns the share of test images that outputs classify right."""
        return float(np.mean(outputs.argmax(-1) == self.labels))


def _outputs(run, batches):
    return np.concatenate([run(images) for images, _ in batches.as_numpy_iterator()])


def _bytes(path):
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def needed_packages(path):
    """Returns the packages whose layers a `.keras` file holds, beside Keras' own.

    Args:
        path: Path of a `.keras` file that can be read.
    """
    layers = keras.models.load_model(path, compile=False)._flatten_layers()
    return sorted({type(layer).__module__.partition(".")[0] for layer in layers} - {"keras"})


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)
    flags.DEFINE_string("format", None, f"One of {', '.join(FORMATS)}.")
    flags.DEFINE_string("quantize", None, f"Of tflite, one of {', '.join(QUANTIZATIONS)}.")
    flags.DEFINE_string("model", "student", "Model of the run: student, ensemble, fused, ...")
    flags.DEFINE_string("output", None, "Path to write to; one in WORKDIR/export if not given.")
    flags.DEFINE_bool("probabilities", False, "Whether to export a softmax of the logits.")


def main(rest):
    """Runs what the flags say."""
    values = flags.FLAGS
    check_no_arguments(rest)
    if not values.format:
        raise UsageError(f"--format is missing: one of {', '.join(FORMATS)}.")
    original, exported = export_run(
        values.workdir,
        values.format,
        values.quantize,
        values.model,
        values.output,
        values.probabilities,
        values.data_dir,
    )
    name = " ".join(filter(None, [values.format, values.quantize]))
    print(table({f"{values.model}, as trained": original, name: exported}))
    if values.format == "keras" and (packages := needed_packages(exported["path"])):
        print(f"It has layers of {', '.join(packages)}: who loads it imports that first.")
    labels = labels_path(pathlib.Path(exported["path"])).name
    print(f"Written: {exported['path']}, {labels} beside it, and export.json in {values.workdir}")


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
