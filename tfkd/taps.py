"""Find, read and cut the features of any Keras model by name.

A *tap* is a named place in a model whose tensor can be read. In the model zoo the taps are `stem`,
`stage1` ... `stageN`, `pooled` and `logits`; elsewhere the path of a layer is one, through nested
models with slashes: `backbone/conv4_block6_out`.
"""

import functools
import weakref

import keras
from keras import tree

# The graph of a functional model has no public door in Keras 3 (`Model.get_layer` does not see
# nested models, and operations that are no layers have no name there). Everything that tfkd takes
# from inside of Keras for it is this class, its `_nodes` and its `_run_through_graph`.
from keras.src.models.functional import Functional

from tfkd.errors import UsageError

# Operations whose output has a size of its own, or noise of its own, but no features of its own.
_NO_FEATURES = ("ZeroPadding2D", "Cropping2D", "Pad", "Dropout", "SpatialDropout2D")

# Operations in which the paths of a residual unit meet.
_JOINS = ("Add", "Concatenate")

#: The tap that is the output of the model, whatever the layer is called.
LOGITS = "logits"


class Graph:
    """The one flat graph of a functional model, nested functional models inlined.

    Layers and weights are the model's own; only the connections are new, and only where models
    are nested.

    Args:
        function: A functional `keras.Model` with one output.

    Attributes:
        inputs: The model's symbolic inputs, in the structure that the model takes.
        taps: `{path: symbolic tensor}` in order of computation.
        output: Symbolic tensor of the model's output.
        edges: List of `(path of the tensor computed, [tensors it is computed from])`.
    """

    def __init__(self, function):
        self.inputs = function._inputs_struct
        self.taps = {}
        self.edges = []
        if any(_functional(operation) for operation in function.operations):
            (self.output,) = tree.flatten(self._inline(function, function.inputs, ""))
        else:
            (self.output,) = function.outputs
            for depth in sorted(function._nodes_by_depth, reverse=True):
                for node in function._nodes_by_depth[depth]:
                    if not node.is_input:
                        self._record(node.operation.name, node.input_tensors, node.outputs)

    def _record(self, path, inputs, outputs):
        if len(outputs) != 1:
            return
        # A layer that is called a second time is a second tap.
        calls = sum(1 for known in self.taps if known == path or known.startswith(path + ":"))
        path = f"{path}:{calls}" if calls else path
        self.taps[path] = outputs[0]
        self.edges.append((path, list(inputs)))

    def _inline(self, function, inputs, prefix):
        """Runs `function` symbolically on `inputs`, inside nested models too."""

        def follow(operation):
            path = prefix + operation.name
            nested = _functional(operation)

            def call(*args, **kwargs):
                if nested is not None:
                    outputs = self._inline(nested, args, f"{path}/")
                    self.taps[path] = tree.flatten(outputs)[-1]
                    return outputs
                outputs = operation(*args, **kwargs)
                tensors = [
                    x for x in tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(x)
                ]
                self._record(path, tensors, tree.flatten(outputs))
                return outputs

            return call

        return function._run_through_graph(inputs, operation_fn=follow)


def _functional(model):
    """Returns the functional model that `model` is or wraps, or None if it is subclassed."""
    if isinstance(model, keras.Sequential):
        return model._functional if model.built else None
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return None


# Inlining nested models adds nodes to their layers: once per model is enough.
_GRAPHS = weakref.WeakKeyDictionary()


def _graph(model):
    """Returns the `Graph` of a functional model; None for a subclassed one."""
    function = _functional(model)
    if function is None:
        return None
    if len(function.outputs) != 1:
        raise UsageError(
            f"Model {model.name!r} has {len(function.outputs)} outputs: tfkd needs a model with "
            "one, its logits."
        )
    if function not in _GRAPHS:
        _GRAPHS[function] = Graph(function)
    return _GRAPHS[function]


def output(model):
    """Returns the symbolic tensor of a functional model's logits; None for a subclassed one."""
    graph = _graph(model)
    return None if graph is None else graph.output


def last_operation(model):
    """Returns what computes the output of a functional model, a nested model as one operation.

    Args:
        model: A functional `keras.Model` with one output.

    Returns:
        The tuple `(inputs, operation, tensors)`: the model's symbolic inputs, its last layer or
        operation, and the symbolic tensors that this is run on.
    """
    function = _functional(model)
    (output,) = function.outputs
    nodes = [node for nodes in function._nodes_by_depth.values() for node in nodes]
    (last,) = (node for node in nodes if any(tensor is output for tensor in node.outputs))
    return function._inputs_struct, last.operation, list(last.input_tensors)


def of(model):
    """Lists the taps of a model.

    Args:
        model: A `keras.Model`.

    Returns:
        `{tap: shape}` in order of computation, shapes with `None` for the batch: the named taps
        of a zoo model (`stem`, `stage1`, ..., `pooled`, `logits`), the path of every layer of
        another functional model, and of a subclassed model every layer path (its shape is None
        until the model has run).

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
    return {path: tuple(tensor.shape) for path, tensor in graph.taps.items()}


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
    operations = [(path, tensor._keras_history.operation) for path, tensor in found.items()]
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


def _zoo_taps(graph):
    """The taps by the zoo's names, in order; empty for a model that does not use them."""
    stages = [f"stage{number}" for number in range(1, len(graph.taps) + 1)]
    names = ["stem", *(name for name in stages if name in graph.taps), "pooled", LOGITS]
    return names if all(name in graph.taps for name in names) and len(names) > 3 else []


def suggest(model):
    """Proposes taps of a functional model: where its features are complete.

    Args:
        model: A functional `keras.Model`, nested models included.

    Returns:
        `{tap: shape}`: for each resolution the last feature map through which every path from
        input to output passes, then the pooled vector and the output, where they exist.

    Raises:
        UsageError: If the model is subclassed, so that its paths cannot be followed.

    Example:
    ```python
    tfkd.taps.suggest(keras.applications.MobileNetV2(weights=None, classifier_activation=None))
    # {"block_1_expand_relu": (None, 112, 112, 96), ..., "out_relu": (None, 7, 7, 1280), ...}
    ```
    """
    graph = _graph(model)
    if graph is None:
        raise UsageError(
            f"Model {model.name!r} is subclassed, so its paths cannot be followed: name its taps "
            f"yourself; it has {_listing(_sublayers(model))}."
        )
    maps, vectors = {}, []
    order = {path: number for number, (path, _) in enumerate(graph.edges)}
    # The classifier: vectors that follow it (flattened, or cast to float32) are logits.
    classifier = max((order[p] for p in order if _has_kernel(graph.taps[p])), default=0)
    for path, tensor in _bottlenecks(graph):
        kind = type(tensor._keras_history.operation).__name__
        if tensor is graph.output or kind in _NO_FEATURES:
            continue
        if len(tensor.shape) == 4 and tensor.shape[1:3] != (1, 1):
            maps[tuple(tensor.shape[1:3])] = path
        elif len(tensor.shape) == 2 and order[path] < classifier:
            vectors.append(path)
    found, smallest = [], None
    for size in reversed(maps):
        # A size that comes back after a smaller one belongs to no stage of its own.
        if smallest is None or None in size or size[0] * size[1] > smallest:
            found.insert(0, maps[size])
            smallest = None if None in size else size[0] * size[1]
    names = found + vectors[-1:]
    suggestion = {path: tuple(graph.taps[path].shape) for path in names}
    suggestion[_output_path(graph)] = tuple(graph.output.shape)
    return suggestion


def _output_path(graph):
    for path, tensor in reversed(graph.taps.items()):
        if tensor is graph.output:
            return path
    return LOGITS


def _bottlenecks(graph):
    """Yields `(path, tensor)` of the learned features through which every path passes."""
    position = {id(tensor): 0 for tensor in tree.flatten(graph.inputs)}
    for number, (path, _) in enumerate(graph.edges, start=1):
        position[id(graph.taps[path])] = number
    reach = [0] * (len(graph.edges) + 1)
    convolved = [False] * (len(graph.edges) + 1)
    for number, (path, sources) in enumerate(graph.edges, start=1):
        known = [position[id(source)] for source in sources if id(source) in position]
        for source in known:
            reach[source] = max(reach[source], number)
        learned = _has_kernel(graph.taps[path])
        convolved[number] = learned or any(convolved[source] for source in known)
    furthest = reach[0]
    for number, (path, _) in enumerate(graph.edges, start=1):
        if furthest <= number and convolved[number]:
            yield path, graph.taps[path]
        furthest = max(furthest, reach[number])


def _has_kernel(tensor):
    """Whether the operation that makes a tensor mixes features by weights that are learned."""
    weights = getattr(tensor._keras_history.operation, "weights", ())
    return any(len(weight.shape) >= 2 for weight in weights)


def suggest_pairs(student, teacher):
    """Proposes spots for models with different numbers of stages.

    The stages are paired from the last one up, and the first stages of the model that has more
    are left out: what counts is how far a feature is from the classifier. Sizes need not agree,
    since losses bring maps to one size where they must.

    Args:
        student: A functional `keras.Model`.
        teacher: A functional `keras.Model`.

    Returns:
        `[(student tap, teacher tap), ...]`, from the first stage to the last, as the argument
        `spots` of a loss takes them.

    Raises:
        UsageError: If one of the models has no stages, or is subclassed.

    Example:
    ```python
    loss = tfkd.losses.get("at", spots=tfkd.taps.suggest_pairs(student, teacher))
    ```
    """
    stages = at_spots(student, "stages"), at_spots(teacher, "stages")
    return list(zip(*map(reversed, stages)))[::-1]


def at_spots(model, spots):
    """Returns the names of the taps that a loss means by a word.

    Args:
        model: A functional `keras.Model`.
        spots: `"stages"` (every stage, neither stem nor pooled vector), `"hint"` (the second
            stage), `"last_map"`, `"pooled"` or `"logits"`.

    Returns:
        A list of taps.

    Raises:
        UsageError: If the model has no such place.
    """
    if spots == LOGITS:
        return [LOGITS]
    graph = _graph(model)
    names = _zoo_taps(graph) if graph is not None else []
    proposed = {path: graph.taps[path].shape for path in names} if names else suggest(model)
    maps = [path for path, shape in proposed.items() if len(shape) == 4 and path != "stem"]
    pooled = [path for path, shape in proposed.items() if len(shape) == 2][:-1]
    found = {
        "stages": maps,
        "hint": maps[1:2],
        "last_map": maps[-1:],
        "pooled": pooled[-1:],
    }[spots]
    if not found:
        raise UsageError(
            f"Model {model.name!r} has no place that would serve as {spots!r}: pass pairs "
            f"[('student tap', 'teacher tap')] instead; it has {_listing(of(model))}."
        )
    return found


def boundaries(model):
    """Returns the taps between which a functional model's stages lie.

    Args:
        model: A functional `keras.Model`.

    Returns:
        A list of taps: where the stem ends, then where each stage does. Of a model that does not
        use the zoo's names, the end of its first resolution counts as the end of the stem.

    Raises:
        UsageError: If the model has no stages.

    Example:
    ```python
    tfkd.taps.boundaries(tfkd.models.create("resnet20"))  # ["stem", "stage1", "stage2", "stage3"]
    ```
    """
    graph = _graph(model)
    zoo = _zoo_taps(graph) if graph is not None else []
    return [*zoo[:1], *at_spots(model, "stages")]


def units(model, start, end):
    """Finds the residual units of a functional model between two taps.

    A unit ends where its paths join, in a sum or concatenation through which every path passes,
    and after what follows of it without weights, such as its activation.

    Args:
        model: A functional `keras.Model`.
        start: Tap at which the first unit begins.
        end: Tap at which the last unit ends.

    Returns:
        A list of taps, the ends of the units in order; `end` is the last.

    Raises:
        UsageError: If the model is subclassed, or has no residual unit there.

    Example:
    ```python
    tfkd.taps.units(tfkd.models.create("resnet20"), "stage1", "stage2")
    # ["stage2_unit1_output", "stage2_unit2_output", "stage2"]
    ```
    """
    check(model, [start, end])
    graph = _graph(model)
    order = {path: number for number, (path, _) in enumerate(graph.edges)} if graph else {}
    sources = dict(graph.edges) if graph else {}
    found, previous = [], None
    for path, tensor in _bottlenecks(graph) if graph else ():
        if not order[start] < order[path] <= order[end]:
            continue
        operation = tensor._keras_history.operation
        kind = type(operation).__name__
        if kind in _JOINS and len(sources[path]) > 1:
            found.append(path)
            previous = tensor
        elif previous is not None and [id(x) for x in sources[path]] == [id(previous)]:
            passive = not getattr(operation, "weights", ()) and "Pooling" not in kind
            previous = tensor if passive and kind not in _NO_FEATURES else None
            if previous is not None and tensor.shape == graph.taps[found[-1]].shape:
                found[-1] = path
        else:
            previous = None
    if not found:
        raise UsageError(
            f"Model {model.name!r} has no residual units between {start!r} and {end!r}: its "
            "paths join nowhere there."
        )
    # What follows the last sum in the stage belongs to its last unit.
    return [*found[:-1], end]


def before(model, tap):
    """Cuts the part of a functional model in front of the layer at a tap.

    Args:
        model: A functional `keras.Model`, nested models included.
        tap: The path of a layer.

    Returns:
        A `keras.Model` from the model's input to what the layer takes, or takes first.
    """
    graph = _graph(model)
    return keras.Model(graph.inputs, dict(graph.edges)[tap][0])


def entrance(model):
    """Finds what a model does to its inputs before its first weights that mix them.

    Args:
        model: A `keras.Model`.

    Returns:
        A callable `(inputs, training=False) -> tensor`: what reaches the first such weights. Of a
        subclassed model what its last layer that rescales or normalises inputs returns. None
        where there is neither.
    """
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    graph = _graph(model)
    if graph is not None:
        for path, _ in graph.edges:
            tensor = graph.taps[path]
            if _has_kernel(tensor) and not isinstance(tensor._keras_history.operation, kinds):
                return before(model, path)
        return None
    found = [path for path, layer in _sublayers(model).items() if isinstance(layer, kinds)]
    if not found:
        return None
    observe = extractor(model, found[-1:])
    return lambda inputs, training=False: observe(inputs, training=training)[found[-1]]


def _listing(names, limit=12):
    names = list(names)
    text = ", ".join(names[:limit])
    return f"{text}, ... ({len(names)} in all; see tfkd.taps.of)" if len(names) > limit else text


def _tensor(model, graph, tap):
    """Returns the symbolic tensor of a tap."""
    if tap in graph.taps:
        return graph.taps[tap]
    if tap == LOGITS:
        return graph.output
    raise _no_such_tap(model, tap)


def _no_such_tap(model, tap):
    return UsageError(f"Model {model.name!r} has no tap {tap!r}; it has {_listing(of(model))}.")


def check(model, taps):
    """Raises a `UsageError` that says which taps exist, unless all of `taps` do.

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
            subclassed ones by listening to their layers as they run.
        taps: Iterable of tap names; `"logits"` is always there.

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
    if graph is None or any(tap not in graph.taps for tap in taps):
        return functools.partial(_listen, model, taps)
    outputs = {tap: graph.taps[tap] for tap in taps}
    return keras.Model(graph.inputs, {**outputs, LOGITS: graph.output})


def _listen(model, taps, inputs, training=False):
    """Runs `model` once and collects what the layers at `taps` return."""
    heard = {}
    listeners = []
    for tap in taps:
        layer = _reach(model, tap)
        call = layer.call

        @functools.wraps(call)
        def listening(*args, _call=call, _tap=tap, **kwargs):
            heard[_tap] = _call(*args, **kwargs)
            return heard[_tap]

        # An instance attribute hides the method of the class until it is deleted again.
        object.__setattr__(layer, "call", listening)
        listeners.append(layer)
    try:
        heard[LOGITS] = model(inputs, training=training)
    finally:
        for layer in listeners:
            object.__delattr__(layer, "call")
    silent = [tap for tap in taps if tap not in heard]
    if silent:
        raise UsageError(
            f"Model {model.name!r} did not run {', '.join(silent)} in its forward pass, so there "
            "is nothing to read there."
        )
    return heard


def _sublayers(model):
    """`{path: layer}` of all layers inside, by attribute or layer name."""
    found = {}

    def walk(layer, prefix, seen):
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
