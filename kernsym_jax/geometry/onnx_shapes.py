"""What the nodes of an ONNX graph that are no layers do to the axes of a map."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernsym_jax.geometry.axis import (
    CONSTANT,
    LARGEST,
    OTHER,
    Axes,
    Axis,
    chained,
    changed,
    cut,
    extend,
    taken,
    unknown,
)
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.onnx_graph import OnnxGraph, evaluated, small_array, stored_constant
from kernsym_jax.geometry.reshaping import reshaped

_NUMPY_MODES = ("reflect", "edge", "wrap")


_PLACE_BY_PLACE = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div",
    "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu",
    "Pow", "QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuantizeLinear",
    "QuickGelu", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Sum",
    "Tanh",
))  # fmt: skip


class Values:
    """What is known of the values of a graph, by name.

    Attributes:
      network: the layers found so far.
      shapes: of every value whose shape could be inferred.
      axes: of the values that depend on the input; ``None`` where nothing is known.
      depends: names of the values that depend on the input.
      consts: numbers of small constants.
      origins: name of the stored tensor that a value was made from.
    """

    def __init__(self, network: Network, graph: OnnxGraph):
        self.network = network
        self.graph = graph
        self.shapes = dict(graph.shapes)
        self.axes: dict[str, Axes | None] = {}
        self.depends: set[str] = set()
        self.consts: dict[str, np.ndarray] = {}
        self.origins: dict[str, str] = {}

    def store(self, graph: Any) -> None:
        """Takes in the tensors that are stored in a graph."""
        for tensor in graph.initializer:
            self.origins[tensor.name] = tensor.name
            self.number(tensor.name, small_array(tensor))

    def keep(self, name: str, axes: Axes | None) -> None:
        """Takes in a value that depends on the input."""
        self.depends.add(name)
        if axes is None and name in self.shapes:
            axes = tuple(unknown(size) for size in self.shapes[name])
        self.axes[name] = axes
        if axes is not None and all(axis is not None for axis in axes):
            self.shapes.setdefault(name, tuple(axis.size for axis in axes if axis is not None))

    def number(self, name: str, value: np.ndarray | None) -> None:
        """Takes in a constant, if it is known."""
        if value is not None:
            self.consts[name] = value
            self.shapes.setdefault(name, value.shape)

    def constant(self, node: Any, given: dict[str, Any]) -> None:
        """Takes in the outputs of a node that depends on no input."""
        for name in node.output:
            origins = [self.origins[i] for i in node.input if i in self.origins]
            self.origins[name] = origins[0] if origins else name
        if node.op_type == "Constant":
            self.number(node.output[0], stored_constant(given))
        elif node.input and all(not i or i in self.consts for i in node.input):
            known = {i: self.consts[i] for i in node.input if i}
            self.number(node.output[0], evaluated(self.graph, node, known))

    def numbers(self, name: str | None, default: Any = None) -> list[int] | None:
        """A small constant as a list of integers; ``default`` where no value is given."""
        if not name:
            return default
        return self.consts[name].reshape(-1).tolist() if name in self.consts else None


def apply(values: Values, node: Any, given: dict[str, Any]) -> None:
    """Follows a map through a node.

    Args:
      values: what is known so far; the node's outputs are added.
      node: onnx.NodeProto, with an input that depends on the network's.
      given: its attributes.
    """
    source = node.input[0]
    if node.op_type == "Shape" and source in values.shapes:
        shape = values.shapes[source][given.get("start", 0) : given.get("end")]
        values.number(node.output[0], np.array(shape, np.int64))
        return
    results: list[Axes | None] = [None]
    if node.op_type == "Concat":
        results = [_concat(values, node, given)]
    elif node.op_type in _HANDLERS:
        axes = values.axes.get(source)
        if axes is not None:
            results = _HANDLERS[node.op_type](values, node, given, axes)
    else:
        results = [_place_by_place(values, node)]
    for name, axes in zip(node.output, [*results, *[None] * len(node.output)], strict=False):
        values.keep(name, axes)


def _place_by_place(values: Values, node: Any) -> Axes | None:
    """An operation on maps that are broadcast to one shape, or one of which nothing is known."""
    shape = values.shapes.get(node.output[0])
    if shape is None and node.op_type in _PLACE_BY_PLACE:
        # Behind an operator that onnx does not know, it infers no shape.
        known = [name for name in node.input if name in values.depends and name in values.shapes]
        shape = np.broadcast_shapes(*(values.shapes[name] for name in known)) if known else None
    maps = []
    for name in node.input:
        axes, own = values.axes.get(name), values.shapes.get(name)
        if axes is None or own is None or shape is None or len(own) > len(shape):
            continue
        sizes = list(zip(own, shape[len(shape) - len(own) :], strict=True))
        if all(n in (1, m) for n, m in sizes):
            # One pixel, row or column is the same for every place that it is combined with.
            kept = [a if n == m else None for a, (n, m) in zip(axes, sizes, strict=True)]
            maps.append((*[None] * (len(shape) - len(own)), *kept))
    if maps:
        return values.network.merge(maps)
    for name in node.input:
        values.network.leave(values.axes.get(name) or ())
    return None


def _concat(values: Values, node: Any, given: dict[str, Any]) -> Axes | None:
    shapes = [values.shapes[name] for name in node.input if name in values.shapes]
    if len(shapes) < len(node.input):
        return None
    d = given["axis"] % len(shapes[0])
    pieces = [
        values.network.settle_along(values.axes.get(name) or (None,) * len(shape), [d])
        for name, shape in zip(node.input, shapes, strict=True)
    ]
    dependent = [name in values.depends for name in node.input]
    others = [
        changed(axes, {d: None}) for axes, known in zip(pieces, dependent, strict=True) if known
    ]
    fills = [
        (shape[d], OTHER if known else CONSTANT)
        for shape, known in zip(shapes, dependent, strict=True)
    ]
    return changed(values.network.merge(others), {d: chained([axes[d] for axes in pieces], fills)})


def _pad(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    optional = [*node.input, "", "", ""]
    pads = given.get("pads") or values.numbers(optional[1])
    dims = values.numbers(optional[3], list(range(len(axes))))
    if pads is None or dims is None:
        return [None]
    amounts = {
        d % len(axes): (int(lo), int(hi))
        for d, lo, hi in zip(dims, pads[: len(dims)], pads[len(dims) :], strict=True)
        if lo or hi
    }
    axes = values.network.settle_along(axes, list(amounts))
    changes: dict[int, Axis | None] = {}
    for d, (lo, hi) in amounts.items():
        axis, mode = axes[d], given.get("mode", "constant")
        if axis is not None and axis.size + abs(lo) + abs(hi) > LARGEST:
            axis = unknown(axis.size + lo + hi)
        elif axis is not None and mode in _NUMPY_MODES:
            ends = (max(lo, 0), max(hi, 0))
            places = np.pad(np.arange(axis.size), ends, mode)
            axis = taken(axis, places[max(-lo, 0) : len(places) - max(-hi, 0)])
        elif axis is not None:
            axis = extend(axis, lo, hi)
        changes[d] = axis
    return [changed(axes, changes)]


def _slice(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    optional = [*node.input, "", "", "", ""]
    starts = given.get("starts") or values.numbers(optional[1])
    ends = given.get("ends") or values.numbers(optional[2])
    if starts is None or ends is None:
        return [None]
    dims = given.get("axes") or values.numbers(optional[3], list(range(len(starts))))
    steps = values.numbers(optional[4], [1] * len(starts))
    if dims is None or steps is None:
        return [None]
    shape = values.shapes[node.input[0]]
    ranges = {
        d % len(axes): range(*slice(start, end, step).indices(shape[d]))
        for d, start, end, step in zip(dims, starts, ends, steps, strict=True)
    }
    ranges = {d: places for d, places in ranges.items() if places != range(shape[d])}
    axes = values.network.settle_along(axes, list(ranges))
    changes: dict[int, Axis | None] = {}
    for d, places in ranges.items():
        if (axis := axes[d]) is not None:
            forward = places.step > 0
            changes[d] = (
                cut(axis, places.start, places.stop, places.step)
                if forward
                else taken(axis, places)
            )
    return [changed(axes, changes)]


def _split(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    d, start = given.get("axis", 0) % len(axes), 0
    axes = values.network.settle_along(axes, [d])
    results: list[Axes | None] = []
    for name in node.output:
        size = values.shapes[name][d] if name in values.shapes else None
        if size is None:
            return results
        axis = axes[d]
        results.append(changed(axes, {d: axis and cut(axis, start, start + size)}))
        start += size
    return results


def _gather(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    d = given.get("axis", 0) % len(axes)
    indices = values.consts.get(node.input[1])
    axes = values.network.settle_along(axes, [d])
    axis = axes[d]
    if indices is None or indices.ndim > 1:
        return [None]
    if indices.ndim == 0:
        return [(*axes[:d], *axes[d + 1 :])]
    return [changed(axes, {d: axis and taken(axis, indices % axis.size)})]


def _transpose(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    return [tuple(axes[d] for d in given.get("perm", range(len(axes))[::-1]))]


def _reshape(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    shape = values.shapes.get(node.output[0])
    if shape is None:
        return [None]
    result = reshaped(axes, values.shapes[node.input[0]], shape)
    if any(a is not None and a.pending and a not in result for a in axes):
        values.network.leave(axes)
    return [result]


def _reduce(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    optional = [*node.input, ""]
    dims = given.get("axes") or values.numbers(optional[1], list(range(len(axes))))
    if node.op_type.startswith("Global"):
        dims = list(range(2, len(axes)))
    if dims is None:
        return [None]
    gone = {d % len(axes) for d in dims}
    values.network.leave(tuple(a for d, a in enumerate(axes) if d in gone))
    if given.get("keepdims", 1):
        return [tuple(None if d in gone else a for d, a in enumerate(axes))]
    return [tuple(a for d, a in enumerate(axes) if d not in gone)]


def _matmul(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    shape = values.shapes.get(node.output[0])
    if shape is None or len(shape) != len(axes):
        return [None]
    return [(*axes[:-1], unknown(shape[-1]))]


def _unfollowed(values: Values, node: Any, given: dict[str, Any], axes: Axes) -> list[Axes | None]:
    values.network.leave(axes)
    return [None]


_Handler = Callable[[Values, Any, dict[str, Any], Axes], list[Axes | None]]

_HANDLERS: dict[str, _Handler] = {
    "Flatten": _reshape,
    "Gather": _gather,
    "GlobalAveragePool": _reduce,
    "GlobalMaxPool": _reduce,
    "MatMul": _matmul,
    "Pad": _pad,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _unfollowed,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Upsample": _unfollowed,
}
