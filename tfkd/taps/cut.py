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
    graph = _cuttable(model)
    return _between(model, graph, start, graph.output if end is None else end)


def copies(model, start=None, number=1, taps=()):
    """Copies the part of a functional model behind a tap, with new weights in each copy.

    A layer starts as its initializer says. Of one that has a seed every copy gets another, so
    that copies differ from each other and from the model, and the same call makes the same ones.

    Args:
        model: A functional `keras.Model`, nested models included.
        start: Tap whose tensor the copies take; None for the model's input.
        number: Integer, how many.
        taps: Iterable of taps behind `start` that the copies return beside the logits.

    Returns:
        A list of `keras.Model`s named `branch2`, `branch3`, ... that return `{tap: tensor}`, as
        `extractor` does.

    Raises:
        UsageError: If the model is subclassed, a tap does not exist, something else than `start`
            is needed behind it, or a layer cannot be copied.

    Example:
    ```python
    features = tfkd.taps.segment(model, None, "stage2")(images)
    second, third = tfkd.taps.copies(model, "stage2", number=2)
    logits = second(features)["logits"]
    ```
    """
    graph = _cuttable(model)
    outputs = {tap: _tensor(model, graph, tap) for tap in (*taps, LOGITS)}
    found = []
    for position in range(number):
        part = _between(model, graph, start, outputs, name=f"branch{position + 2}")

        def copy(layer, shift=1_000_003 * (position + 1)):
            try:
                return type(layer).from_config(_reseeded(layer.get_config(), shift))
            except (NotImplementedError, TypeError, ValueError) as error:
                raise UsageError(
                    f"Layer {layer.name!r} of model {model.name!r} cannot be made again from its "
                    "own get_config(), as a copy needs: complete it, and take no lambda in it."
                ) from error

        found.append(keras.models.clone_model(part, clone_function=copy))
    return found


def _cuttable(model):
    """Returns the graph of a functional model."""
    graph = _graph(model)
    if graph is None:
        raise UsageError(
            f"Model {model.name!r} is subclassed: its features can be read (at "
            f"{_listing(_sublayers(model))}) but not cut into segments, since the connections "
            "between its layers are Python code. A functional model can be cut, for example one "
            "whose parts are the layers of this one."
        )
    return graph


def _between(model, graph, start, end, name=None):
    """Returns the model from a tap, or the input, to a tap, a tensor or a dictionary of tensors."""
    outputs = _tensor(model, graph, end) if isinstance(end, str) else end
    inputs = graph.inputs if start is None else _tensor(model, graph, start)
    try:
        return keras.Model(inputs, outputs, name=name)
    except ValueError as error:
        end = end if isinstance(end, str) else LOGITS
        raise UsageError(
            f"Model {model.name!r} cannot be cut from {start or 'its input'!r} to "
            f"{end!r}: the second needs more than the first gives. Every path must pass "
            f"through the place of a cut; tfkd.taps.suggest proposes {_listing(suggest(model))}."
        ) from error


def _reseeded(config, shift):
    """Returns the config of a layer with other seeds; those that are None stay so."""
    if isinstance(config, dict):
        return {
            # As many as the random operations take.
            key: (value + shift) % 2**32
            if key == "seed" and type(value) is int
            else _reseeded(value, shift)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_reseeded(value, shift) for value in config)
    return config
