"""Exports a trained model with its normalisation inside, and measures what was exported.

    python -m tfkd.export --workdir=runs/digits-kd --format=tflite [--quantize=int8]

Whatever the format, what is written takes raw pixels: uint8 images `(batch, height, width,
channels)`. It is loaded again, run on the whole test set and timed, and a table shows it beside the
original. docs/export.md is the page.
"""

from tfkd.export.formats import (
    CALIBRATION_IMAGES,
    FORMATS,
    QUANTIZATIONS,
    Format,
    check_format,
    needed_packages,
)
from tfkd.export.reference import TOLERANCE
from tfkd.export.write import MEASUREMENTS, export, export_run, labels_path, table

__all__ = [
    "CALIBRATION_IMAGES",
    "FORMATS",
    "Format",
    "MEASUREMENTS",
    "QUANTIZATIONS",
    "TOLERANCE",
    "check_format",
    "export",
    "export_run",
    "labels_path",
    "needed_packages",
    "table",
]
