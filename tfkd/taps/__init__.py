"""Find, read and cut the features of any Keras model by name.

A *tap* is a named place in a model whose tensor can be read. In the model zoo the taps are `stem`,
`stage1` ... `stageN`, `pooled` and `logits`; elsewhere the path of a layer is one, through nested
models with slashes: `backbone/conv4_block6_out`.
"""

from tfkd.taps.cut import copies, segment
from tfkd.taps.find import (
    Classifier,
    Normalization,
    around_relu,
    at_spots,
    boundaries,
    classifier,
    normalization_at,
    suggest,
    suggest_pairs,
    units,
)
from tfkd.taps.graph import LOGITS, TEACHERS, Graph, last_operation, output
from tfkd.taps.read import before, check, entrance, extractor, in_order, of, of_kind, shapes

__all__ = [
    "Classifier",
    "Graph",
    "LOGITS",
    "Normalization",
    "TEACHERS",
    "around_relu",
    "at_spots",
    "before",
    "boundaries",
    "check",
    "classifier",
    "copies",
    "entrance",
    "extractor",
    "in_order",
    "last_operation",
    "normalization_at",
    "of",
    "of_kind",
    "output",
    "segment",
    "shapes",
    "suggest",
    "suggest_pairs",
    "units",
]
