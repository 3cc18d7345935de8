"""Measures a trained model: accuracy, size, multiply-adds, speed."""

import pathlib
import re
import sys
import time

import numpy as np
import scipy.special
import tensorflow as tf

from tfkd import models, runtime

try:
    import resource
except ImportError:
    # Windows has no such module.
    resource = None

#: On Linux, what this process uses.
_STATUS = pathlib.Path("/proc/self/status")


def accuracy(model, dataset, prepare=None, run=None):
    """Returns the accuracy of a model, in [0, 1].

    Args:
        model: `keras.Model` that outputs logits.
        dataset: Batches of `(images, labels)`, labels integers or one-hot.
        prepare: Function from a batch of images to the model's input; None for the identity.
        run: What `forward` returned of it, to trace it once for several measurements; None to trace
            it now.
    """
    predicted, labels = predictions(model, dataset, prepare, run)
    return float(np.mean(predicted.argmax(-1) == labels))


def predictions(model, dataset, prepare=None, run=None):
    """Returns logits and labels for all images of a data set.

    Args:
        model: `keras.Model` that outputs logits.
        dataset: Batches of `(images, labels)`, labels integers or one-hot.
        prepare: Function from a batch of images to the model's input; None for the identity.
        run: What `forward` returned of it, to trace it once for several measurements; None to trace
            it now.

    Returns:
        Arrays of logits `(images, classes)` and of integer labels `(images,)`.
    """
    run, logits, labels = run or forward(model), [], []
    for images, truth in dataset:
        images = images if prepare is None else prepare(images)
        logits.append(np.asarray(run(images), "float32"))
        truth = np.asarray(truth)
        labels.append(truth.argmax(-1) if truth.ndim == 2 else truth)
    return np.concatenate(logits), np.concatenate(labels)


def cost(model, data, path, prepare=None, run=None):
    """Returns a model's size, multiply-adds, and speed on batches of the test pipeline.

    Args:
        model: `keras.Model`.
        data: The `tfkd.data.Data` whose test pipeline gives a batch.
        path: Path of the saved model.
        prepare: Function from a batch of images to the model's input; None for the identity.
        run: What `forward` returned of it, to trace it once for several measurements; None to trace
            it now.

    Returns:
        Dictionary of `parameters`, `bytes` on disk, `images_per_second` and `multiply_adds`.
    """
    run = run or forward(model)
    images, _ = next(iter(data.test))
    images = images if prepare is None else prepare(images)
    (seconds,) = median_seconds(lambda: run(images).numpy())
    return {
        "parameters": model.count_params(),
        "bytes": path.stat().st_size,
        "images_per_second": round(len(images) / seconds),
        "multiply_adds": models.multiply_adds(model),
    }


def peak_memory():
    """Returns the most bytes that this process has used so far.

    Those of the GPUs, or where there is none those resident in the host's memory; None where the
    system does not tell.
    """
    gpus = range(len(tf.config.list_logical_devices("GPU")))
    if gpus:
        return sum(tf.config.experimental.get_memory_info(f"GPU:{gpu}")["peak"] for gpu in gpus)
    if _STATUS.exists():
        # Unlike that of `resource`, it is not inherited from the process that started this one.
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", _STATUS.read_text(encoding="utf-8"))[1])
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def median_seconds(*calls, repeats=10):
    """Returns the median duration of calls, after one warm-up call each.

    They take turns, so that other load on the machine slows all of them alike.

    Args:
        *calls: Functions without arguments that return when their work is done.
        repeats: Integer, how often each is timed.

    Returns:
        A list of floats, one for each of `calls`.
    """
    for call in calls:
        call()
    seconds = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, seconds):
            started = time.perf_counter()
            call()
            own.append(time.perf_counter() - started)
    return [float(np.median(own)) for own in seconds]


def scores(logits, labels):
    """Returns accuracies and cross-entropy of predictions.

    Args:
        logits: Array `(images, classes)`.
        labels: Integer array `(images,)`.

    Returns:
        Dictionary of `accuracy`; `top5_accuracy`, None where there are at most five classes;
        `cross_entropy`, the mean over the images; and `class_accuracy`, a list with one for each
        class, NaN for a class without images.
    """
    classes = logits.shape[-1]
    hits = logits.argmax(-1) == labels
    top5 = None
    if classes > 5:
        best = np.argpartition(logits, -5, axis=-1)[:, -5:]
        top5 = float(np.mean(np.any(best == labels[:, None], axis=-1)))
    log_probabilities = scipy.special.log_softmax(logits.astype("float64"), axis=-1)
    return {
        "accuracy": float(np.mean(hits)),
        "top5_accuracy": top5,
        "cross_entropy": -float(np.mean(log_probabilities[np.arange(len(labels)), labels])),
        "class_accuracy": [
            float(np.mean(hits[labels == one])) if np.any(labels == one) else float("nan")
            for one in range(classes)
        ],
    }


def forward(model):
    """Returns inference of a model as one compiled function of a batch.

    Args:
        model: `keras.Model`.
    """

    def run(images):
        with runtime.batch_normalization_of(model, jit_compile=runtime.jit_compile()):
            return model(images, training=False)

    return runtime.for_any_batch(run, jit_compile=runtime.jit_compile())
