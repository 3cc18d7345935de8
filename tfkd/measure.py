"""What a trained model is worth and what it costs: accuracy, size, work, speed."""

import time

import numpy as np
import tensorflow as tf

from tfkd import models, runtime


def _same(images):
    return images


def accuracy(model, dataset, prepare=_same):
    """Returns the accuracy of a model, in [0, 1].

    Args:
        model: `keras.Model` that outputs logits.
        dataset: Batches of `(images, labels)`, labels integers or one-hot.
        prepare: Function that makes the model's input of a batch of images.
    """
    predicted, labels = predictions(model, dataset, prepare)
    return float(np.mean(predicted.argmax(-1) == labels))


def predictions(model, dataset, prepare=_same):
    """Returns logits and labels for all images of a data set.

    Args:
        model: `keras.Model` that outputs logits.
        dataset: Batches of `(images, labels)`, labels integers or one-hot.
        prepare: Function that makes the model's input of a batch of images.

    Returns:
        Arrays of logits `(images, classes)` and of integer labels `(images,)`.
    """
    forward, logits, labels = _forward(model), [], []
    for images, truth in dataset:
        logits.append(np.asarray(forward(prepare(images)), "float32"))
        truth = np.asarray(truth)
        labels.append(truth.argmax(-1) if truth.ndim == 2 else truth)
    return np.concatenate(logits), np.concatenate(labels)


def cost(model, data, path, prepare=_same):
    """Returns what a model costs: size, work, and its speed on batches of the test pipeline.

    Args:
        model: `keras.Model`.
        data: The `tfkd.data.Data` whose test pipeline gives a batch.
        path: Path of the saved model.
        prepare: Function that makes the model's input of a batch of images.

    Returns:
        Dictionary of `parameters`, `bytes` on disk, `images_per_second` and `multiply_adds`.
    """
    forward = _forward(model)
    images = prepare(next(iter(data.test))[0])
    forward(images)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        forward(images).numpy()
        seconds.append(time.perf_counter() - started)
    return {
        "parameters": model.count_params(),
        "bytes": path.stat().st_size,
        "images_per_second": round(len(images) / float(np.median(seconds))),
        "multiply_adds": models.multiply_adds(model),
    }


def _forward(model):
    """Returns inference as one compiled function."""
    return tf.function(
        lambda images: model(images, training=False),
        jit_compile=runtime.jit_compile(),
        reduce_retracing=True,
    )
