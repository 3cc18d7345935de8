"""tfkd: TensorFlow/Keras Knowledge Distillation."""

import contextlib
import os

# Before TensorFlow is imported: its start-up chatter about CPU features and missing GPUs buries
# what a user should read. Who wants it sets the variable to 0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfkd.stderr import without_lines  # noqa: E402

# Its libraries also tell something as they are loaded, before they know that level.
with contextlib.ExitStack() as _loading:
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0":
        _loading.enter_context(without_lines(b"I0000 ", b"WARNING: All log messages before absl::"))
    import tensorflow  # noqa: F401

# `python -m tfkd.train` is the module train of the commands.
__path__.append(os.path.join(__path__[0], "commands"))

from tfkd import (  # noqa: E402
    callbacks,
    data,
    layers,
    losses,
    models,
    optimizers,
    plots,
    runtime,
    schedules,
    taps,
)
from tfkd.distillers import (  # noqa: E402
    ACKD,
    ACN,
    BYOT,
    DAFL,
    DFAD,
    DKS,
    IAKD,
    KDCL,
    ONE,
    PCL,
    SAKD,
    TOFD,
    Distiller,
    KnowledgeDistiller,
    MutualDistiller,
    OKDDip,
    TeacherFree,
)
from tfkd_cli import VERSION as __version__  # noqa: E402

__all__ = [
    "ACKD",
    "ACN",
    "BYOT",
    "DAFL",
    "DFAD",
    "DKS",
    "IAKD",
    "KDCL",
    "ONE",
    "PCL",
    "SAKD",
    "TOFD",
    "Distiller",
    "KnowledgeDistiller",
    "MutualDistiller",
    "OKDDip",
    "TeacherFree",
    "__version__",
    "callbacks",
    "data",
    "layers",
    "losses",
    "models",
    "optimizers",
    "plots",
    "runtime",
    "schedules",
    "taps",
]
