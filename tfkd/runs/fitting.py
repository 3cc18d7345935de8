"""Trains from the last checkpoint, and keeps checkpoint and metrics up to date."""

import csv
import io
import time

import keras

from tfkd import callbacks, files
from tfkd.distillers import Distiller
from tfkd.distillers.preparation import Preparation
from tfkd.errors import DivergenceError
from tfkd.methods import needs_indices
from tfkd.runs import checkpoint
from tfkd.runs.console import EpochLines, say
from tfkd.runs.guard import digest

# Suffix of logs that are times. They differ from run to run, so they are in the summary and not in
# metrics.csv, which a resumed run repeats to the last digit.
SECONDS = "_seconds"

# The steps of a profile: the first ones trace and fill caches.
PROFILED = (3, 7)


def weights_of(distiller):
    """Returns the weights of student and learners as one list of arrays."""
    return [variable.numpy() for variable in _variables(distiller)]


def set_weights(distiller, arrays):
    """Assigns the arrays that `weights_of` returned."""
    for variable, array in zip(_variables(distiller), arrays):
        variable.assign(array)


def _variables(distiller):
    """Returns the variables of student and learners, which may share some, each once."""
    trained = [distiller.student, *distiller.learners().values()]
    return list({id(v): v for model in trained for v in model.weights}.values())


def fit(
    distiller,
    config,
    data,
    epochs,
    folder,
    preparation_epochs=None,
    measuring=(),
    further=(),
    keep_every=None,
):
    """Trains in `folder`, from its checkpoint where there is one.

    Args:
        distiller: A compiled `tfkd.Distiller`.
        config: `ConfigDict` of the run.
        data: A `tfkd.data.Data`.
        epochs: Integer.
        folder: Path.
        preparation_epochs: Integer, the epochs of preparation of losses that need it; None for
            the default of each.
        measuring: List of callbacks that add to the logs of the epochs.
        further: Callbacks in addition to those for the checkpoint, the metrics and the pictures;
            not for the preparations.
        keep_every: Integer, after how many epochs each the student of that moment is saved at
            `kept`; None for never.

    Returns:
        A `Progress`, with the `history` of logs, the `best` epoch and weights of the student,
        and the `seconds` that training took, those before an interruption included.
    """
    # Which run and which of its stages a checkpoint belongs to; models alone can be alike.
    run = f"{type(distiller).__name__} of config {digest(config)}"
    progress = Progress(data, folder, run, keep_every, config.patience)
    restored = progress.restore(distiller)
    if restored is not None:
        if restored.warning:
            say(f"warning: {restored.warning}")
        say(f"resuming after epoch {len(progress.history)} of {epochs} ({restored.path})")
    for preparation in distiller.preparations():
        say(f"preparing loss {preparation.prepared_loss.name}")
        part = preparation_epochs or preparation.epochs
        fit(preparation, config, data, part, folder / preparation.name)
        preparation.finish()
    pictures = epoch_pictures(distiller, data, folder, progress.history)
    if len(progress.history) == epochs or progress.is_stopped():
        # The interruption may have come between the last checkpoint and its pictures.
        for callback in pictures:
            callback.set_model(distiller)
            callback.on_train_begin()
            callback.on_train_end()
        return progress
    try:
        distiller.fit(
            data.train,
            validation_data=None if isinstance(distiller, Preparation) else data.validation,
            epochs=epochs,
            initial_epoch=len(progress.history),
            callbacks=[
                *measuring,
                progress,
                EpochLines(progress, data),
                *pictures,
                keras.callbacks.TensorBoard(
                    folder / "tensorboard", profile_batch=PROFILED if config.profile else 0
                ),
                *further,
            ],
            verbose=0,
        )
    except DivergenceError as error:
        raise DivergenceError(f"{error} {progress.last_good()}") from error
    if progress.is_stopped():
        say(
            f"stopped after epoch {len(progress.history)} of {epochs}: no better validation "
            f"accuracy for {config.patience}"
        )
    return progress


def kept(folder, epoch):
    """Returns the path of the student as it was after an epoch, counted from 1."""
    return folder / f"student-epoch{epoch:03d}.keras"


def diagnostics_callback(config, data):
    """Returns the callback that looks at student and teacher after every epoch."""
    gradient_data = data.train if needs_indices(config) else None
    images = data.with_teacher_images("validation")
    return callbacks.Diagnostics(images, gradient_data=gradient_data)


def epoch_pictures(distiller, data, folder, history):
    """Returns a list with the callback that draws the method's pictures of each epoch, or none."""
    if type(distiller).epoch_pictures is Distiller.epoch_pictures:
        return []
    images, labels = next(iter((data.validation or data.train).take(1)))[:2]
    labels = labels["label"] if isinstance(labels, dict) else labels
    return [callbacks.EpochPictures(folder, images[:8], labels[:8], data.class_names, history)]


class Progress(keras.callbacks.Callback):
    """Keeps the checkpoint, the metrics and the best weights of a run up to date."""

    def __init__(self, data, folder, run, keep_every=None, patience=None):
        super().__init__()
        self.patience = patience
        self.data = data
        self.folder = folder
        self.run = run
        self.keep_every = keep_every
        self.path = folder / "checkpoint.npz"
        self.history = []
        self.best = None
        # The last checkpoint that is known to be good, and the epochs that it holds.
        self.saved = None
        self.seconds = 0.0
        # Training images per second, of each epoch of this process.
        self.speeds = []
        self._epoch_began = self._trained = None

    def restore(self, distiller):
        """Restores the last good checkpoint; returns it, or None where there is none."""
        restored = checkpoint.restore(self.path, distiller, self.run)
        if restored is not None:
            state, extra = restored.state, restored.extra
            self.history, self.seconds = state["history"], state["seconds"]
            weights = [extra[f"best/{i}"] for i in range(len(extra))]
            self.best = {"epoch": state["best_epoch"], "weights": weights}
            self.saved = (restored.path, len(self.history))
        return restored

    def is_stopped(self):
        """Whether the last epochs, as many as the patience, were no better in validation.

        It follows from the history, so a resumed run stops where an uninterrupted one does.
        """
        scores = [logs["val_accuracy"] for logs in self.history if "val_accuracy" in logs]
        if self.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.patience

    def last_good(self):
        """Returns a sentence that says where the last checkpoint is."""
        if self.saved is None:
            return f"{self.folder} has no checkpoint yet."
        path, epochs = self.saved
        return f"The last good checkpoint is {path}, of epoch {epochs}."

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the pipeline to the epoch and starts the clock."""
        self.data.start_epoch(epoch)
        self._epoch_began, self._trained = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        """Notes the end of the epoch's training."""
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Saves the checkpoint and the metrics."""
        now = time.perf_counter()
        self.seconds += now - self._epoch_began
        images = self.data.steps_per_epoch * self.data.batch_size
        self.speeds.append(images / ((self._trained or now) - self._epoch_began))
        # Read from the device once; check, best weights and file share the arrays.
        pairs = checkpoint.read(self.model)
        variable = checkpoint.not_finite(self.model, pairs)
        if variable is not None:
            # No later step would mend it.
            raise DivergenceError(
                f"Training diverged: {variable} has NaN or infinite values after the last step of "
                f"epoch {epoch + 1}. A smaller learning rate may help."
            )
        self.history.append({name: float(value) for name, value in logs.items()})
        # Later epochs win a tie: they have seen more.
        score = self.history[-1].get("val_accuracy", 0.0)
        if self.best is None or score >= self.history[self.best["epoch"]].get("val_accuracy", 0.0):
            arrays = {id(variable): array for variable, array in pairs}
            weights = [arrays[id(variable)] for variable in _variables(self.model)]
            self.best = {"epoch": epoch, "weights": weights}
        if self.keep_every and (epoch + 1) % self.keep_every == 0:
            # Before the checkpoint, after which the epoch is not repeated.
            files.write(kept(self.folder, epoch + 1), self.model.student.save)
        checkpoint.save(
            self.path,
            self.model,
            {
                "history": self.history,
                "best_epoch": self.best["epoch"],
                "seconds": self.seconds,
            },
            {f"best/{i}": array for i, array in enumerate(self.best["weights"])},
            self.run,
            pairs,
        )
        self.saved = (self.path, len(self.history))
        if self.is_stopped():
            self.model.stop_training = True
        # From the history rather than appended to: a run that was killed leaves no double rows.
        text = io.StringIO()
        rows = [{"epoch": i + 1, **logs} for i, logs in enumerate(self.history)]
        # Values that are not measured in every epoch have empty cells in the others.
        columns = dict.fromkeys(name for row in rows for name in row)
        columns = [name for name in columns if not name.endswith(SECONDS)]
        writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(self.folder / "metrics.csv", text.getvalue())
