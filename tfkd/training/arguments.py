"""The arguments of `fit` that describe its data."""

import math

import keras


def split_validation(x, y, arguments):
    """Splits off the validation data of `validation_split`, as Keras does: the last samples.

    So the preparation of a loss, which reads the data before Keras does, sees training data only.

    Args:
        x: As `fit` takes it.
        y: As `fit` takes it.
        arguments: Dictionary of the other arguments of `fit`.

    Returns:
        The tuple `(x, y, arguments)`, with `validation_data` in place of `validation_split`. For
        data that cannot be sliced Keras raises its own error.
    """
    split, weight = arguments.get("validation_split"), arguments.get("sample_weight")
    parts = keras.tree.flatten((x, y) if weight is None else (x, y, weight))
    if not split or arguments.get("validation_data") is not None:
        return x, y, arguments
    if not all(hasattr(part, "shape") and hasattr(part, "__getitem__") for part in parts):
        return x, y, arguments
    kept = math.floor(len(parts[0]) * (1.0 - split))
    if not 0 < kept < len(parts[0]):
        return x, y, arguments

    def first(tree):
        return keras.tree.map_structure(lambda part: part[:kept], tree)

    def last(tree):
        return keras.tree.map_structure(lambda part: part[kept:], tree)

    arguments = {name: value for name, value in arguments.items() if name != "validation_split"}
    arguments["validation_data"] = (last(x), last(y))
    if weight is not None:
        arguments["sample_weight"] = first(weight)
        arguments["validation_data"] += (last(weight),)
    return first(x), first(y), arguments
