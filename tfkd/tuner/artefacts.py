"""What a search writes into its work directory: tables, a picture, and the best config."""

import csv
import io
import json

import numpy as np

from tfkd import distillers, files, losses, plots
from tfkd.config import NOT_OF_THE_CONFIG
from tfkd.methods import needs_teacher
from tfkd.runs import guard
from tfkd.tuner.hypermodel import OBJECTIVE


def write(searching, searched, workdir, data, command, confirmed=None):
    """Writes the tables, and where there is a best trial its config and the picture.

    Args:
        searching: `tfkd.tuner.Tuner`, which may not be at its end.
        searched: `ConfigDict` of the search, as its `config.json` holds it.
        workdir: Path of the work directory.
        data: The `tfkd.data.Data` of the config.
        command: String, the command that was run.
        confirmed: `{"seeds": [...], "accuracies": [...]}`, of the best config with held-out seeds;
            None where it was not trained again.

    Returns:
        The best trial's row, or None.
    """
    rows = searching.rows()
    _write_table(workdir / "trials.csv", rows)
    best = searching.oracle.get_best_trials()
    found = {"command": command, "config": json.loads(guard.as_json(searched))}
    found |= {"objective": OBJECTIVE, "data": data.sizes, "trials": rows, "best": None}
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
    modules = {cls.__module__ for cls in known if not cls.__module__.startswith("tfkd.")}
    # What stands in a script or in the config file itself has no module that could be imported.
    return sorted(modules - {"__main__", "config_config"})
