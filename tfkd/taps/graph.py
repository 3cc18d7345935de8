"""The one flat graph of a functional model, and the names of its taps."""

import weakref

import keras
from keras import tree

# Keras 3 has no public interface to the graph of a functional model (`Model.get_layer` does not
# see nested models and operations that are no layers). tfkd uses these private names for it, all
# in this module: this class, its `_nodes_by_depth`, `_inputs_struct` and `_run_through_graph`,
# `Sequential._functional` and a tensor's `_keras_history`.
from keras.src.models.functional import Functional

from tfkd.errors import UsageError

# Operations that change the size of features or add noise, without computing new ones.
_NO_FEATURES = ("ZeroPadding2D", "Cropping2D", "Pad", "Dropout", "SpatialDropout2D")


# Operations in which the paths of a residual unit meet.
_JOINS = ("Add", "Concatenate")


#: The tap that is the output of the model, whatever the layer is called.
LOGITS = "logits"

#: The word for the outputs of all teachers of an ensemble, `teacher1`, `teacher2`, ...
TEACHERS = "teachers"


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
    """Returns the last operation of a functional model; a nested model is one operation.

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


def _zoo_taps(graph):
    """Returns the taps by the zoo's names, in order; empty for a model without them."""
    stages = [f"stage{number}" for number in range(1, len(graph.taps) + 1)]
    names = ["stem", *(name for name in stages if name in graph.taps), "pooled", LOGITS]
    return names if all(name in graph.taps for name in names) and len(names) > 3 else []


def _output_path(graph):
    for path, tensor in reversed(graph.taps.items()):
        if tensor is graph.output:
            return path
    return LOGITS


def operation_of(tensor):
    """Returns the layer or operation that makes a symbolic tensor; Keras has no public name."""
    return tensor._keras_history.operation


def _has_kernel(tensor):
    """Whether the operation that computes a tensor has a kernel, weights that mix features."""
    weights = getattr(operation_of(tensor), "weights", ())
    return any(len(weight.shape) >= 2 for weight in weights)


def _is_of_keras(layer):
    """Whether a layer is one of `keras.layers`, inside of which nothing is a tap."""
    return type(layer).__module__.startswith("keras.src.layers.")


def _is_attention(operation):
    """Whether a layer or operation is an attention, by its class's name.

    Every library has classes of its own, and all call them so.
    """
    return "Attention" in type(operation).__name__


def _attentions(operation):
    """Counts the attentions in a layer or operation, those inside of another left out."""
    if _is_attention(operation):
        return 1
    return sum(map(_attentions, getattr(operation, "_layers", ())))


def _listing(names, limit=12):
    names = list(names)
    text = ", ".join(names[:limit])
    return f"{text}, ... ({len(names)} in all; see tfkd.taps.of)" if len(names) > limit else text
