"""Reads the graph of an ONNX file: nodes, stored arrays, and the names of layers.

`kernsym_jax.weights` and `kernsym_jax.geometry` both read this graph, so that a layer has one name.
"""

import dataclasses
import functools
import math
import os
import re
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, layer_name
from kernsym_jax.formats.onnx_file import MAX_NODES, Arrays, read_structure, text

KERNEL_INPUT = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "DeformConv": 1,
    "QLinearConv": 3,
    "com.microsoft.FusedConv": 1,
    "com.microsoft.NhwcConv": 1,
    "com.microsoft.NhwcFusedConv": 1,
    "com.microsoft.QLinearConv": 3,
    "com.microsoft.nchwc.Conv": 1,
    "com.ms.internal.nhwc.Conv": 1,
}
"""Operator of a convolution -> number of the input that is its kernel."""

# Operators that may make a kernel from stored arrays: a mask, a norm, another shape.
_JOINING = ("Add", "Div", "Mul", "Pow", "Sub", "Where")
_SHAPING = (
    *("Abs", "Flatten", "Reciprocal", "ReduceL2", "ReduceSum", "ReduceSumSquare", "Reshape"),
    *("Sign", "Sqrt", "Squeeze", "Unsqueeze"),
)
COMPUTED = frozenset((*_JOINING, *_SHAPING, "MatMul"))
"""The operators that are computed where they lead from stored arrays to a kernel."""

PASSES = (
    *("Identity", "Cast", "QuantizeLinear", "DequantizeLinear"),
    *("com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear"),
)
"""Operators that leave a kernel as it is, or whose effect the reader of its integers undoes."""

_STANDARD_DOMAINS = ("", "ai.onnx")
_MADE_UP = re.compile(r"(onnx::.*|/.*|val_\d+|\d*)", re.DOTALL)

_MAX_FUNCTIONS = 64
_MAX_BYTES = 64 << 20

# Where an AttributeProto keeps its value, by its type; 0 for files that leave the type out.
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}
_FIELDS |= {10: "graphs", 11: "sparse_tensor"}


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation.

    Attributes:
      op: its type, such as ``Conv``; with its domain, such as ``com.microsoft.QLinearConv``, if it
        is no standard operator.
      name: its own name, often empty.
      inputs: names of the values that it takes; an omitted one is empty.
      outputs: names of the values that it makes.
      attributes: name -> a number, text, list of these, array, `Graph` or list of graphs.
      layer: name of the layer if the node is a convolution, unique in the model.
      origin: of a convolution, name of the stored array that its kernel is made from; else empty.
      proto: the onnx.NodeProto.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    layer: str | None
    origin: str
    proto: Any

    def input(self, index: int) -> str:
        """Returns the name of an input; empty if it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def integers(self, name: str, default: list[int]) -> list[int]:
        """Returns an attribute that is a list of integers."""
        value = self.attributes.get(name, default)
        return self._checked(name, value, isinstance(value, list) and all(map(_is_int, value)))

    def integer(self, name: str, default: int) -> int:
        """Returns an attribute that is an integer."""
        value = self.attributes.get(name, default)
        return self._checked(name, value, _is_int(value))

    def floating(self, name: str, default: float) -> float:
        """Returns an attribute that is a number."""
        value = self.attributes.get(name, default)
        return self._checked(name, value, isinstance(value, float | int))

    def text(self, name: str, default: str = "") -> str:
        """Returns an attribute that is a string."""
        value = self.attributes.get(name, default)
        return self._checked(name, value, isinstance(value, str))

    def graph(self, name: str) -> "Graph":
        """Returns an attribute that is a graph, such as the body of a loop."""
        value = self.attributes.get(name)
        return self._checked(name, value, isinstance(value, Graph))

    @property
    def graphs(self) -> list["Graph"]:
        """The graphs inside the node, such as the branches of a condition."""
        found: list[Graph] = []
        for value in self.attributes.values():
            found += [g for g in (value if isinstance(value, list) else [value]) if _is_graph(g)]
        return found

    def _checked(self, name: str, value: Any, fits: bool) -> Any:
        if not fits:
            raise ValueError(f"{self.name or self.op}: its attribute {name!r} is of a wrong type")
        return value


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The nodes of a graph and the arrays that are stored in it.

    Attributes:
      nodes: in the order in which they run.
      arrays: name -> stored array, in the order of the file; None for one that is no plain numbers
        or a sparse one that is too large.
      shapes: name -> shape of every stored array.
      inputs: names of the inputs, stored arrays left out.
      outputs: names of the outputs.
    """

    nodes: list[Node]
    arrays: dict[str, StoredArray | None]
    shapes: dict[str, tuple[int, ...]]
    inputs: list[str]
    outputs: list[str]

    @functools.cached_property
    def makers(self) -> dict[str, Node]:
        """Name of a value -> the node that makes it."""
        return {output: node for node in self.nodes for output in node.outputs}

    @functools.cached_property
    def users(self) -> dict[str, list[Node]]:
        """Name of a value -> the nodes that take it."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    def only_user(self, node: Node) -> Node | None:
        """Returns the node that takes a node's first output, if no other does."""
        users = self.users.get(node.outputs[0], []) if node.outputs else []
        return users[0] if len(users) == 1 else None


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network as an ONNX file has it, its local functions inlined.

    Attributes:
      graph: of the network.
      proto: the onnx.ModelProto, its large arrays left in the file.
    """

    graph: Graph
    proto: Any


def read_model(path: str | os.PathLike) -> Model:
    """Reads the graph of an ONNX file; the values of arrays are read when they are asked for.

    A layer is named by its kernel, ``layer1.0.conv1`` for ``layer1.0.conv1.weight``, or by its node
    if the exporter invented the name of the kernel. A kernel that is used again gives its layer the
    name of the node too.

    Args:
      path: the model.

    Returns:
      The model.

    Raises:
      ValueError: if it is no ONNX model, is damaged, or is too large for a network.
      FileNotFoundError: if there is no such file.
    """
    proto, arrays = read_structure(path)
    if proto.functions:
        proto = _inlined(proto)
    return Model(_Reader(arrays).graph(proto.graph, {}), proto)


class _Reader:
    """Reads graphs and counts the names of layers, which are unique in a model."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        self._taken: Counter[str] = Counter()

    def graph(self, proto: Any, outside: MutableMapping[str, str]) -> Graph:
        """Reads an onnx.GraphProto.

        Args:
          proto: the message.
          outside: name of a value around this graph -> the stored array that it is made from.
        """
        arrays, shapes = {}, {}
        for tensor in proto.initializer:
            name = text(tensor.name)
            arrays[name], shapes[name] = self._arrays.read(tensor), tuple(tensor.dims)
        for sparse in proto.sparse_initializer:
            name = text(sparse.values.name)
            arrays[name], shapes[name] = self._arrays.read_sparse(sparse), tuple(sparse.dims)
        origins = ChainMap(dict(zip(arrays, arrays, strict=True)), outside)
        inputs = [text(value.name) for value in proto.input]
        return Graph(
            nodes=[self._node(node, origins) for node in proto.node],
            arrays=arrays,
            shapes=shapes,
            inputs=[name for name in inputs if name not in arrays],
            outputs=[text(value.name) for value in proto.output],
        )

    def _node(self, proto: Any, origins: MutableMapping[str, str]) -> Node:
        domain, op = text(proto.domain), text(proto.op_type)
        op = op if domain in _STANDARD_DOMAINS else f"{domain}.{op}"
        inputs, outputs = tuple(map(text, proto.input)), tuple(map(text, proto.output))
        attributes = {text(a.name): self._value(a, origins) for a in proto.attribute}
        layer, origin = None, ""
        if op in KERNEL_INPUT:
            place = KERNEL_INPUT[op]
            origin = origins.get(inputs[place], "") if place < len(inputs) else ""
            layer = self._layer(origin, text(proto.name), op, outputs)
        elif all(name in origins for name in inputs if name):
            # A value made from stored arrays takes the name of the first; a constant has its own
            # name.
            made_from = [origins[name] for name in inputs if name]
            origins.update({name: made_from[0] if made_from else name for name in outputs})
        return Node(op, text(proto.name), inputs, outputs, attributes, layer, origin, proto)

    def _layer(self, origin: str, node: str, op: str, outputs: tuple[str, ...]) -> str:
        layer = layer_name(origin)
        if _MADE_UP.fullmatch(layer):
            layer = node or layer or op
        self._taken[layer] += 1
        if self._taken[layer] == 1:
            return layer
        again = f"{layer} ({node or (outputs or ('',))[0]})"
        self._taken[again] += 1
        return again if self._taken[again] == 1 else f"{again} {self._taken[again]}"

    def _value(self, attribute: Any, origins: MutableMapping[str, str]) -> Any:
        field = _FIELDS.get(attribute.type) or next(
            (name.name for name, _ in attribute.ListFields() if name.name in _FIELDS.values()), ""
        )
        value: Any = getattr(attribute, field, None)
        if field == "t":
            return self._arrays.read(value)
        if field == "sparse_tensor":
            return self._arrays.read_sparse(value)
        if field == "g":
            return self.graph(value, origins)
        if field == "graphs":
            return [self.graph(graph, origins) for graph in value]
        if field == "strings":
            return list(map(text, value))
        return (
            list(value) if field in ("floats", "ints") else text(value) if field == "s" else value
        )


def is_channels_last(node: Node) -> bool:
    """Returns whether an operator reads maps as (batch, height, width, channels)."""
    return node.op.startswith(("com.microsoft.Nhwc", "com.ms.internal.nhwc.")) or (
        node.op.startswith("com.microsoft.QLinear") and node.integer("channels_last", 0) == 1
    )


def is_height_first(node: Node, shape: tuple[int, ...]) -> bool:
    """Returns whether a convolution's kernel is (out, kh, kw, in), as for NhwcConv."""
    taps = node.integers("kernel_shape", [])
    agrees = len(taps) != len(shape) - 2 or tuple(taps) == shape[1:-1]
    return node.op == "com.microsoft.NhwcConv" and agrees


def evaluated(node: Node, known: Mapping[str, np.ndarray], opsets: Any) -> np.ndarray | None:
    """Computes the first output of a node by onnx's reference evaluator; None if it cannot.

    Args:
      node: the node.
      known: name of each of its inputs -> value.
      opsets: the versions of operators that the model imports.
    """
    from onnx.reference import ReferenceEvaluator

    model = alone(node, {name: value.shape for name, value in known.items()}, known, opsets)
    try:
        result: Any = ReferenceEvaluator(model).run([node.outputs[0]], dict(known))
        return np.asarray(result[0])
    except Exception:  # an unknown node makes an unknown constant
        return None


def alone(
    node: Node,
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, np.ndarray],
    opsets: Any,
) -> Any:
    """Returns an onnx.ModelProto of one node.

    Args:
      node: the node.
      shapes: name of each of its inputs -> shape.
      known: name of an input -> value, of those that are constants.
      opsets: the versions of operators that the model imports.
    """
    from onnx import ValueInfoProto, helper

    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in known.items()}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, 1), shape)
        for name, shape in shapes.items()
    ]
    outputs = [ValueInfoProto(name=name) for name in node.outputs if name]
    graph = helper.make_graph([node.proto], "alone", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets)


def size_of_result(node: Node, shapes: list[tuple[int, ...]]) -> int:
    """Returns the most elements that a node of `COMPUTED` makes from arrays of these shapes."""
    if node.op in _JOINING:
        return math.prod(np.broadcast_shapes(*shapes))
    if node.op == "MatMul":
        return math.prod(shapes[0][:-1]) * math.prod(shapes[1][1:])
    return math.prod(shapes[0])


def on_the_way_to_kernels(graph: Graph) -> set[str]:
    """Returns the values of a graph from which only nodes of `COMPUTED` lead to a kernel."""
    pending = [node.input(KERNEL_INPUT[node.op]) for node in graph.nodes if node.layer is not None]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        maker = graph.makers.get(name)
        if maker is not None and name not in found and len(maker.inputs) < MAX_NODES:
            found.add(name)
            pending += maker.inputs if maker.op in (*COMPUTED, *PASSES, "Transpose") else ()
    return found


def walk(graph: Graph) -> Iterator[Graph]:
    """Yields a graph and the graphs inside it."""
    yield graph
    for node in graph.nodes:
        for inner in node.graphs:
            yield from walk(inner)


def _inlined(model: Any) -> Any:
    """Returns the model with calls of its local functions replaced by what these contain.

    Raises:
      ValueError: if a function calls itself, or the graph would become too large.
    """
    import onnx.inliner

    functions = {_key(function): function for function in model.functions}
    nodes, size = _Expansion(functions).of(list(model.graph.node), 0)
    if nodes > MAX_NODES or size > _MAX_BYTES:
        raise ValueError(f"local functions that make a graph of {nodes} nodes and {size} bytes")
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the library raises errors of several classes
        raise ValueError(f"local functions that cannot be inlined: {error}") from error


class _Expansion:
    """How large lists of nodes become when calls get their defaults, and are then inlined."""

    def __init__(self, functions: Mapping[tuple[str, ...], Any]):
        self._functions = functions
        self._added = 0
        self._done: dict[tuple[str, ...], tuple[int, int]] = {}
        self._open: set[tuple[str, ...]] = set()

    def of(self, nodes: list[Any], depth: int) -> tuple[int, int]:
        """Returns the number of nodes and their bytes."""
        number, size = len(nodes), 0
        for node in nodes:
            self._add_defaults(node)
            size += node.ByteSize()
            parts = [self._call(_key(node, node.op_type), depth)]
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
                parts += [self.of(list(graph.node), depth + 1) for graph in graphs]
            number += sum(part[0] for part in parts)
            size += sum(part[1] for part in parts)
        return number, size

    def _add_defaults(self, node: Any) -> None:
        # The library leaves out the defaults of the attributes that a call lacks.
        called = self._functions.get(_key(node, node.op_type))
        given = {attribute.name for attribute in node.attribute}
        for default in called.attribute_proto if called is not None else ():
            if default.name not in given:
                self._added += default.ByteSize()
                if self._added > _MAX_BYTES:
                    raise ValueError(f"local functions with defaults of {self._added} bytes")
                node.attribute.add().CopyFrom(default)

    def _call(self, function: tuple[str, ...], depth: int) -> tuple[int, int]:
        if function not in self._functions:
            return 0, 0
        if function in self._open or depth > _MAX_FUNCTIONS:
            name = ".".join(part for part in function if part)
            how = "calls itself" if function in self._open else "is nested too deep"
            raise ValueError(f"the local function {name!r} {how}")
        if function not in self._done:
            self._open.add(function)
            self._done[function] = self.of(list(self._functions[function].node), depth + 1)
            self._open.remove(function)
        return self._done[function]


def _key(message: Any, name: str | bytes | None = None) -> tuple[str, ...]:
    """Returns the key of the function that a FunctionProto defines or a NodeProto calls."""
    own = message.name if name is None else name
    return text(message.domain), text(own), text(message.overload)


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_graph(value: Any) -> bool:
    return isinstance(value, Graph)
