"""KerasTuner on tfkd's configs: what it builds, how that is trained, and what is kept of a trial.

`python -m tfkd.tune` does all of it on the command line.
"""

import copy
import gc
import json
import pathlib
import shutil
import tempfile

import keras
import keras_tuner
import numpy as np

from tfkd import checkpoint, experiment, models, work_directory
from tfkd.config import needs_indices, needs_teacher
from tfkd.errors import DivergenceError, UsageError, unknown
from tfkd.search_space import DEFAULT, SearchSpace

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
        search: String, what is searched; see `tfkd.search_space.SearchSpace`.
        data_dir: Where TFDS keeps its data sets; None for its default.

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

    def __init__(self, config, teacher=None, search=DEFAULT, data_dir=None):
        super().__init__(name="tfkd")
        self.space = SearchSpace(config, search)
        self.teacher = teacher
        self.seed = config.seed
        self._data_dir = data_dir
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
        key = (config.seed, config.data.to_json(), needs_indices(config))
        if key not in self._data:
            while len(self._data) >= _DATA_SETS:
                del self._data[next(iter(self._data))]
            self._data[key] = work_directory.load_data(config, self._data_dir)
        return self._data[key]

    def build(self, hp):
        """Returns an untrained student.

        Args:
            hp: `keras_tuner.HyperParameters`.
        """
        keras.config.set_dtype_policy(self._policy)
        config = self.config(hp)
        data = self.data(config)
        return models.create(
            config.student.model,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
            seed=config.seed,
            **config.student.arguments,
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
        show = _ShowStudent(callbacks)
        progress = experiment.fit(
            distiller,
            config,
            self.data(config),
            config.epochs,
            folder,
            config.method.preparation_epochs,
            further=[show, *callbacks, show],
        )
        epoch = -1
        if config.select == "best":
            experiment.set_weights(distiller, progress.best["weights"])
            epoch = progress.best["epoch"]
        model.set_weights(distiller.student.get_weights())
        return {**progress.history[epoch], "seconds": progress.seconds}

    def _distiller(self, config):
        teacher = self.teacher if needs_teacher(config.method) else None
        return experiment.build(config, self.data(config), teacher)


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


def create(
    kind, hypermodel, folder, max_trials=None, executions_per_trial=1, factor=3, iterations=1
):
    """Makes the tuner that searches; it resumes what it finds in its folder.

    Args:
        kind: String, one of `KINDS`.
        hypermodel: A `HyperModel`.
        folder: Path of a folder for the search alone.
        max_trials: Integer; None for 10. Not for hyperband, which has as many as `factor` and the
            config's epochs make.
        executions_per_trial: Integer, how often a trial is run. Its score is the mean.
        factor: Integer of at least 2, of hyperband: which part of the trials goes on, with so many
            times the epochs.
        iterations: Integer, of hyperband: how often to do all of it.

    Returns:
        A `Tuner`.

    Raises:
        UsageError: If there is no such kind, or the folder has no search that can be resumed.
    """
    check_kind(kind, max_trials)
    settings = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        # KerasTuner takes 0 for none.
        "seed": hypermodel.seed + 1,
    }
    trials = 10 if max_trials is None else max_trials
    if kind == "hyperband":
        epochs = hypermodel.space.config(hypermodel.space.methods[0], {}).epochs
        settings |= {"max_epochs": epochs, "factor": factor, "hyperband_iterations": iterations}
    else:
        settings["max_trials"] = trials
    if kind == "bayesian":
        # KerasTuner draws three for each dimension by chance, which for some methods is 20.
        settings["num_initial_points"] = max(3, trials // 3)
    folder = pathlib.Path(folder)
    try:
        return Tuner(
            KINDS[kind](**settings),
            hypermodel,
            directory=str(folder.parent),
            project_name=folder.name,
            executions_per_trial=executions_per_trial,
        )
    except (json.JSONDecodeError, KeyError, FileNotFoundError) as error:
        raise UsageError(
            f"{folder} holds a search that cannot be resumed ({' '.join(str(error).split())}): "
            "restore its .json files, or remove it to search anew."
        ) from error


def check_kind(kind, max_trials=None):
    """Raises a `UsageError` unless there is such a search with such a number of trials.

    Args:
        kind: String, one of `KINDS`.
        max_trials: Integer or None, as in `create`.
    """
    if kind not in KINDS:
        raise unknown("tuner", kind, KINDS)
    if kind == "hyperband" and max_trials is not None:
        raise UsageError(
            "hyperband has as many trials as --config.epochs, --factor and --iterations make: "
            "leave --max_trials out."
        )


class Tuner(keras_tuner.Tuner):
    """Runs the trials of a `HyperModel`, and keeps of each the student and the metrics.

    A trial's folder holds `student.keras`, that of its best execution; `execution_0/metrics.csv`
    and so on; and KerasTuner's own `trial.json`. While it runs there are checkpoints, from which
    the same search resumes.

    A trial that diverges counts as one at chance, so that a search which learns keeps away.

    Args:
        oracle: `keras_tuner.Oracle`.
        hypermodel: A `HyperModel`.
        **kwargs: Other arguments of `keras_tuner.Tuner`.
    """

    def run_trial(self, trial, callbacks=(), **kwargs):
        """Trains a trial's student with each of its seeds.

        Args:
            trial: `keras_tuner.engine.trial.Trial`.
            callbacks: List of Keras callbacks; each execution gets copies.
            **kwargs: Other arguments of `HyperModel.fit`.

        Returns:
            `{name: mean over the executions}`; the standard deviation of the objective over them
            is `val_accuracy_deviation`, and `diverged` the share of those that diverged.
        """
        hp = trial.hyperparameters
        folder = pathlib.Path(self.get_trial_dir(trial.trial_id))
        checkpoint.remove_partial(folder)
        results, best = [], None
        try:
            for execution in range(self.executions_per_trial):
                # Not keras.utils.clear_session(): it ends the scope of the strategy.
                gc.collect()
                model = self.hypermodel.build(hp)
                try:
                    logs = self.hypermodel.fit(
                        hp,
                        model,
                        execution=execution,
                        folder=folder / f"execution_{execution}",
                        callbacks=copy.deepcopy(list(callbacks)),
                        **kwargs,
                    )
                except DivergenceError as error:
                    print(f"trial {trial.trial_id}: {error}", flush=True)
                    results.append({OBJECTIVE: 1 / model.output_shape[-1], "diverged": 1.0})
                    continue
                results.append({**logs, "diverged": 0.0})
                if best is None or logs[OBJECTIVE] > best:
                    best = logs[OBJECTIVE]
                    checkpoint.write(folder / STUDENT, model.save)
        except UsageError as error:
            raise _Stop(str(error)) from error
        _remove_checkpoints(folder)
        scores = [logs[OBJECTIVE] for logs in results]
        shared = set.intersection(*map(set, results))
        means = {name: float(np.mean([logs[name] for logs in results])) for name in shared}
        deviation = float(np.std(scores, ddof=min(1, len(scores) - 1)))
        return {**means, f"{OBJECTIVE}_deviation": deviation}

    def load_model(self, trial):
        """Returns the student that a trial has left.

        Args:
            trial: `keras_tuner.engine.trial.Trial`.

        Raises:
            UsageError: If it has left none.
        """
        path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / STUDENT
        if not path.exists():
            raise UsageError(f"Trial {trial.trial_id} has left no student: it diverged or failed.")
        return work_directory.load_model(path, "search anew, in another folder")

    def on_search_begin(self):
        """Saves the search, so that it can be resumed even if its first trial does not end."""
        self.save()

    def _get_tuner_fname(self):
        # KerasTuner names it by the process, and then finds no search that a chief has begun when
        # one process alone goes on with it.
        name = self.tuner_id if self._is_worker() else "tuner0"
        return str(pathlib.Path(self.project_dir) / f"{name}.json")

    def save(self):
        """Saves the state of the search, each file in one piece."""
        if not self._is_worker():
            self.oracle.save()
        checkpoint.write_text(self._get_tuner_fname(), json.dumps(self.get_state()))

    def rows(self):
        """Returns what the trials tried and reached, in the order in which they began.

        Returns:
            A list of dictionaries: `trial`, `status`, `method`, `epochs`, `score` (None where
            there is none), `deviation`, `diverged`, `seconds`, and `values`, `{key: value}` of what
            is searched.
        """
        rows = []
        for trial in self.oracle.trials.values():
            hp = trial.hyperparameters
            method, values = self.hypermodel.space.declare(hp.copy())

            def mean(name, metrics=trial.metrics):
                return metrics.get_best_value(name) if metrics.exists(name) else None

            rows.append(
                {
                    "trial": trial.trial_id,
                    "status": trial.status.lower(),
                    "method": method,
                    "epochs": self.hypermodel.config(hp.copy()).epochs,
                    "score": trial.score,
                    "deviation": mean(f"{OBJECTIVE}_deviation"),
                    "diverged": mean("diverged"),
                    "seconds": mean("seconds"),
                    "values": values,
                }
            )
        return sorted(rows, key=lambda row: int(row["trial"]))


class _Stop(UsageError, keras_tuner.errors.FatalError):
    """A mistake that would stop every further trial too, so that KerasTuner ends the search."""


class _Oracle:
    """What all oracles here share: files in one piece, and the best of the longest trials."""

    def save(self):
        checkpoint.write_text(self._get_oracle_fname(), json.dumps(self.get_state()))

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        checkpoint.write_text(path, json.dumps(trial.get_state()))

    def reload(self):
        super().reload()
        # KerasTuner saves a trial that has ended while it is still among those that run.
        self._retry_queue = [
            trial_id
            for trial_id in self._retry_queue
            if self.trials[trial_id].status not in ("COMPLETED", "FAILED")
        ]

    def get_best_trials(self, num_trials=1):
        done = [trial for trial in self.trials.values() if trial.status == "COMPLETED"]

        def worth(trial):
            # A short trial of hyperband promises nothing for a run of the config's length. Of equal
            # ones the first is the best: a search that is read again has them in any order.
            epochs = trial.hyperparameters.values.get("tuner/epochs", 0)
            return epochs, trial.score, -int(trial.trial_id)

        return sorted(done, key=worth, reverse=True)[:num_trials]


class _Random(_Oracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Oracle, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_Oracle, keras_tuner.oracles.HyperbandOracle):
    pass


#: How a search chooses what to try next, `{name: class of its oracle}`.
KINDS = {"random": _Random, "bayesian": _Bayesian, "hyperband": _Hyperband}


def _remove_checkpoints(folder):
    """Removes what holds more than students: states of adapters and optimizers."""
    for path in [*folder.rglob("*.npz"), *folder.glob("execution_*/preparation_*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
