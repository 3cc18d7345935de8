"""The tuner that runs trials, and the oracles that choose what to try next."""

import copy
import gc
import json
import pathlib
import shutil

import keras_tuner
import numpy as np

from tfkd import files, models
from tfkd.errors import DivergenceError, UsageError, unknown
from tfkd.tuner.hypermodel import OBJECTIVE, STUDENT


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
    except (
        *(json.JSONDecodeError, UnicodeDecodeError, RecursionError),
        *(AttributeError, KeyError, TypeError, FileNotFoundError),
    ) as error:
        raise UsageError(
            f"{folder} holds a search that cannot be resumed ({' '.join(str(error).split())}): "
            "restore its .json files, or remove it to search again."
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
        files.remove_partial(folder)
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
                    files.write(folder / STUDENT, model.save)
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
        return models.load(path, "search again, in another folder")

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
        files.write_text(self._get_tuner_fname(), json.dumps(self.get_state()))

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
        files.write_text(self._get_oracle_fname(), json.dumps(self.get_state()))

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        files.write_text(path, json.dumps(trial.get_state()))

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
