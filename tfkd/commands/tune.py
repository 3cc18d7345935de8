"""Searches the hyperparameters of a config by KerasTuner, and writes the best as a config.

    python -m tfkd.tune --config=configs/digits.py:method=kd --tuner=bayesian --max_trials=20 \
        --executions_per_trial=3 --workdir=runs/tuned

What is searched follows from the method, or is said by --search. The teacher is trained once; the
test split is not read. The same command again resumes.
"""

import copy
import csv
import io
import json
import os
import pathlib
import shutil
import time

import grpc
import numpy as np
import tensorflow as tf
from absl import flags
from ml_collections import ConfigDict

from tfkd import command_line, distillers, files, losses, plots, runtime, tuner
from tfkd.config import NOT_OF_THE_CONFIG, check
from tfkd.errors import UsageError
from tfkd.methods import needs_teacher
from tfkd.runs import assemble, execute, guard, work_directory
from tfkd.tuner import search_space

flags.adopt_module_key_flags(command_line)
flags.DEFINE_enum("tuner", "random", list(tuner.KINDS), "How to choose what to try next.")
flags.DEFINE_string(
    "search",
    search_space.DEFAULT,
    "What is searched, keys being those of --config.KEY=: optimizer.learning_rate:log:0.01..0.2,"
    "optimizer.nesterov:True|False,method:kd|kd+at; default: what follows from the method.",
)
flags.DEFINE_integer("max_trials", None, "How many trials, 10 if not given; not for hyperband.", 1)
flags.DEFINE_integer("executions_per_trial", 1, "How many seeds to take the mean over.", 1)
flags.DEFINE_integer(
    "confirm",
    3,
    "With how many seeds that the search has not seen the best is trained again, for what it "
    "promises; 0 for none.",
    0,
)
flags.DEFINE_integer("factor", 3, "Hyperband: one of so many trials goes on to longer training.", 2)
flags.DEFINE_integer("iterations", 1, "Hyperband: how often to do all of it.", 1)

#: What KerasTuner reads where a search has a chief and workers.
_ENVIRONMENT = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def tune(
    config,
    workdir,
    kind="random",
    search=search_space.DEFAULT,
    max_trials=None,
    executions_per_trial=1,
    factor=3,
    iterations=1,
    confirm=3,
    data_dir=None,
    command=None,
):
    """Searches, trains the best again with other seeds, and writes what was found.

    The work directory then holds `best_config.json`, a config for `tfkd.train`; `trials.csv`,
    `tuner.json` and `trials.png`; `teacher.keras`; and `search/`, with the student of each trial.
    Where the environment says that this process is a worker, it only runs trials for its chief,
    who writes.

    Args:
        config: `ConfigDict` of a run.
        workdir: Path of the work directory.
        kind: String, one of `tfkd.tuner.KINDS`.
        search: String, see `tfkd.tuner.search_space.SearchSpace`.
        max_trials: Integer, see `tfkd.tuner.create`; so the next three.
        executions_per_trial: Integer.
        factor: Integer.
        iterations: Integer.
        confirm: Integer, with how many seeds that the search has not seen the best is trained
            again. The best of many scores is too high; the mean over these seeds is what is
            promised.
        data_dir: Where TFDS keeps its data sets; None for its default.
        command: String, the command that was run, for what is written.

    Returns:
        The `tfkd.tuner.Tuner`, after its search.

    Raises:
        UsageError: If something in the config or the search is wrong, or the work directory
            belongs to something else.
    """
    workdir = pathlib.Path(workdir)
    role = _role()
    tuner.check_kind(kind, max_trials)
    check(config)
    if runtime.workers() > 1:
        raise UsageError(
            "TF_CONFIG lists workers that train as one; a search gives whole trials to workers, "
            f"by {', '.join(_ENVIRONMENT)} (docs/tuning.md)."
        )
    # Each trial has a training function of its own, of which TensorFlow warns as of a mistake.
    tf.get_logger().setLevel("ERROR")
    searched = copy.deepcopy(config)
    with searched.unlocked():
        searched.tuner = ConfigDict(
            {"kind": kind, "search": search, "executions_per_trial": executions_per_trial}
        )
        if kind == "hyperband":
            searched.tuner.update({"factor": factor, "iterations": iterations})
    space = search_space.SearchSpace(config, search)
    with_teacher = any(needs_teacher(space.variant(name).method) for name in space.methods)
    guard.check_writable(workdir)
    if role == "worker":
        _wait_for(workdir / "config.json")
        if with_teacher:
            _wait_for(workdir / "teacher.keras")
    guard.check_same_config(searched, workdir)

    runtime.set_seed(config.seed)
    data = work_directory.load_data(config, data_dir)
    teacher = assemble.get_teacher(config, data, workdir) if with_teacher else None
    students = tuner.HyperModel(config, teacher, search, data_dir)
    if role != "worker":
        files.remove_partial(workdir)
        if not (workdir / "config.json").exists():
            files.write_text(workdir / "config.json", guard.as_json(searched))
        if with_teacher:
            execute.train_teacher(config, data, teacher, workdir)
    print(f"searching {space}", flush=True)
    searching = tuner.create(
        kind, students, workdir / "search", max_trials, executions_per_trial, factor, iterations
    )
    if role == "worker":
        _work(searching)
        return searching
    try:
        _search(searching)
    finally:
        # What was found so far, too.
        best = _write(searching, searched, workdir, data, command)
    if best is None:
        raise UsageError(
            f"No trial came through ({workdir}/trials.csv): let --search try smaller learning "
            "rates and weights."
        )
    if confirm:
        # With a new best, after more trials, it is confirmed anew.
        found = _confirm(searching, best, searched, confirm, workdir)
        _write(searching, searched, workdir, data, command, found)
    return searching


def _role():
    """Returns what KerasTuner's environment makes of this process; `alone` without it."""
    there = [name for name in _ENVIRONMENT if os.environ.get(name)]
    if not set(there) & set(_ENVIRONMENT[1:]):
        return "alone"
    missing = sorted(set(_ENVIRONMENT) - set(there))
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is not set, and {', '.join(there)} is: a search with a chief "
            "and workers needs all of them (docs/tuning.md)."
        )
    if not os.environ["KERASTUNER_ORACLE_PORT"].isdecimal():
        raise UsageError(
            "KERASTUNER_ORACLE_PORT must be the number of a port; it is "
            f"{os.environ['KERASTUNER_ORACLE_PORT']!r}."
        )
    # This is how KerasTuner tells them apart.
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def _wait_for(path):
    """Returns when the chief has written a file."""
    if not path.exists():
        print(f"waiting until the chief has written {path}", flush=True)
    while not path.exists():
        time.sleep(1)


def _search(searching):
    try:
        searching.search()
    except RuntimeError as error:
        if "bind" not in str(error):
            raise
        raise UsageError(
            f"KERASTUNER_ORACLE_IP={os.environ['KERASTUNER_ORACLE_IP']}, KERASTUNER_ORACLE_PORT="
            f"{os.environ['KERASTUNER_ORACLE_PORT']}: the chief cannot listen there; choose "
            "another port, or an address of this machine."
        ) from error


def _work(searching):
    try:
        searching.search()
    except grpc.RpcError as error:
        raise UsageError(
            f"The chief does not answer ({error.code().name}): start it, and then this worker "
            "again."
        ) from error


def _confirm(searching, best, searched, count, workdir):
    """Trains the best config with seeds that the search has not seen.

    An interruption costs at most an epoch: every seed is a run of its own, which resumes.

    Returns:
        `{"seeds": [...], "accuracies": [...]}`, of validation data.
    """
    students = searching.hypermodel
    folder = workdir / "confirmation" / f"trial_{best['trial']}"
    path = folder.with_suffix(".json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    trial = searching.oracle.get_best_trials()[0]
    first = searched.tuner.executions_per_trial
    seeds = {execution: searched.seed + execution for execution in range(first, first + count)}
    for execution, seed in seeds.items():
        if str(seed) not in known:
            print(f"confirming trial {best['trial']} with seed {seed}", flush=True)
            hp = trial.hyperparameters.copy()
            logs = students.fit(
                hp, students.build(hp), execution=execution, folder=folder / str(seed)
            )
            known[str(seed)] = logs[tuner.OBJECTIVE]
            files.write_text(path, json.dumps(known, indent=2) + "\n")
    # The checkpoints have served.
    shutil.rmtree(folder, ignore_errors=True)
    accuracies = [known[str(seed)] for seed in seeds.values()]
    return {"seeds": list(seeds.values()), "accuracies": accuracies}


def _write(searching, searched, workdir, data, command, confirmed=None):
    """Writes the tables, and where there is a best trial its config and the picture.

    Returns:
        The best trial's row, or None.
    """
    rows = searching.rows()
    _write_table(workdir / "trials.csv", rows)
    best = searching.oracle.get_best_trials()
    found = {"command": command, "config": json.loads(guard.as_json(searched))}
    found |= {"objective": tuner.OBJECTIVE, "data": data.sizes, "trials": rows, "best": None}
    row = next((row for row in rows if best and row["trial"] == best[0].trial_id), None)
    if row is not None and row["diverged"] == 1:
        row = None
    if row is not None:
        found["best"] = {**row, "confirmed": confirmed}
        config = searching.hypermodel.config(best[0].hyperparameters.copy())
        config.epochs = searched.epochs
        done = sum(row["status"] == "completed" for row in rows)
        promise = _promise(row, searched, confirmed)
        text = _best_config(config, f"{promise}; the best of {done} trials", command, workdir)
        files.write_text(workdir / "best_config.json", text)
        files.write(workdir / "trials.png", lambda path: _draw(path, rows, searching))
        print(
            f"\nbest of {done} trials: {row['trial']}, {promise}\n"
            f"python -m tfkd.train --config={workdir}/best_config.json --workdir=... trains it",
            flush=True,
        )
    files.write_text(workdir / "tuner.json", json.dumps(found, indent=2) + "\n")
    return row


def _write_table(path, rows):
    text = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    columns = [name for name in rows[0] if name != "values"] if rows else ["trial"]
    writer = csv.DictWriter(text, [*columns, *keys])
    writer.writeheader()
    for row in rows:
        writer.writerow({**{name: row[name] for name in columns}, **row["values"]})
    files.write_text(path, text.getvalue())


def _draw(path, rows, searching):
    done = [row for row in rows if row["score"] is not None]
    values = {"method": [row["method"] for row in done]}
    if len(searching.hypermodel.space.methods) == 1:
        values = {}
    if len({row["epochs"] for row in done}) > 1:
        values["epochs"] = [row["epochs"] for row in done]
    for key in dict.fromkeys(key for row in done for key in row["values"]):
        values[key] = [row["values"].get(key) for row in done]
    logarithmic = [
        key
        for items in searching.hypermodel.space.items.values()
        for key, item in items.items()
        if getattr(item, "logarithmic", False)
    ]
    plots.trials(path, [row["score"] for row in done], values, "validation accuracy", logarithmic)


def _promise(row, searched, confirmed):
    """Returns what the best config promises, in words."""
    executions, seed = searched.tuner.executions_per_trial, searched.seed
    seeds = [seed + execution for execution in range(executions)]
    text = _over_seeds(row["score"], row["deviation"], seeds)
    if confirmed:
        accuracies = confirmed["accuracies"]
        deviation = np.std(accuracies, ddof=min(1, len(accuracies) - 1))
        told = _over_seeds(np.mean(accuracies), deviation, confirmed["seeds"])
        text = f"{told}, which the search has not seen; in the search {text}"
    when = "within" if searched.select == "best" else "after"
    return f"validation accuracy {text}; {when} {row['epochs']} epoch{'s' * (row['epochs'] > 1)}"


def _over_seeds(mean, deviation, seeds):
    if len(seeds) == 1:
        return f"{mean:.2%} with seed {seeds[0]}"
    return f"{mean:.2%} ± {deviation:.2%} (seeds {seeds[0]} to {seeds[-1]})"


def _best_config(config, promise, command, workdir):
    """Returns a trial's config as `tfkd.config.from_json` reads it."""
    values = json.loads(guard.as_json(config, NOT_OF_THE_CONFIG))
    if needs_teacher(config.method) and (workdir / "teacher.keras").exists():
        # The one that all trials had, beside the file.
        values["teacher"] |= {"model": "", "path": "teacher.keras"}
    found = {
        "command": command,
        "promise": promise,
        "imports": _modules_of_the_user(config.method),
        "config": values,
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _modules_of_the_user(method):
    """Returns the names of the modules beside tfkd that define a method or its losses."""
    known = [losses.available()[one] for one in method.losses]
    if method.distiller is not None:
        known.append(distillers.available()[method.distiller])
    return sorted({cls.__module__ for cls in known if not cls.__module__.startswith("tfkd.")})


def main(config):
    """Runs what the flags say."""
    values = flags.FLAGS
    tune(
        config,
        values.workdir,
        values.tuner,
        values.search,
        values.max_trials,
        values.executions_per_trial,
        values.factor,
        values.iterations,
        values.confirm,
        data_dir=values.data_dir,
        command=command_line.command("tune"),
    )


if __name__ == "__main__":
    command_line.main(main)
