"""Runs of several methods over several seeds, with one teacher and one schedule for all."""

import copy
import pathlib

from tfkd.config import of_teacher
from tfkd.errors import UsageError
from tfkd.methods import method_variant, needs_teacher
from tfkd.runs import execute, results, work_directory


def compare(config, workdir, methods, seeds, command=None):
    """Trains a teacher once and the student by each method with each seed; writes the table.

    Args:
        config: `ConfigDict` of a run. What it says of its method holds for that method; the
            others have their defaults.
        workdir: Path of the directory of the comparison.
        methods: List of methods, as in configs.
        seeds: Integer, the number of seeds.
        command: String, the command that was run, for the table.

    Returns:
        The rows of the table, a list of dictionaries. Accuracies are those of the test set, with
        the standard deviation over the seeds (that of a sample).

    Raises:
        UsageError: If a method is named twice or wrong, or something in the config is wrong.
    """
    workdir = pathlib.Path(workdir)
    runs, histories = _run_all(config, workdir, methods, seeds, command)
    rows = [row for name, found in runs.items() for row in results.table_rows(name, config, found)]
    title = f"{config.student.model} on {config.data.name}"
    results.write(workdir, title, rows, histories, command)
    return rows


def _run_all(config, workdir, methods, seeds, command):
    """Returns `{method: summaries}`, `"teacher"` first where one was trained, and `{method: logs}`.

    Both hold lists with one item per seed.
    """
    if not all(methods) or not methods:
        raise UsageError("--methods names none: for example --methods=alone,kd.")
    variants = {method: method_variant(config, method) for method in methods}
    if len(variants) < len(methods):
        raise UsageError(f"--methods names one twice: {','.join(methods)}.")
    if not all((workdir / folder_of(method, config.seed)).exists() for method in methods):
        # A mistake in the last method shows before the first one is trained.
        execute.check_methods(config, variants.values(), workdir)
    runs, histories = {}, {}
    teacher = config.teacher.path
    if not teacher and any(map(needs_teacher, variants.values())):
        teacher = workdir / "teacher" / "student.keras"
        runs["teacher"] = [_run(of_teacher(config), teacher.parent, command)]
    for method, variant in variants.items():
        runs[method] = []
        for seed in range(config.seed, config.seed + seeds):
            one = copy.deepcopy(config)
            one.method, one.seed, one.teacher.path = variant, seed, str(teacher)
            folder = workdir / folder_of(method, seed)
            runs[method].append(_run(one, folder, command))
            histories.setdefault(method, []).append(work_directory.history(folder))
    return runs, histories


def folder_of(method, seed):
    """Returns the name of the directory of a run, within that of the comparison."""
    return f"{method.replace(':', '-')}-seed{seed}"


def _run(config, workdir, command):
    print(f"== {workdir}", flush=True)
    return execute.run(config, workdir, command=command)
