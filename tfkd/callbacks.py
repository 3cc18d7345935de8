"""Keras callbacks beside those that every distiller brings along."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfkd import checkpoint


class EpochPictures(keras.callbacks.Callback):
    """Saves the pictures that a method draws of each epoch, such as those of `tfkd.ACN`.

    They are written as `{folder}/pictures/{name}-epoch007.png`, and shown by TensorBoard where it
    reads `{folder}/tensorboard`. Training that resumes first draws those of the last epoch which
    an interruption has left out.

    Args:
        folder: Path.
        inputs: A few images, as the student takes them.
        labels: Their labels, integers or one-hot.
        class_names: List of strings.
        history: List to which another callback appends the logs of each epoch; None for those of
            this `fit`.

    Example:
    ```python
    images, labels = next(iter(data.validation))
    pictures = tfkd.callbacks.EpochPictures("runs/acn", images[:8], labels[:8], data.class_names)
    distiller.fit(data.train, epochs=20, callbacks=[pictures])
    ```
    """

    def __init__(self, folder, inputs, labels, class_names, history=None):
        super().__init__()
        self.folder = pathlib.Path(folder)
        labels = np.array(labels)
        self.examples = {
            "inputs": np.array(inputs),
            "labels": labels.argmax(-1) if labels.ndim == 2 else labels,
            "class_names": list(class_names),
        }
        self.history = [] if history is None else history
        self._collects = history is None

    def on_train_begin(self, logs=None):
        """Draws what is missing of the last epoch, whose state training begins with."""
        if self.history and not self._collects:
            self._draw(len(self.history), missing=True)

    def on_epoch_end(self, epoch, logs=None):
        """Draws the pictures."""
        if self._collects:
            self.history.append(dict(logs))
        self._draw(epoch + 1)

    def _draw(self, number, missing=False):
        """Draws the pictures of an epoch, counted from 1; or those that are missing."""
        for name, draw in self.model.epoch_pictures(self.history, **self.examples).items():
            stem = pathlib.Path(name).stem
            path = self.folder / "pictures" / f"{stem}-epoch{number:03d}.png"
            if not (missing and path.exists()):
                checkpoint.write(path, draw)
                show_in_tensorboard(self.folder, path, stem, number)


def show_in_tensorboard(folder, path, name, epoch):
    """Adds a picture to the events that TensorBoard reads.

    Args:
        folder: Path of the work directory.
        path: Path of the PNG.
        name: String, its title.
        epoch: Integer, counted from 1.
    """
    image = tf.io.decode_png(tf.io.read_file(str(path)), channels=3)
    with tf.summary.create_file_writer(str(folder / "tensorboard" / "pictures")).as_default():
        tf.summary.image(name, image[None], step=epoch)
