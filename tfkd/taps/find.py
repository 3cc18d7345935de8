"""Finds taps: those of the zoo, those of a loss's spots, and those of any model."""

import collections
import dataclasses
import math

import keras
from keras import tree

from tfkd.errors import UsageError
from tfkd.taps.graph import (
    _JOINS,
    _NO_FEATURES,
    LOGITS,
    TEACHERS,
    _attentions,
    _graph,
    _has_kernel,
    _is_attention,
    _listing,
    _output_path,
    _zoo_taps,
    operation_of,
)
from tfkd.taps.read import _children, _sublayers, _tensor, check, extractor, of, shapes

_NORMALIZATION = keras.layers.BatchNormalization
_POOLING = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalAveragePooling1D)
#: What takes some of the tokens: the class token, or all others.
_PARTS_OF_TOKENS = ("GetItem", "Cropping1D")
#: Layers that leave features as they are in inference mode, but for their shape or dtype.
_PASSIVE = ("Activation", "Dropout", "Flatten", "Identity", "Cast")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The dense layer that makes a model's logits of its pooled vector.

    Args:
        kernel: Tensor, array or variable `(features, classes)`.
        bias: The same `(classes,)`; None where there is none.
    """

    kernel: object
    bias: object = None


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What a batch normalization multiplies by and adds, so the spread and mean of its outputs.

    Args:
        gamma: Tensor, array or variable `(channels,)`; None for ones.
        beta: The same; None for zeros.
    """

    gamma: object = None
    beta: object = None


def suggest(model):
    """Proposes taps of a functional model, at the ends of its stages.

    Of a transformer whose tokens are as many in all its blocks, these are the ends of the blocks;
    that of the last one includes the normalisation behind it. Blocks may lie in layers of Python
    code, as KerasHub's do. No proposal is a patch embedding: in front of the first attention maps
    count that have another resolution than its tokens, and more than one layer with a kernel.

    Args:
        model: A functional `keras.Model`, nested models included.

    Returns:
        `{tap: shape}`: for each resolution, or number of tokens, the last features through which
        every path from input to output passes, or for each block of a transformer; then the
        pooled vector and the output, where they exist.

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
    maps, vectors, attended = {}, [], []
    order = {path: number for number, (path, _) in enumerate(graph.edges)}
    # The classifier: vectors that follow it (flattened, or cast to float32) are logits.
    classifier = max((order[p] for p in order if _has_kernel(graph.taps[p])), default=0)
    attention = [p for p in order if _attentions(operation_of(graph.taps[p]))]
    front = order[attention[0]] if attention else len(order)
    for path, tensor in _bottlenecks(graph):
        kind = type(operation_of(tensor)).__name__
        if tensor is graph.output or kind in _NO_FEATURES:
            continue
        is_behind = order[path] >= front and kind not in _PARTS_OF_TOKENS
        if len(tensor.shape) == 2 and order[path] < classifier:
            vectors.append(path)
        elif (
            len(tensor.shape) == 4
            and _size(tensor) != (1, 1)
            or (len(tensor.shape) == 3 and is_behind)
        ):
            maps[_size(tensor)] = path
            attended += [path] if is_behind else []
    if attention:
        maps = _without_embedding(graph, maps, order, front)
    found, smallest = [], None
    for size in reversed(maps):
        # A size that comes back after a smaller one belongs to no stage of its own.
        if smallest is None or None in size or math.prod(size) > smallest:
            found.insert(0, maps[size])
            smallest = None if None in size else math.prod(size)
    suggestion = {path: tuple(graph.taps[path].shape) for path in found}
    if attended and len(found) == 1:
        suggestion = _blocks(model, graph, attended)
    suggestion |= {path: tuple(graph.taps[path].shape) for path in vectors[-1:]}
    suggestion[_output_path(graph)] = tuple(graph.output.shape)
    return suggestion


def _size(tensor):
    """The height and width of a map, or the number of tokens."""
    return tuple(tensor.shape[1:-1])


def _without_embedding(graph, maps, order, front):
    """Leaves out the maps that tokens are made of, of which the first attention is at `front`."""
    ahead = [graph.taps[path] for path in order if order[path] < front]
    kernels = collections.Counter(_size(x) for x in ahead if len(x.shape) == 4 and _has_kernel(x))
    last = [_size(x) for x in ahead if len(x.shape) == 4][-1:]
    return {
        size: path
        for size, path in maps.items()
        if order[path] >= front or (kernels[size] > 1 and size not in last)
    }


def _blocks(model, graph, features):
    """Returns `{tap: shape}` of the last of some features before each attention but the first."""
    ends, begun = {}, 0
    for path, _ in graph.edges:
        operation = operation_of(graph.taps[path])
        if path in features:
            ends |= {begun + i: part for i, part in enumerate(_inner_blocks(operation, path), 1)}
        begun += _attentions(operation)
        if path in features:
            ends[begun] = path
    inside = [path for path in ends.values() if path not in graph.taps]
    read = shapes(extractor(model, inside), model.input_shape) if inside else {}
    return {path: read.get(path) or tuple(graph.taps[path].shape) for path in ends.values()}


def _inner_blocks(layer, path):
    """Yields the paths of the layers inside of a layer of several attentions that hold one."""
    if _attentions(layer) < 2:
        return
    for name, part in _children(layer).items():
        if _attentions(part) == 1 and not _is_attention(part):
            yield f"{path}/{name}"
        yield from _inner_blocks(part, f"{path}/{name}")


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


def suggest_pairs(student, teacher):
    """Proposes spots for models with different numbers of stages.

    The stages are paired from the last one up, and the first stages of the model that has more
    are left out: the distance of a feature from the classifier counts. Of a transformer whose
    blocks all have as many tokens, blocks at equal distances are taken, the last one among them.
    Sizes may differ, since losses resize maps where needed.

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
    stages = []
    for model in (student, teacher):
        stages.append(_stages(_proposed(model)))
        if not stages[-1]:
            raise _no_place(model, "stages")
    number = min(map(len, stages))
    return list(zip(*(_spread(of_one, number) for of_one in stages)))


def _spread(stages, number):
    """Chooses a number of stages: the last ones, or of one resolution those at equal distances."""
    if _have_one_size(stages):
        return [list(stages)[(i + 1) * len(stages) // number - 1] for i in range(number)]
    return list(stages)[-number:]


def at_spots(model, spots):
    """Returns the taps of the `spots` of a loss.

    | word | places |
    | --- | --- |
    | `"stages"` | every stage, neither stem nor pooled vector; see `suggest` for transformers |
    | `"before_relu"`, `"after_relu"` | what the last ReLU of every stage takes, or returns: see `around_relu` |
    | `"hint"` | the second stage; in a transformer, whose blocks are alike, the middle one |
    | `"last_map"`, `"last_two_maps"` | the last stage, or two |
    | `"before_pooling"` | the map that global average pooling makes the pooled vector of |
    | `"pooled"` | the pooled vector |
    | `"logits"` | the output |
    | `"teachers"` | the output of every teacher of a `tfkd.models.ensemble` |
    | `"teachers_before_pooling"` | `"before_pooling"` of every teacher of one |

    Args:
        model: A functional `keras.Model`.
        spots: One of the words, or several joined by `+`, such as `"stages+pooled"`.

    Returns:
        A list of taps.

    Raises:
        UsageError: If the model has no such place.
    """  # noqa: E501
    if "+" in spots:
        return [tap for word in spots.split("+") for tap in at_spots(model, word)]
    if spots == LOGITS:
        return [LOGITS]
    if spots == TEACHERS:
        return _teachers(model)
    if spots == f"{TEACHERS}_before_pooling":
        return [f"{name}/{_pooling(model.get_layer(name))[0]}" for name in _teachers(model)]
    if spots in ("before_relu", "after_relu"):
        places = [around_relu(model, tap) for tap in at_spots(model, "stages")]
        return [place[spots == "after_relu"] for place in places]
    if spots == "before_pooling":
        return [_pooling(model)[0]]
    proposed = _proposed(model)
    stages = _stages(proposed)
    maps = list(stages)
    second = (len(maps) - 1) // 2 if _have_one_size(stages) else 1
    pooled = [path for path, shape in proposed.items() if len(shape) == 2][:-1]
    found = {
        "stages": maps,
        "hint": maps[second : second + 1],
        "last_map": maps[-1:],
        "last_two_maps": maps[-2:] if len(maps) > 1 else [],
        "pooled": pooled[-1:],
    }[spots]
    if not found:
        raise _no_place(model, spots)
    return found


def _no_place(model, spots):
    graph = _graph(model)
    if graph is not None and "teacher1" in graph.taps:
        first = at_spots(model.get_layer("teacher1"), spots)[0]
        return UsageError(
            f"Model {model.name!r} is several teachers, and each has a place that would serve as "
            f"{spots!r}: pass pairs [('student tap', 'teacher1/{first}'), ...]."
        )
    return UsageError(
        f"Model {model.name!r} has no place that would serve as {spots!r}: pass pairs "
        f"[('student tap', 'teacher tap')] instead; it has {_listing(of(model))}."
    )


def _proposed(model):
    """Returns `{tap: shape}` by the zoo's names, or else as `suggest` proposes them."""
    graph = _graph(model)
    names = _zoo_taps(graph) if graph is not None else []
    return {path: graph.taps[path].shape for path in names} if names else suggest(model)


def _stages(proposed):
    """Returns those of some proposed taps `{tap: shape}` that end stages."""
    shapes = proposed.items()
    return {path: shape for path, shape in shapes if len(shape) > 2 and path != "stem"}


def _have_one_size(stages):
    """Whether several stages `{tap: shape}` have all one resolution, or number of tokens."""
    return len(stages) > 1 and len({tuple(shape[1:-1]) for shape in stages.values()}) == 1


def _teachers(model):
    """Returns the taps `teacher1`, `teacher2`, ... of a model that is several teachers."""
    graph = _graph(model)
    found = []
    while graph is not None and f"teacher{len(found) + 1}" in graph.taps:
        found.append(f"teacher{len(found) + 1}")
    if not found:
        raise UsageError(
            f"Model {model.name!r} is a single teacher: several are a list, "
            "teacher=[first, second]."
        )
    return found


def around_relu(model, tap):
    """Finds the last ReLU of the stage that ends at a tap.

    It is the layer at the tap, or, where nothing but batch normalization lies between, the one
    that follows, as in networks whose units begin with both.

    Args:
        model: A functional `keras.Model`.
        tap: Tap at which a stage ends.

    Returns:
        The pair `(before, after)`: the tap of what that ReLU takes and of what it returns. Both
        are `tap` where there is no such ReLU.

    Raises:
        UsageError: If the tap does not exist.

    Example:
    ```python
    model = tfkd.models.create("wrn_16_1")
    tfkd.taps.around_relu(model, "stage1")  # ("stage2_unit1_norm1", "stage2_unit1_relu1")
    ```
    """
    graph = _graph(model)
    check(model, [tap])
    if graph is None or _is_inside(graph, tap):
        return tap, tap
    tensor = _tensor(model, graph, tap)
    paths = {id(graph.taps[path]): path for path, _ in graph.edges}
    sources = {id(graph.taps[path]): found for path, found in graph.edges}
    if _is_relu(tensor):
        (before,) = sources[id(tensor)]
        return paths.get(id(before), tap), tap
    while True:
        uses = [path for path, found in graph.edges if any(x is tensor for x in found)]
        if len(uses) != 1:
            return tap, tap
        before, tensor = tensor, graph.taps[uses[0]]
        if _is_relu(tensor):
            return paths.get(id(before), tap), uses[0]
        if not isinstance(operation_of(tensor), _NORMALIZATION):
            return tap, tap


def normalization_at(model, tap):
    """Finds the batch normalization whose outputs are the features at a tap.

    Where paths join in a sum there, it is that of the longest path, the residual branch.

    Args:
        model: A `keras.Model`.
        tap: Tap, such as the first of `around_relu`.

    Returns:
        A `Normalization` of the layer's own variables; None where there is none of as many
        channels, or the model is subclassed.
    """
    graph = _graph(model)
    check(model, [tap])
    if graph is None or _is_inside(graph, tap):
        return None
    tensor = _tensor(model, graph, tap)
    channels = tensor.shape[-1]
    sources = {id(graph.taps[path]): found for path, found in graph.edges}
    length = {}
    for path, found in graph.edges:
        length[id(graph.taps[path])] = 1 + max(length.get(id(source), 0) for source in found)
    while not isinstance(operation_of(tensor), _NORMALIZATION):
        kind = type(operation_of(tensor)).__name__
        if kind not in ("Add", "Identity") or id(tensor) not in sources:
            return None
        tensor = max(sources[id(tensor)], key=lambda source: length.get(id(source), 0))
    layer = operation_of(tensor)
    return Normalization(layer.gamma, layer.beta) if tensor.shape[-1] == channels else None


def _is_inside(graph, tap):
    """Whether an existing tap lies in a layer whose parts are connected by Python code."""
    return tap not in graph.taps and tap != LOGITS


def classifier(model):
    """Finds the dense layer that makes a model's logits of its pooled vector.

    Args:
        model: A functional `keras.Model` that ends with global average pooling and one dense
            layer; dropout and changes of dtype may lie between and after them.

    Returns:
        A `Classifier` of the layer's own variables.

    Raises:
        UsageError: If the model ends in another way, or is subclassed.

    Example:
    ```python
    tfkd.taps.classifier(tfkd.models.create("resnet8", 10)).kernel.shape  # (64, 10)
    ```
    """
    layer = _pooling(model)[1]
    return Classifier(layer.kernel, layer.bias)


def _pooling(model):
    """Returns the tap that a model's global average pooling takes, and the layer of its logits."""
    graph = _graph(model)
    found = "it is subclassed, so its layers cannot be followed"
    if graph is not None:
        paths = {id(graph.taps[path]): path for path, _ in graph.edges}
        sources = {id(graph.taps[path]): inputs for path, inputs in graph.edges}

        def first_active(tensor):
            while _is_passive(tensor) and len(sources.get(id(tensor), ())) == 1:
                (tensor,) = sources[id(tensor)]
            return tensor

        end = first_active(graph.output)
        last = operation_of(end)
        found = f"it ends with {last.name!r} ({type(last).__name__})"
        if isinstance(last, keras.layers.Dense):
            pooled = first_active(sources[id(end)][0])
            before = operation_of(pooled)
            found = f"its dense layer follows {before.name!r} ({type(before).__name__})"
            if isinstance(before, _POOLING):
                return paths[id(sources[id(pooled)][0])], last
    raise UsageError(
        f"Model {model.name!r} has no global average pooling followed by one dense layer, its "
        f"classifier: {found}."
    )


def _is_relu(tensor):
    operation = operation_of(tensor)
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    kind = type(operation).__name__.lower()
    return kind in ("relu", "relu6") or (kind == "activation" and activation in ("relu", "relu6"))


def _is_passive(tensor):
    operation = operation_of(tensor)
    kind = type(operation).__name__
    if kind == "Activation":
        return operation.activation.__name__ == "linear"
    return kind in _PASSIVE


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
        operation = operation_of(tensor)
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
