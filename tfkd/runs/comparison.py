"""Runs of several methods over several seeds, with one teacher and one schedule for all."""

import copy
import pathlib
import re

from tfkd.config import default_config, of_teacher
from tfkd.errors import UsageError
from tfkd.methods import ALONE, method_variant, needs_teacher
from tfkd.runs import execute, results, work_directory


def compare(config, workdir, methods, seeds, command=None, students=()):
    """Trains a teacher once and each student by each method with each seed; writes the table.

    Args:
        config: `ConfigDict` of a run. What it says of its method holds for that method; the
            others have their defaults.
        workdir: Path of the directory of the comparison.
        methods: List of methods, as in configs.
        seeds: Integer, the number of seeds.
        command: String, the command that was run, for the table.
        students: List of models in place of the config's student, as `tfkd.models.named` takes
            them; all else that the config says holds for each of them.

    Returns:
        The rows of the table, a list of dictionaries. Accuracies are those of the test set, with
        the standard deviation over the seeds (that of a sample).

    Raises:
        UsageError: If a method or student is named twice or wrong, or something in the config is
            wrong.
    """
    workdir = pathlib.Path(workdir)
    configs = _of_students(config, students)
    variants = _variants(config, methods)
    # Directories tell students apart where there are several.
    named = {one.student.model: one.student.model if len(configs) > 1 else None for one in configs}
    if not all(
        (workdir / folder_of(method, config.seed, name)).exists()
        for method in variants
        for name in named.values()
    ):
        # A mistake in the last method shows before the first one is trained.
        for one in configs:
            execute.check_methods(one, variants.values(), workdir)
    rows, histories = [], {}
    teacher = config.teacher.path
    if not teacher and any(map(needs_teacher, variants.values())):
        teacher = workdir / "teacher" / "student.keras"
        summary = _run(of_teacher(config), teacher.parent, command)
        rows += results.table_rows("teacher", config, [summary])
    for one in configs:
        name = named[one.student.model]
        for method, variant in variants.items():
            label, summaries = f"{name}, {method}" if name else method, []
            for seed in range(config.seed, config.seed + seeds):
                run = copy.deepcopy(one)
                run.method, run.seed, run.teacher.path = variant, seed, str(teacher)
                folder = workdir / folder_of(method, seed, name)
                summaries.append(_run(run, folder, command))
                histories.setdefault(label, []).append(work_directory.history(folder))
            rows += results.table_rows(method, one, summaries)
    title = f"{', '.join(one.student.model for one in configs)} on {config.data.name}"
    results.write(workdir, title, rows, histories, command)
    return rows


def _of_students(config, students):
    """Returns the configs of a comparison's students; without any, of the config's own."""
    if len(set(students)) < len(students):
        raise UsageError(f"--students names one twice: {','.join(students)}.")
    configs = []
    for student in students or [config.student.model]:
        one = copy.deepcopy(config)
        if student != config.student.model:
            own = default_config(ALONE, config.teacher.model, student).student
            own.head_epochs = config.student.head_epochs
            with one.unlocked():
                one.student = own
        configs.append(one)
    return configs


def _variants(config, methods):
    """Returns `{method: what describes it in a config}`."""
    if not all(methods) or not methods:
        raise UsageError("--methods names none: for example --methods=alone,kd.")
    variants = {method: method_variant(config, method) for method in methods}
    if len(variants) < len(methods):
        raise UsageError(f"--methods names one twice: {','.join(methods)}.")
    return variants


def folder_of(method, seed, student=None):
    """Returns the name of the directory of a run, within that of the comparison.

    Args:
        method: String.
        seed: Integer.
        student: String, the student's model where the comparison has several; None otherwise.
    """
    of_student = "" if student is None else re.sub(r"[^\w.]+", "-", student) + "-"
    return f"{of_student}{method.replace(':', '-')}-seed{seed}"


def _run(config, workdir, command):
    print(f"== {workdir}", flush=True)
    return execute.run(config, workdir, command=command)
