r"""Trains models one after the other, each taught by those before it.

    python -m tfkd.chain --config=configs/digits.py --chain=resnet20,resnet14,resnet8 \
        --workdir=runs/digits-chain [--protocol=dgkd]

The first model is trained on its labels, unless it is a trained teacher.keras; every other one by
the method of the config. Each stage is a run of tfkd.train in a directory of its own, so an
interrupted chain resumes. Writes `table.md`, `table.json` and `curves.png`. docs/chains.md is the
page.
"""

from absl import flags

from tfkd import command_line
from tfkd.methods import split_at_commas
from tfkd.runs import chains

flags.adopt_module_key_flags(command_line)
flags.DEFINE_string(
    "chain",
    "",
    "Models, separated by commas, the teacher first and the student last: "
    "resnet56,resnet32,resnet20. The first may be a trained .keras file.",
)
flags.DEFINE_string(
    "protocol",
    "takd",
    "Who teaches: takd, the model before it; dgkd, all models before it; rco, the teacher as it "
    "was at moments of its training, one after the other; eskd, the model before it, and the "
    "training of the first one is cut short.",
)
flags.DEFINE_integer("anchors", 4, "Of rco, how many moments of the teacher's training teach.")
flags.DEFINE_float("stop", 0.3, "Of eskd, the share of its epochs that the teacher is trained.")


def main(config):
    """Runs what the flags say."""
    values = flags.FLAGS
    chains.chain(
        config,
        values.workdir,
        split_at_commas(values.chain),
        values.protocol,
        values.anchors,
        values.stop,
        command=command_line.command("chain"),
    )


if __name__ == "__main__":
    command_line.main(main)
