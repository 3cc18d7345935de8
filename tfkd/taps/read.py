"""Lists the taps of a model, and reads its tensors there."""

import functools

import keras
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.taps.graph import (
    LOGITS,
    _graph,
    _has_kernel,
    _is_of_keras,
    _listing,
    _zoo_taps,
    operation_of,
)


def of(model):
    """Lists the taps of a model.

    Args:
        model: A `keras.Model`.

    Returns:
        `{tap: shape}` in order of computation, shapes with `None` for the batch: the named taps
        of a zoo model (`stem`, `stage1`, ..., `pooled`, `logits`), the path of every layer of
        another functional model, and of a subclassed model every layer path. Of a layer whose
        parts are connected by Python code, as the encoders of KerasHub's transformers are, the
        parts follow it; their shapes, as those in a subclassed model, are None until they run.

    Example:
    ```python
    tfkd.taps.of(tfkd.models.create("resnet20"))
    # {"stem": (None, 32, 32, 16), "stage1": (None, 32, 32, 16), ..., "logits": (None, 100)}
    ```
    """
    graph = _graph(model)
    if graph is None:
        return dict.fromkeys(_sublayers(model))
    named = {path: tuple(graph.taps[path].shape) for path in _zoo_taps(graph)}
    if named:
        return named
    found = {}
    for path, tensor in graph.taps.items():
        found[path] = tuple(tensor.shape)
        found |= dict.fromkeys(_parts(model, path, tensor))
    return found


def _parts(model, path, tensor):
    """Returns the paths `{path: layer}` in the layer that computes the tensor of a tap."""
    layer = _reach(model, path)
    # Of a nested model or a second call the path is not that of the layer.
    if layer is None or layer is not operation_of(tensor):
        return {}
    return {f"{path}/{name}": part for name, part in _sublayers(layer).items()}


def of_kind(model, kind):
    """Finds the layers of a kind in a functional model, nested models included.

    Args:
        model: A `keras.Model`.
        kind: A layer class.

    Returns:
        `[(tap, layer), ...]` in order of computation; empty for a subclassed model.
    """
    graph = _graph(model)
    found = {} if graph is None else graph.taps
    operations = [(path, operation_of(tensor)) for path, tensor in found.items()]
    return [(path, layer) for path, layer in operations if isinstance(layer, kind)]


def in_order(model, taps):
    """Sorts taps of a functional model by the order in which they are computed.

    Args:
        model: A functional `keras.Model`.
        taps: Iterable of tap names.

    Returns:
        A list of the different names.

    Raises:
        UsageError: If a tap does not exist; the message says which do.
    """
    graph = _graph(model)
    order = {id(tensor): number for number, tensor in enumerate(graph.taps.values())}
    return sorted(set(taps), key=lambda tap: order[id(_tensor(model, graph, tap))])


def before(model, tap):
    """Cuts the part of a functional model in front of the layer at a tap.

    Args:
        model: A functional `keras.Model`, nested models included.
        tap: The path of a layer.

    Returns:
        A `keras.Model` from the model's input to the layer's (first) input.
    """
    graph = _graph(model)
    return keras.Model(graph.inputs, dict(graph.edges)[tap][0])


def entrance(model):
    """Finds the preprocessing of a model: the part before its first kernel.

    Args:
        model: A `keras.Model`.

    Returns:
        A callable `(inputs, training=False) -> tensor`: the inputs of the first kernel, or for a
        subclassed model the outputs of its last layer that rescales or normalises. None where
        there is neither.
    """
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    graph = _graph(model)
    if graph is not None:
        for path, _ in graph.edges:
            tensor = graph.taps[path]
            if _has_kernel(tensor) and not isinstance(operation_of(tensor), kinds):
                return before(model, path)
        return None
    found = [path for path, layer in _sublayers(model).items() if isinstance(layer, kinds)]
    if not found:
        return None
    observe = extractor(model, found[-1:])
    return lambda inputs, training=False: observe(inputs, training=training)[found[-1]]


def _tensor(model, graph, tap):
    """Returns the symbolic tensor of a tap."""
    if tap in graph.taps:
        return graph.taps[tap]
    if tap == LOGITS:
        return graph.output
    if _reach(model, tap) is not None:
        raise UsageError(
            f"Tap {tap!r} of model {model.name!r} lies in a layer whose parts are connected by "
            "Python code: it can be read, but not cut or followed."
        )
    raise _no_such_tap(model, tap)


def _no_such_tap(model, tap):
    return UsageError(f"Model {model.name!r} has no tap {tap!r}; it has {_listing(of(model))}.")


def check(model, taps):
    """Raises a `UsageError` that lists the existing taps, unless all of `taps` exist.

    Args:
        model: A `keras.Model`.
        taps: Iterable of tap names.
    """
    graph = _graph(model)
    for tap in taps:
        if graph is not None and not (tap in graph.taps or _reach(model, tap)):
            _tensor(model, graph, tap)
        elif graph is None and tap != LOGITS and _reach(model, tap) is None:
            raise _no_such_tap(model, tap)


def extractor(model, taps=()):
    """Makes a function that returns all requested taps and the logits from one forward pass.

    Args:
        model: A `keras.Model`. Functional and nested models are read along their graph,
            subclassed ones by intercepting the calls of their layers.
        taps: Iterable of tap names; `"logits"` is always included.

    Returns:
        A callable `(inputs, training=False) -> {tap: tensor}` that shares the model's layers and
        weights.

    Raises:
        UsageError: If a tap does not exist; the message says which do.

    Example:
    ```python
    observe = tfkd.taps.extractor(model, ["stage2", "pooled"])
    features = observe(images)["stage2"]
    ```
    """
    taps = [tap for tap in dict.fromkeys(taps) if tap != LOGITS]
    check(model, taps)
    graph = _graph(model)
    if graph is None or _shares_names(graph):
        return functools.partial(_listen, model, model, taps)
    outputs = {tap: graph.taps[tap] for tap in taps if tap in graph.taps}
    run = keras.Model(graph.inputs, {**outputs, LOGITS: graph.output})
    inside = [tap for tap in taps if tap not in outputs]
    return functools.partial(_listen, model, run, inside) if inside else run


def _shares_names(graph):
    """Whether layers of nested models have one name, which Keras refuses in a flat model."""
    operations = {id(one): one for one in map(operation_of, graph.taps.values())}
    return len({one.name for one in operations.values()}) < len(operations)


def shapes(observe, input_shape, prepare=None):
    """Returns the shapes of the tensors that an extractor reads.

    Args:
        observe: What `extractor` returned.
        input_shape: Shape of the inputs, the batch included.
        prepare: Function that makes the model's inputs of inputs of this shape; None for none.

    Returns:
        `{tap: shape}`.
    """
    outputs = getattr(observe, "output", None)
    if outputs is None or any(None in tensor.shape[1:] for tensor in outputs.values()):
        # The shapes of a subclassed model, or of one for any input size, are known when it runs.
        step = tf.function(
            lambda x: observe(prepare(x) if prepare else x, training=False), autograph=False
        )
        inputs = tf.TensorSpec(input_shape, keras.config.floatx())
        outputs = step.get_concrete_function(inputs).structured_outputs
    return {tap: tuple(tensor.shape) for tap, tensor in outputs.items()}


def _listen(model, run, taps, inputs, training=False):
    """Runs `run`, of the layers of `model`, once and collects what those at `taps` return."""
    heard = {}
    listeners = []
    for tap in taps:
        layer = _reach(model, tap)
        call = layer.call

        @functools.wraps(call)
        def listening(*args, _call=call, _tap=tap, **kwargs):
            heard[_tap] = _call(*args, **kwargs)
            return heard[_tap]

        # An instance attribute hides the method of the class until it is deleted.
        object.__setattr__(layer, "call", listening)
        listeners.append(layer)
    try:
        outputs = run(inputs, training=training)
    finally:
        for layer in listeners:
            object.__delattr__(layer, "call")
    silent = [tap for tap in taps if tap not in heard]
    if silent:
        raise UsageError(
            f"Model {model.name!r} did not run {', '.join(silent)} in its forward pass, so there "
            "is nothing to read there."
        )
    return heard | (outputs if isinstance(outputs, dict) else {LOGITS: outputs})


def _sublayers(model):
    """`{path: layer}` of all layers inside, by attribute or layer name."""
    found = {}

    def walk(layer, prefix, seen):
        if _is_of_keras(layer):
            return
        for name, child in _children(layer).items():
            if id(child) not in seen:
                found[prefix + name] = child
                walk(child, f"{prefix}{name}/", seen | {id(child)})

    walk(model, "", {id(model)})
    return found


def _children(layer):
    """Direct sublayers by name: the attribute's where there is one, else the layer's own."""
    attributes = {
        id(value): name
        for name, value in vars(layer).items()
        if isinstance(value, keras.layers.Layer) and not name.startswith("_")
    }
    return {
        attributes.get(id(child), child.name): child
        for child in layer._layers
        if not isinstance(child, keras.layers.InputLayer)
    }


def _reach(model, path):
    """Returns the layer at a path, by attribute or layer names; None if there is none."""
    layer = model
    for name in path.split("/"):
        children = _children(layer)
        by_name = {child.name: child for child in children.values()}
        layer = children.get(name) or by_name.get(name)
        if layer is None:
            return None
    return layer
