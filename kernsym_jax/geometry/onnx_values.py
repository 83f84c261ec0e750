"""How the operators of an ONNX graph, other than layers, change the axes of a map."""

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np

from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.formats.onnx_graph import (
    Graph,
    Model,
    Node,
    evaluated,
    is_channels_last,
)
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
    reshaped,
    taken,
    unknown,
)
from kernsym_jax.geometry.layer import MISFIT
from kernsym_jax.geometry.network import Network

SMALL = 1024
"""The largest number of elements of a constant whose values the audit follows: amounts of padding,
indices and shapes."""

MAX_EVALUATIONS = 3000
"""The most nodes that an audit computes or infers one by one."""
_NUMPY_MODES = ("reflect", "edge", "wrap")

_MICROSOFT = (
    "BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "QLinearAdd", "QLinearLeakyRelu",
    "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu",
)  # fmt: skip
_PLACE_BY_PLACE = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div",
    "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu",
    "Pow", "QuantizeLinear", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Sqrt",
    "Sub", "Sum", "Tanh", *(f"com.microsoft.{op}" for op in _MICROSOFT),
))  # fmt: skip
# Operators on several maps; a runtime refuses maps that do not fit each other.
_JOINING = frozenset((
    "Add", "Div", "Max", "Min", "Mul", "Sub", "Sum", "com.microsoft.QLinearAdd",
    "com.microsoft.QLinearMul",
))  # fmt: skip
# Operators that exporters compute shapes, indices and amounts of padding with.
_EVALUATED = frozenset((
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "CumSum",
    "DequantizeLinear", "Div", "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherND",
    "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod",
    "Mul", "Neg", "NonZero", "Not", "Or", "Pad", "Pow", "Range", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements", "ScatterND",
    "Shape", "Sign", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile",
    "Transpose", "Unsqueeze", "Where",
))  # fmt: skip


class Values:
    """The values of a graph by name, as far as they are known.

    Attributes:
      network: the layers found so far.
      shapes: of every value whose shape could be inferred.
      axes: of the values that depend on the input; ``None`` where nothing is known.
      depends: names of the values that depend on the input.
      consts: numbers of small constants.
      opsets: the versions of operators that the model imports.
      evaluations: number of nodes that were computed or inferred one by one.
    """

    def __init__(self, network: Network, model: Model, shapes: dict[str, tuple[int, ...]]):
        self.network = network
        self.shapes = shapes
        self.axes: dict[str, Axes | None] = {}
        self.depends: set[str] = set()
        self.consts: dict[str, np.ndarray] = {}
        self.opsets = model.proto.opset_import
        self.evaluations = 0
        self._alternatives = 0

    def store(self, graph: Graph) -> None:
        """Records the arrays that a graph stores."""
        for name, array in graph.arrays.items():
            self.shapes.setdefault(name, graph.shapes[name])
            self.number(name, small_array(array))

    def keep(self, name: str, axes: Axes | None) -> None:
        """Records a value that depends on the input."""
        self.depends.add(name)
        if axes is None and name in self.shapes:
            axes = tuple(unknown(size) for size in self.shapes[name])
        self.axes[name] = axes
        if axes is not None and all(axis is not None for axis in axes):
            self.shapes.setdefault(name, tuple(axis.size for axis in axes if axis is not None))

    def number(self, name: str, value: np.ndarray | None) -> None:
        """Records a constant, if it is known."""
        if value is not None:
            self.consts[name] = value
            self.shapes.setdefault(name, value.shape)

    def constant(self, node: Node) -> None:
        """Records the outputs of a node that depends on no input."""
        if node.op == "Constant" and node.outputs:
            self.number(node.outputs[0], _constant(node))
        elif node.op in _EVALUATED and node.inputs and node.outputs:
            known = {name: self.consts.get(name) for name in node.inputs if name}
            values = {name: value for name, value in known.items() if value is not None}
            if len(values) == len(known):
                self.number(node.outputs[0], self._evaluated(node, values))

    def numbers(self, name: str, default: list[int] | None = None) -> list[int] | None:
        """Returns a small constant as a list of integers; ``default`` if the input is omitted."""
        if not name:
            return default
        return self.consts[name].reshape(-1).tolist() if name in self.consts else None

    @contextlib.contextmanager
    def alternatives(self) -> Iterator[None]:
        """Follows the branches of a condition; one that never runs may hold maps that do not
        fit."""
        self._alternatives += 1
        yield
        self._alternatives -= 1

    @property
    def has_alternatives(self) -> bool:
        """Returns whether a branch is followed that may never run."""
        return self._alternatives > 0

    def misfit(self, node: Node, shapes: list[tuple[int, ...]]) -> None:
        """Raises a ``ValueError`` for maps whose sizes a node cannot combine."""
        if not self.has_alternatives:
            sizes = " and ".join("×".join(map(str, shape)) for shape in dict.fromkeys(shapes))
            raise ValueError(f"{node.name or node.op}: cannot put maps of {sizes} together")

    def _evaluated(self, node: Node, known: dict[str, np.ndarray]) -> np.ndarray | None:
        """Computes the first output of a node with constant inputs; ``None`` if it cannot."""
        shape = self.shapes.get(node.outputs[0])
        self.evaluations += 1
        if shape is None or not _is_small(shape) or self.evaluations > MAX_EVALUATIONS:
            return None
        return evaluated(node, known, self.opsets)


def misfit(values: Values, node: Node) -> str | None:
    """Returns why the weights or numbers of a node do not fit its map, as far as that is known."""
    if values.has_alternatives:
        return None
    own, other = (values.shapes.get(node.input(place)) for place in (0, 1))
    target = values.consts.get(node.input(1))
    if own is not None and other is not None and node.op in ("Gemm", "MatMul"):
        turned = node.op == "Gemm" and node.integer("transB", 0)
        got = own[0] if node.op == "Gemm" and node.integer("transA", 0) else own[-1]
        wanted = other[-1] if turned or len(other) == 1 else other[-2]
        if got != wanted:
            return f"{MISFIT}: it takes {wanted} numbers, not {got}"
    if own is not None and target is not None and node.op == "Reshape":
        sizes = [own[d] if n == 0 and d < len(own) else n for d, n in enumerate(target.reshape(-1))]
        known = math.prod(int(n) for n in sizes if n > 0)
        if known and (math.prod(own) % known or (min(sizes) > 0 and math.prod(own) != known)):
            return f"{MISFIT}: it takes {known} numbers, not {math.prod(own)}"
    return None


def small_array(array: StoredArray | None) -> np.ndarray | None:
    """Returns the numbers of an array; ``None`` if it is large or its file is missing."""
    if array is None or not _is_small(array.shape):
        return None
    with contextlib.suppress(ValueError):
        return array.read()
    return None


def apply(values: Values, node: Node) -> None:
    """Records the outputs of a node whose input depends on the network's input.

    Args:
      values: what is known so far; the node's outputs are added.
      node: the node.
    """
    source = node.input(0)
    if node.op == "Shape" and source in values.shapes:
        shape = values.shapes[source]
        part = slice(node.integer("start", 0), node.attributes.get("end"))
        values.number(node.outputs[0], np.array(shape[part], np.int64))
        return
    results: list[Axes | None] = [None]
    if node.op in _CONCATENATIONS:
        results = [_concat(values, node)]
    elif node.op in _HANDLERS:
        axes = values.axes.get(source)
        if axes is not None:
            results = _HANDLERS[node.op](values, node, axes)
    elif "." in node.op and node.op not in _PLACE_BY_PLACE:
        # An unknown operator may do anything to its maps.
        for name in node.inputs:
            values.network.leave(values.axes.get(name) or ())
    else:
        results = [_place_by_place(values, node)]
    for name, axes in zip(node.outputs, [*results, *[None] * len(node.outputs)], strict=False):
        values.keep(name, axes)


def _is_small(shape: tuple[int, ...]) -> bool:
    size = 1
    for length in shape:
        size *= length
    return 0 <= size <= SMALL


def _constant(node: Node) -> np.ndarray | None:
    """Returns the numbers of a Constant node; ``None`` if they are many."""
    for name, value in node.attributes.items():
        if name in ("value", "sparse_value"):
            return small_array(value)
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            numbers = np.asarray(value)
            return numbers if _is_small(numbers.shape) else None
    return None


def _place_by_place(values: Values, node: Node) -> Axes | None:
    """Follows an elementwise operation on maps that are broadcast, or an unknown operation."""
    shape = values.shapes.get(node.outputs[0]) if node.outputs else None
    known = [name for name in node.inputs if name in values.depends and name in values.shapes]
    shapes = [values.shapes[name] for name in known]
    if node.op in _PLACE_BY_PLACE and shapes and (shape is None or node.op in _JOINING):
        # Onnx infers no shape behind an operator that it does not know.
        try:
            together = np.broadcast_shapes(*shapes)
            shape = shape or together
        except ValueError:
            values.misfit(node, shapes)
    maps = []
    for name in known:
        axes, own = values.axes.get(name), values.shapes[name]
        if axes is None or shape is None or len(own) > len(shape):
            continue
        sizes = list(zip(own, shape[len(shape) - len(own) :], strict=True))
        if all(n in (1, m) for n, m in sizes):
            # One pixel, row or column is the same for every place that it is combined with.
            kept = [a if n == m else None for a, (n, m) in zip(axes, sizes, strict=True)]
            maps.append((*[None] * (len(shape) - len(own)), *kept))
    if maps:
        return values.network.merge(maps)
    for name in node.inputs:
        values.network.leave(values.axes.get(name) or ())
    return None


def _concat(values: Values, node: Node) -> Axes | None:
    names = node.inputs[_CONCATENATIONS[node.op]]
    shapes = [values.shapes[name] for name in names if name in values.shapes]
    if len(shapes) < len(names) or not shapes:
        return None
    d = node.integer("axis", 1) % len(shapes[0])
    if len({(*shape[:d], *shape[d + 1 :]) for shape in shapes}) > 1:
        values.misfit(node, shapes)
        return None
    pieces = [
        values.network.settle_along(values.axes.get(name) or (None,) * len(shape), [d])
        for name, shape in zip(names, shapes, strict=True)
    ]
    dependent = [name in values.depends for name in names]
    others = [
        changed(axes, {d: None}) for axes, known in zip(pieces, dependent, strict=True) if known
    ]
    fills = [
        (shape[d], OTHER if known else CONSTANT)
        for shape, known in zip(shapes, dependent, strict=True)
    ]
    return changed(values.network.merge(others), {d: chained([axes[d] for axes in pieces], fills)})


def _pad(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    pads = node.integers("pads", []) or values.numbers(node.input(1))
    dims = values.numbers(node.input(3), list(range(len(axes))))
    if pads is None or dims is None:
        return [None]
    amounts = {
        d % len(axes): (int(lo), int(hi))
        for d, lo, hi in zip(dims, pads[: len(dims)], pads[len(dims) :], strict=True)
        if lo or hi
    }
    axes = values.network.settle_along(axes, list(amounts))
    mode = node.text("mode", "constant")
    return [changed(axes, {d: _padded(axes[d], *ends, mode) for d, ends in amounts.items()})]


def _padded(axis: Axis | None, lo: int, hi: int, mode: str) -> Axis | None:
    if axis is None:
        return None
    if axis.size + abs(lo) + abs(hi) > LARGEST:
        return unknown(axis.size + lo + hi)
    if mode not in _NUMPY_MODES:
        return extend(axis, lo, hi)
    places = np.pad(np.arange(axis.size), (max(lo, 0), max(hi, 0)), mode)  # type: ignore[call-overload]
    return taken(axis, places[max(-lo, 0) : len(places) - max(-hi, 0)])


def _slice(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    starts = node.integers("starts", []) or values.numbers(node.input(1))
    ends = node.integers("ends", []) or values.numbers(node.input(2))
    shape = values.shapes.get(node.input(0))
    if starts is None or ends is None or shape is None:
        return [None]
    every = list(range(len(starts)))
    dims = node.integers("axes", []) or values.numbers(node.input(3), every)
    steps = values.numbers(node.input(4), [1] * len(starts))
    if dims is None or steps is None:
        return [None]
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


def _split(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    d, start = node.integer("axis", 0) % len(axes), 0
    axes = values.network.settle_along(axes, [d])
    results: list[Axes | None] = []
    for name in node.outputs:
        if name not in values.shapes:
            return results
        size, axis = values.shapes[name][d], axes[d]
        results.append(changed(axes, {d: axis and cut(axis, start, start + size)}))
        start += size
    return results


def _gather(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    d = node.integer("axis", 0) % len(axes)
    indices = values.consts.get(node.input(1))
    axes = values.network.settle_along(axes, [d])
    axis = axes[d]
    if indices is None or indices.ndim > 1:
        return [None]
    if indices.ndim == 0:
        return [(*axes[:d], *axes[d + 1 :])]
    return [changed(axes, {d: axis and taken(axis, indices % axis.size)})]


def _transpose(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    return [tuple(axes[d] for d in node.integers("perm", list(range(len(axes)))[::-1]))]


def _reshape(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    old, new = values.shapes.get(node.input(0)), values.shapes.get(node.outputs[0])
    if old is None or new is None:
        return [None]
    result = reshaped(axes, old, new)
    if any(a is not None and a.pending and a not in result for a in axes):
        values.network.leave(axes)
    return [result]


def _reduce(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    everything = list(range(len(axes)))
    dims = node.integers("axes", []) or values.numbers(node.input(1), everything)
    if "Global" in node.op:
        dims = everything[1:-1] if is_channels_last(node) else everything[2:]
    if dims is None:
        return [None]
    gone = {d % len(axes) for d in dims}
    values.network.leave(tuple(a for d, a in enumerate(axes) if d in gone))
    if node.integer("keepdims", 1):
        return [tuple(None if d in gone else a for d, a in enumerate(axes))]
    return [tuple(a for d, a in enumerate(axes) if d not in gone)]


def _matmul(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    shape = values.shapes.get(node.outputs[0])
    if shape is None or len(shape) != len(axes):
        return [None]
    return [(*axes[:-1], unknown(shape[-1]))]


def _reorder(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    """Follows ONNX Runtime's change between plain channels and blocks; the map stays."""
    if node.op.endswith("Output") and len(axes) == 4 and "channels" in node.attributes:
        # Blocks of 8 or 16 may have channels that are filled up with zeros.
        axes = changed(axes, {1: unknown(node.integer("channels", 0), "feature")})
    if len(axes) != 4 or not node.integer("channels_last", 0):
        return [axes]
    order = (0, 3, 1, 2) if node.op.endswith("Input") else (0, 2, 3, 1)
    return [tuple(axes[d] for d in order)]


def _unfollowed(values: Values, node: Node, axes: Axes) -> list[Axes | None]:
    values.network.leave(axes)
    return [None]


# Where each kind of concatenation has its maps, among its inputs.
_CONCATENATIONS = {"Concat": slice(None), "com.microsoft.QLinearConcat": slice(2, None, 3)}

_HANDLERS: dict[str, Callable[[Values, Node, Axes], list[Axes | None]]] = {
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
    "com.microsoft.QLinearGlobalAveragePool": _reduce,
    "com.microsoft.nchwc.GlobalAveragePool": _reduce,
    "com.microsoft.nchwc.GlobalMaxPool": _reduce,
    "com.microsoft.nchwc.ReorderInput": _reorder,
    "com.microsoft.nchwc.ReorderOutput": _reorder,
    "com.microsoft.nchwc.Upsample": _unfollowed,
    "com.ms.internal.nhwc.GlobalAveragePool": _reduce,
    "com.ms.internal.nhwc.GlobalMaxPool": _reduce,
}
