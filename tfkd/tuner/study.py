"""One search: the teacher, the trials, and the best one trained again with held-out seeds."""

import copy
import json
import os
import pathlib
import shutil
import time

import grpc
from ml_collections import ConfigDict

from tfkd import files, runtime
from tfkd.config import check
from tfkd.errors import UsageError
from tfkd.methods import needs_teacher
from tfkd.runs import assemble, execute, guard, work_directory
from tfkd.tuner import artefacts, search_space
from tfkd.tuner.hypermodel import OBJECTIVE, HyperModel
from tfkd.tuner.search import check_kind, create

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
        command: String, the command that was run, for what is written.

    Returns:
        The `tfkd.tuner.Tuner`, after its search.

    Raises:
        UsageError: If something in the config or the search is wrong, or the work directory
            belongs to something else.
    """
    workdir = pathlib.Path(workdir)
    role = _role()
    check_kind(kind, max_trials)
    check(config)
    if runtime.workers() > 1:
        raise UsageError(
            "TF_CONFIG lists workers that train as one; a search gives whole trials to workers, "
            f"by {', '.join(_ENVIRONMENT)} (docs/tuning.md)."
        )
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
    data = work_directory.load_data(config)
    teacher = assemble.get_teacher(config, data, workdir) if with_teacher else None
    students = HyperModel(config, teacher, search, workdir)
    if role != "worker":
        files.remove_partial(workdir)
        if not (workdir / "config.json").exists():
            files.write_text(workdir / "config.json", guard.as_json(searched))
        if with_teacher:
            execute.train_teacher(config, data, teacher, workdir)
    print(f"searching {space}", flush=True)
    searching = create(
        kind, students, workdir / "search", max_trials, executions_per_trial, factor, iterations
    )
    if role == "worker":
        _work(searching)
        return searching
    try:
        _search(searching)
    finally:
        # What was found so far, too.
        best = artefacts.write(searching, searched, workdir, data, command)
    if best is None:
        raise UsageError(
            f"No trial came through ({workdir}/trials.csv): let --search try smaller learning "
            "rates and weights."
        )
    if confirm:
        # With a new best, after more trials, it is confirmed again.
        found = _confirm(searching, best, searched, confirm, workdir)
        artefacts.write(searching, searched, workdir, data, command, found)
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
            known[str(seed)] = logs[OBJECTIVE]
            files.write_text(path, json.dumps(known, indent=2) + "\n")
    # The checkpoints have served.
    shutil.rmtree(folder, ignore_errors=True)
    accuracies = [known[str(seed)] for seed in seeds.values()]
    return {"seeds": list(seeds.values()), "accuracies": accuracies}
