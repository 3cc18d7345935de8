"""Exports a trained model with its normalisation inside, and measures what was exported.

    python -m tfkd.export --workdir=runs/digits-kd --format=tflite [--quantize=int8]

Whatever the format, what is written takes raw pixels: uint8 images `(batch, height, width,
channels)`. It is loaded again, run on the whole test set and timed, and a table shows it beside the
original. docs/export.md is the page.
"""

import pathlib

from absl import flags

from tfkd import command_line
from tfkd.errors import UsageError, check_no_arguments
from tfkd.export.formats import FORMATS, needed_packages
from tfkd.export.write import export_run, labels_path, table


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)
    flags.DEFINE_string("format", None, "One of keras, saved_model, tflite, onnx.")
    flags.DEFINE_string("quantize", None, "Of tflite, one of dynamic, float16, int8.")
    flags.DEFINE_string("model", "student", "Model of the run: student, ensemble, fused, ...")
    flags.DEFINE_string("output", None, "Path to write to; one in WORKDIR/export if not given.")
    flags.DEFINE_bool("probabilities", False, "Whether to export a softmax of the logits.")


def main(rest):
    """Runs the export that the flags describe."""
    values = flags.FLAGS
    check_no_arguments(rest)
    if not values.format:
        raise UsageError(f"--format is missing: one of {', '.join(FORMATS)}.")
    original, exported = export_run(
        values.workdir,
        values.format,
        values.quantize,
        values.model,
        values.output,
        values.probabilities,
    )
    name = " ".join(filter(None, [values.format, values.quantize]))
    print(table({f"{values.model}, as trained": original, name: exported}))
    if values.format == "keras" and (packages := needed_packages(exported["path"])):
        print(f"It has layers of {', '.join(packages)}: who loads it imports that first.")
    labels = labels_path(pathlib.Path(exported["path"])).name
    print(f"Written: {exported['path']}, {labels} beside it, and export.json in {values.workdir}")


if __name__ == "__main__":
    _define_flags()
    command_line.main_without_config(main)
