"""Compares methods over several seeds, with one teacher and one schedule for all.

    python -m tfkd.compare --config=configs/digits.py --methods=alone,kd --workdir=runs/digits

Every single run is a work directory of its own, so an interrupted comparison resumes, and a
comparison of more methods or seeds reuses what is there. Writes `table.md`, `table.json` and
`curves.png` of the methods named, with the mean and the standard deviation over the seeds.
"""

import copy
import json
import pathlib

from absl import flags

from tfkd import command_line, files, plots
from tfkd.errors import UsageError
from tfkd.methods import ALONE, method_config, method_variant, needs_teacher, split_at_commas
from tfkd.runs import execute, results, work_directory

flags.adopt_module_key_flags(command_line)
flags.DEFINE_string(
    "methods",
    f"{ALONE},kd",
    "Methods, separated by commas: alone, kd, kd+at, ackd:attention=logit.",
)
flags.DEFINE_integer("seeds", 3, "How many seeds, from that of the config on.", 1)


def compare(config, workdir, methods, seeds, data_dir=None, command=None):
    """Trains a teacher once and the student by each method with each seed.

    Args:
        config: `ConfigDict` of a run. What it says of its method holds for that method; the
            others have their defaults.
        workdir: Path of the directory of the comparison.
        methods: List of methods, as in configs.
        seeds: Integer, the number of seeds.
        data_dir: Where TFDS keeps its data sets; None for its default.
        command: String, the command that was run, for the table.

    Returns:
        The rows of the table, a list of dictionaries. Accuracies are those of the test set, with
        the standard deviation over the seeds (that of a sample).
    """
    workdir = pathlib.Path(workdir)
    if not all(methods) or not methods:
        raise UsageError("--methods names none: for example --methods=alone,kd.")
    variants = {method: method_variant(config, method) for method in methods}
    if len(variants) < len(methods):
        raise UsageError(f"--methods names one twice: {','.join(methods)}.")
    if not all((workdir / _folder(method, config.seed)).exists() for method in methods):
        # A mistake in the last method shows before the first one is trained.
        execute.check_methods(config, variants.values(), workdir, data_dir)
    runs, histories = {}, {}
    teacher = config.teacher.path
    if not teacher and any(map(needs_teacher, variants.values())):
        # A teacher is a model that is trained on its labels alone.
        trained = copy.deepcopy(config)
        trained.method = method_config(ALONE)
        trained.student.model, trained.student.arguments = config.teacher.model, {}
        trained.epochs = config.teacher.epochs
        trained.optimizer.learning_rate = config.teacher.learning_rate
        teacher = workdir / "teacher" / "student.keras"
        runs["teacher"] = [_run(trained, teacher.parent, data_dir, command)]
    for method, variant in variants.items():
        runs[method] = []
        for seed in range(config.seed, config.seed + seeds):
            one = copy.deepcopy(config)
            one.method, one.seed, one.teacher.path = variant, seed, str(teacher)
            folder = workdir / _folder(method, seed)
            runs[method].append(_run(one, folder, data_dir, command))
            histories.setdefault(method, []).append(work_directory.history(folder))

    rows = [row for name, found in runs.items() for row in results.table_rows(name, config, found)]
    table = results.table(rows)
    heading = f"# {config.student.model} on {config.data.name}\n\n"
    text = heading + (f"`{command}`\n\n" if command else "") + table
    files.write_text(workdir / "table.md", text)
    files.write_text(workdir / "table.json", json.dumps(rows, indent=2) + "\n")
    files.write(workdir / "curves.png", lambda path: plots.curves(path, histories))
    print(f"\n{table}\nWritten: table.md, table.json and curves.png in {workdir}", flush=True)
    return rows


def _folder(method, seed):
    return f"{method.replace(':', '-')}-seed{seed}"


def _run(config, workdir, data_dir, command):
    print(f"== {workdir}", flush=True)
    return execute.run(config, workdir, data_dir=data_dir, command=command)


def main(config):
    """Runs what the flags say."""
    compare(
        config,
        flags.FLAGS.workdir,
        split_at_commas(flags.FLAGS.methods),
        flags.FLAGS.seeds,
        data_dir=flags.FLAGS.data_dir,
        command=command_line.command("compare"),
    )


if __name__ == "__main__":
    command_line.main(main)
