"""Cuts a model at its taps."""

import keras

from tfkd.errors import UsageError
from tfkd.taps.find import suggest
from tfkd.taps.graph import LOGITS, _graph, _listing
from tfkd.taps.read import _sublayers, _tensor


def segment(model, start=None, end=None):
    """Cuts the part of a functional model between two taps.

    Args:
        model: A functional `keras.Model`, nested models included.
        start: Tap whose tensor the segment takes; None for the model's input.
        end: Tap whose tensor the segment returns; None for the logits.

    Returns:
        A `keras.Model` from the tensor at `start` to that at `end`. It shares layers and weights
        with `model`: nothing is copied.

    Raises:
        UsageError: If the model is subclassed, if a tap does not exist, or if `end` needs more
            than `start` gives (a connection bypasses `start`).

    Example:
    ```python
    middle = tfkd.taps.segment(model, "stage1", "stage2")
    tail = tfkd.taps.segment(model, "stage2")
    ```
    """
    graph = _graph(model)
    if graph is None:
        raise UsageError(
            f"Model {model.name!r} is subclassed: its features can be read (at "
            f"{_listing(_sublayers(model))}) but not cut into segments, since the connections "
            "between its layers are Python code. A functional model can be cut, for example one "
            "whose parts are the layers of this one."
        )
    outputs = graph.output if end is None else _tensor(model, graph, end)
    inputs = graph.inputs if start is None else _tensor(model, graph, start)
    try:
        return keras.Model(inputs, outputs)
    except ValueError as error:
        raise UsageError(
            f"Model {model.name!r} cannot be cut from {start or 'its input'!r} to "
            f"{end or LOGITS!r}: the second needs more than the first gives. Every path must pass "
            f"through the place of a cut; tfkd.taps.suggest proposes {_listing(suggest(model))}."
        ) from error
