"""Compares methods over several seeds, with one teacher and one schedule for all.

    python -m tfkd.compare --config=configs/digits.py --methods=alone,kd --workdir=runs/digits

Every single run is a work directory of its own, so an interrupted comparison resumes, and a
comparison of more methods or seeds reuses what is there. Writes `table.md`, `table.json` and
`curves.png` of the methods named, with the mean and the standard deviation over the seeds.
"""

import json
import pathlib

from absl import flags

from tfkd import command_line, files, plots
from tfkd.methods import ALONE, split_at_commas
from tfkd.runs import comparison, results

flags.adopt_module_key_flags(command_line)
flags.DEFINE_string(
    "methods",
    f"{ALONE},kd",
    "Methods, separated by commas: alone, kd, kd+at, ackd:attention=logit.",
)
flags.DEFINE_integer("seeds", 3, "How many seeds, from that of the config on.", 1)


def compare(config, workdir, methods, seeds, command=None):
    """Trains a teacher once and the student by each method with each seed.

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
    """
    workdir = pathlib.Path(workdir)
    runs, histories = comparison.run_all(config, workdir, methods, seeds, command)
    rows = [row for name, found in runs.items() for row in results.table_rows(name, config, found)]
    table = results.table(rows)
    heading = f"# {config.student.model} on {config.data.name}\n\n"
    text = heading + (f"`{command}`\n\n" if command else "") + table
    files.write_text(workdir / "table.md", text)
    files.write_text(workdir / "table.json", json.dumps(rows, indent=2) + "\n")
    files.write(workdir / "curves.png", lambda path: plots.curves(path, histories))
    print(f"\n{table}\nWritten: table.md, table.json and curves.png in {workdir}", flush=True)
    return rows


def main(config):
    """Runs what the flags say."""
    compare(
        config,
        flags.FLAGS.workdir,
        split_at_commas(flags.FLAGS.methods),
        flags.FLAGS.seeds,
        command=command_line.command("compare"),
    )


if __name__ == "__main__":
    command_line.main(main)
