"""The formats: how each is written, read again and run."""

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfkd import models, runtime
from tfkd.errors import UsageError, unknown
from tfkd.runs import measure

#: Ways to make a `tflite` file smaller: weights of 8 bits; of 16; weights and arithmetic of 8.
QUANTIZATIONS = ("dynamic", "float16", "int8")


#: How many images show int8 the ranges of all values.
CALIBRATION_IMAGES = 200


def check_format(format, quantize=None):
    """Checks that a format exists and its packages are installed.

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
    # Unlike its other formats, Keras refuses a model that was never called.
    model(keras.KerasTensor(model.input_shape, dtype="uint8"))
    model.export(str(path), format="onnx", verbose=False)


#: The message for a model that was saved and cannot be loaded.
_REGISTER = "register its own layers by keras.saving.register_keras_serializable"


def _load_keras(path):
    run = measure.forward(models.load(path, _REGISTER))
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
    """How one format is written, loaded and run.

    Attributes:
        ending: String, the extension of its files.
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


def needed_packages(path):
    """Returns the packages whose layers a `.keras` file holds, beside Keras' own.

    Args:
        path: Path of a `.keras` file that can be read.
    """
    layers = runtime.all_layers(keras.models.load_model(path, compile=False))
    return sorted({type(layer).__module__.partition(".")[0] for layer in layers} - {"keras"})
