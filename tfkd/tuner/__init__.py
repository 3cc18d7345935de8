"""KerasTuner on tfkd's configs: what it builds, how that is trained, and what is kept of a trial.

`python -m tfkd.tune` does all of it on the command line.
"""

from tfkd.tuner.hypermodel import OBJECTIVE, STUDENT, HyperModel
from tfkd.tuner.search import KINDS, Tuner, check_kind, create

__all__ = [
    "HyperModel",
    "KINDS",
    "OBJECTIVE",
    "STUDENT",
    "Tuner",
    "check_kind",
    "create",
]
