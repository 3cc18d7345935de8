"""EpochPictures: saves the pictures of a method after every epoch."""

import pathlib

import keras
import numpy as np

from tfkd import files
from tfkd.callbacks.tensorboard import picture_writer, show_in_tensorboard


class EpochPictures(keras.callbacks.Callback):
    """Saves the pictures that a method draws of each epoch, such as those of `tfkd.ACN`.

    They are written as `{folder}/pictures/{name}-epoch007.png`, and shown by TensorBoard where it
    reads `{folder}/tensorboard`. A resumed training first draws missing pictures of its last
    epoch.

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
        self._writer = None

    def on_train_begin(self, logs=None):
        """Draws missing pictures of the last epoch, whose state is that of the model now."""
        if self.history and not self._collects:
            self._draw(len(self.history), missing=True)

    def on_epoch_end(self, epoch, logs=None):
        """Draws the pictures."""
        if self._collects:
            self.history.append(dict(logs))
        self._draw(epoch + 1)

    def on_train_end(self, logs=None):
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _draw(self, number, missing=False):
        """Draws the pictures of an epoch, counted from 1; with `missing` only those not there."""
        for name, draw in self.model.epoch_pictures(self.history, **self.examples).items():
            stem = pathlib.Path(name).stem
            path = self.folder / "pictures" / f"{stem}-epoch{number:03d}.png"
            if not (missing and path.exists()):
                files.write(path, draw)
                if self._writer is None:
                    self._writer = picture_writer(self.folder)
                show_in_tensorboard(self.folder, path, stem, number, self._writer)
