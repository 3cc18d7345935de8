"""Compares methods over several seeds, with one teacher and one schedule for all.

    python -m tfkd.compare --config=configs/digits.py --methods=alone,kd --workdir=runs/digits

Every single run is a work directory of its own, so an interrupted comparison resumes, and a
comparison of more methods or seeds reuses what is there. Writes `table.md`, `table.json` and
`curves.png` of the methods named, with the mean and the standard deviation over the seeds.
"""

from absl import flags

from tfkd import command_line
from tfkd.methods import ALONE, split_at_commas
from tfkd.runs.comparison import compare

flags.adopt_module_key_flags(command_line)
flags.DEFINE_string(
    "methods",
    f"{ALONE},kd",
    "Methods, separated by commas: alone, kd, kd+at, ackd:attention=logit.",
)
flags.DEFINE_string(
    "students",
    "",
    "Models, separated by commas, in place of the config's student: resnet8,my_models:small.",
)
flags.DEFINE_integer("seeds", 3, "How many seeds, from that of the config on.", 1)


def main(config):
    """Runs what the flags say."""
    compare(
        config,
        flags.FLAGS.workdir,
        split_at_commas(flags.FLAGS.methods),
        flags.FLAGS.seeds,
        command=command_line.command("compare"),
        students=split_at_commas(flags.FLAGS.students),
    )


if __name__ == "__main__":
    command_line.main(main)
