"""A config as a hypermodel of KerasTuner."""

import pathlib
import tempfile

import keras
import keras_tuner

from tfkd.errors import UsageError
from tfkd.methods import needs_indices, needs_teacher
from tfkd.runs import assemble, fitting, work_directory
from tfkd.tuner.search_space import DEFAULT, SearchSpace

#: What a search maximises.
OBJECTIVE = "val_accuracy"


#: The student that is kept of a trial, in its folder.
STUDENT = "student.keras"


#: How many data sets stay in memory; those of a search differ by the seeds of its executions.
_DATA_SETS = 4


class HyperModel(keras_tuner.HyperModel):
    """The students that a config makes, as `keras_tuner` sees them.

    `build` returns a plain student and `fit` distils it, so that what a tuner saves and loads is
    the student alone: no teacher, no adapters. `fit` always trains from the beginning, whatever
    weights the student has: a trial is a complete run over as many epochs as it is given, with its
    whole learning-rate schedule, and gives the numbers that `tfkd.train` gives for its config.

    Every tuner of `keras_tuner` can search it, with the objective `"val_accuracy"`. Those that
    `tfkd.tuner.create` makes also give each execution a seed of its own, resume within a trial, and
    keep the student of the very epoch that the score is of.

    Args:
        config: `ConfigDict` of a run, as the files in `configs/` make it.
        teacher: Trained `keras.Model` that outputs logits; None where no method needs one.
        search: String, what is searched; see `tfkd.tuner.search_space.SearchSpace`.
        workdir: Path of a folder for the teacher's outputs where the config caches them and names
            no file of the teacher; None keeps them in memory.

    Raises:
        UsageError: If something in the config or in the search is wrong, as far as can be told
            before training. All methods and options are built for that.

    Example:
    ```python
    students = tfkd.tuner.HyperModel(config, teacher, "method.losses.kd.temperature:1..8")
    tuner = tfkd.tuner.create("random", students, "runs/search", max_trials=20)
    tuner.search()
    best = students.config(tuner.get_best_hyperparameters()[0])
    ```
    """

    def __init__(self, config, teacher=None, search=DEFAULT, workdir=None):
        super().__init__(name="tfkd")
        self.space = SearchSpace(config, search)
        self.teacher = teacher
        self.workdir = workdir
        self.seed = config.seed
        self._data = {}
        # KerasTuner's own tuners reset Keras before every trial, and with it the policy.
        self._policy = keras.config.dtype_policy()
        for one in self.space.limits():
            if self.data(one).validation is None:
                raise UsageError(
                    "A search compares validation accuracies: set --config.data.validation above 0."
                )
            if teacher is None and needs_teacher(one.method):
                raise UsageError(
                    f"Method {one.method.name!r} needs a teacher: give HyperModel a trained one."
                )
            self._distiller(one)

    def config(self, hp, execution=0):
        """Returns the config of a trial, which `tfkd.train` takes as well.

        Args:
            hp: `keras_tuner.HyperParameters`.
            execution: Integer, which of the trial's runs. The first one has the config's seed, and
                each further one the next seed.

        Returns:
            A `ConfigDict`.
        """
        config = self.space.config(*self.space.declare(hp))
        config.seed = self.seed + execution
        # Hyperband's trials have different lengths.
        config.epochs = hp.values.get("tuner/epochs", config.epochs)
        return config

    def data(self, config):
        """Returns the `tfkd.data.Data` of a config.

        Args:
            config: `ConfigDict`, as from `config()`.
        """
        views = work_directory.peer_views(config)
        key = (config.seed, config.data.to_json(), needs_indices(config), views)
        if key not in self._data:
            while len(self._data) >= _DATA_SETS:
                del self._data[next(iter(self._data))]
            self._data[key] = work_directory.load_data(config)
        return self._data[key]

    def build(self, hp):
        """Returns an untrained student.

        Args:
            hp: `keras_tuner.HyperParameters`.
        """
        keras.config.set_dtype_policy(self._policy)
        config = self.config(hp)
        return assemble.create_model(
            config.student.model, self.data(config), config.seed, config.student.arguments
        )

    def fit(self, hp, model, *, execution=0, folder=None, epochs=None, callbacks=(), **kwargs):
        """Distils a student, from the beginning.

        Args:
            hp: `keras_tuner.HyperParameters`.
            model: The student, as from `build()`. It gets the trained weights: those of the last
                epoch, or of the best one where the config says `select="best"`.
            execution: Integer, as in `config()`.
            folder: Path of a checkpoint, to begin with where there is one, and of the metrics;
                None to leave nothing.
            epochs: Integer, in place of the config's.
            callbacks: List of Keras callbacks, whose model is the student.
            **kwargs: What KerasTuner gives to all models. `initial_epoch` is disregarded: its own
                Hyperband would go on with the weights that another trial left, without the state
                of adapters and optimizers.

        Returns:
            The logs of the epoch whose weights the student has, `{name: value}`, with the
            `seconds` of training beside them.

        Raises:
            DivergenceError: If training diverges.
        """
        unknown_arguments = set(kwargs) - {"initial_epoch", "verbose"}
        if unknown_arguments:
            raise UsageError(
                f"search({min(unknown_arguments)}=...): a config says how to train; only epochs "
                "and callbacks can be given."
            )
        config = self.config(hp, execution)
        config.epochs = epochs or config.epochs
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="tfkd-trial-") as scratch:
                return self._fit(config, model, pathlib.Path(scratch), callbacks)
        return self._fit(config, model, pathlib.Path(folder), callbacks)

    def _fit(self, config, model, folder, callbacks):
        distiller = self._distiller(config)
        data = assemble.cache_teacher(config, self.data(config), distiller, self.workdir)
        show = _ShowStudent(callbacks)
        progress = fitting.fit(
            distiller,
            config,
            data,
            config.epochs,
            folder,
            config.method.preparation_epochs,
            further=[show, *callbacks, show],
        )
        epoch = -1
        if config.select == "best":
            fitting.set_weights(distiller, progress.best["weights"])
            epoch = progress.best["epoch"]
        model.set_weights(distiller.student.get_weights())
        return {**progress.history[epoch], "seconds": progress.seconds}

    def _distiller(self, config):
        teacher = self.teacher if needs_teacher(config.method) else None
        return assemble.build(config, self.data(config), teacher)


class _ShowStudent(keras.callbacks.Callback):
    """Lets other callbacks see the student where they would see the distiller.

    It stands before them, to show it, and behind them, to stop training when they stop it.
    """

    def __init__(self, others):
        super().__init__()
        self._others = list(others)

    def on_train_begin(self, logs=None):
        self.model.student.stop_training = False
        for callback in self._others:
            callback.set_model(self.model.student)

    def on_epoch_end(self, epoch, logs=None):
        if self.model.student.stop_training:
            self.model.stop_training = True
