"""Reads TensorFlow Lite models, which are FlatBuffers, as graphs of operators on tensors."""

import dataclasses
import math
import os
import struct
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    StoredArray,
    dequantized,
    element_count,
    map_file,
    view,
)

MAX_TABLES = 500_000


class Table:
    """One table, which reads a field when it is used and checks every offset first.

    Reference: https://flatbuffers.dev/internals
    """

    def __init__(self, data: np.ndarray, position: int, opened: list[int] | None = None):
        """Opens the table at a position.

        Args:
          data: uint8 (bytes,), the whole buffer.
          position: offset of the table in bytes.
          opened: the number of tables opened so far, in a list that all tables of the buffer share:
            a small file can name one table again and again.

        Raises:
          ValueError: if the table lies outside the buffer.
        """
        self._opened = [0] if opened is None else opened
        self._allow(1)
        self._opened[0] += 1
        self._data = data
        self._position = position
        self._vtable = position - _number(data, position, "<i")
        self._vtable_size = _number(data, self._vtable, "<H")

    @classmethod
    def root(cls, data: np.ndarray) -> "Table":
        """Opens the root table of a buffer."""
        return cls(data, _number(data, 0, "<I"))

    def number(self, field: int, layout: str, default: Any = 0) -> Any:
        """Returns a field that is a number.

        Args:
          field: its number in the schema.
          layout: its type in the notation of `struct`, such as ``<i``.
          default: the value if the field is absent.
        """
        offset = self._offset(field)
        return _number(self._data, self._position + offset, layout) if offset else default

    def numbers(self, field: int, dtype: np.dtype) -> np.ndarray:
        """Returns a vector of numbers, (n,); empty if the field is absent."""
        start, count = self._vector(field)
        if start + count * dtype.itemsize > self._data.size:
            raise ValueError("a FlatBuffer vector that reaches beyond the end")
        return self._data[start : start + count * dtype.itemsize].view(dtype)

    def text(self, field: int) -> str:
        """Returns a string; empty if the field is absent."""
        return self.numbers(field, np.dtype(np.uint8)).tobytes().decode("utf-8")

    def table(self, field: int) -> "Table | None":
        """Returns a table, or None if the field is absent."""
        offset = self._offset(field)
        return self._at(self._position + offset) if offset else None

    def tables(self, field: int) -> list["Table"]:
        """Returns a vector of tables."""
        start, count = self._vector(field)
        if start + 4 * count > self._data.size:
            raise ValueError("a FlatBuffer vector that reaches beyond the end")
        self._allow(count)
        return [self._at(start + 4 * index) for index in range(count)]

    def _allow(self, more: int) -> None:
        if self._opened[0] + more > MAX_TABLES:
            raise ValueError(f"a FlatBuffer of more than {MAX_TABLES} tables")

    def _at(self, place: int) -> "Table":
        return Table(self._data, place + _number(self._data, place, "<I"), self._opened)

    def _vector(self, field: int) -> tuple[int, int]:
        offset = self._offset(field)
        if not offset:
            return 0, 0
        place = self._position + offset
        start = place + _number(self._data, place, "<I")
        return start + 4, _number(self._data, start, "<I")

    def _offset(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._vtable_size:
            return 0
        return int(_number(self._data, self._vtable + entry, "<H"))


def _number(data: np.ndarray, position: int, layout: str) -> Any:
    if not 0 <= position <= data.size - struct.calcsize(layout):
        raise ValueError("a FlatBuffer offset that points outside the file")
    return struct.unpack_from(layout, data.data, position)[0]


# Fields of Model, SubGraph, Tensor, QuantizationParameters, Operator, OperatorCode and Buffer.
_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4
_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _OPERATORS = 0, 1, 2, 3
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY, _SIGNATURE = 0, 1, 2, 3, 4, 6, 7
_SCALE, _ZERO_POINT, _AXIS = 2, 3, 6
_OPCODE, _INPUTS, _OUTPUTS, _OPTIONS = 0, 1, 2, 4
_OLD_CODE, _CODE = 0, 3
_DATA, _FAR_OFFSET, _FAR_SIZE = 0, 1, 2
_TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    7: "int16",
    9: "int8",
    10: "float64",
    18: "bfloat16",
}
_INT32 = np.dtype("<i4")

CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV = 3, 4, 67
_DEQUANTIZE, _DENSIFY = 6, 124


def read_graphs(path: str | os.PathLike) -> "list[Graph]":
    """Reads the graphs of a TensorFlow Lite model; the first is the one that runs.

    Args:
      path: the model.

    Raises:
      ValueError: if the file is not such a model, or is damaged.

    Reference: tensorflow/compiler/mlir/lite/schema/schema.fbs
    """
    data = map_file(path)
    if data[4:8].tobytes() != b"TFL3":
        raise ValueError("not a TensorFlow Lite model")
    model = Table.root(data)
    codes = [
        max(code.number(_OLD_CODE, "<b"), code.number(_CODE, "<i")) for code in model.tables(_CODES)
    ]
    buffers = model.tables(_BUFFERS)
    return [Graph(data, subgraph, buffers, codes) for subgraph in model.tables(_SUBGRAPHS)]


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a graph.

    Attributes:
      code: what it does, as the schema's ``BuiltinOperator`` numbers it.
      inputs: numbers of the tensors that it reads; -1 for one that is left out.
      outputs: numbers of the tensors that it makes.
      options: its settings, or None.
    """

    code: int
    inputs: list[int]
    outputs: list[int]
    options: Table | None

    def option(self, field: int, layout: str = "<i", default: int = 0) -> int:
        """Returns a setting that is a number; the default if it is absent."""
        return self.options.number(field, layout, default) if self.options else default


class Graph:
    """The operators and tensors of one subgraph.

    Attributes:
      tensors: the tensors.
      operators: the operators, in the order in which they run.
      inputs: numbers of the tensors that the graph reads.
      outputs: numbers of the tensors that it returns.
      makers: number of a tensor -> the operator that makes it.
    """

    def __init__(self, data: np.ndarray, subgraph: Table, buffers: list[Table], codes: list[int]):
        self._data = data
        self._buffers = buffers
        self.tensors = subgraph.tables(_TENSORS)
        self.inputs = subgraph.numbers(_GRAPH_INPUTS, _INT32).tolist()
        self.outputs = subgraph.numbers(_GRAPH_OUTPUTS, _INT32).tolist()
        self.operators = [
            Operator(
                codes[operator.number(_OPCODE, "<I")],
                operator.numbers(_INPUTS, _INT32).tolist(),
                operator.numbers(_OUTPUTS, _INT32).tolist(),
                operator.table(_OPTIONS),
            )
            for operator in subgraph.tables(_OPERATORS)
        ]
        self.makers = {output: each for each in self.operators for output in each.outputs}
        self._layers: dict[int, str] = {}
        for operator in self.operators:
            if operator.code in (CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV):
                kernel = self.source(operator.inputs[1])
                name = self.name(kernel)
                taken = name in self._layers.values()
                self._layers.setdefault(kernel, f"{name} ({kernel})" if taken else name)

    def layer(self, operator: Operator) -> str:
        """Returns the name of a convolution: that of its kernel, with a number if it is taken."""
        return self._layers[self.source(operator.inputs[1])]

    def kernels(self) -> dict[int, str]:
        """Returns number of a tensor -> layer, for the kernel of every convolution."""
        return dict(self._layers)

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Returns a tensor's shape, -1 for an axis that is open; None if it states none."""
        tensor = self.tensor(index)
        signature = tensor.numbers(_SIGNATURE, _INT32)
        sizes = tuple((signature if signature.size else tensor.numbers(_SHAPE, _INT32)).tolist())
        return sizes or None

    def source(self, index: int) -> int:
        """Returns the stored tensor that DENSIFY and DEQUANTIZE turn into a given tensor."""
        for code in (_DEQUANTIZE, _DENSIFY):
            maker = self.makers.get(index)
            if maker is not None and maker.code == code:
                index = maker.inputs[0]
        return index

    def name(self, index: int) -> str:
        """Returns a tensor's name."""
        return self.tensor(index).text(_NAME) or f"tensor {index}"

    def tensor(self, index: int) -> Table:
        """Returns a tensor's table."""
        if not 0 <= index < len(self.tensors):
            raise ValueError(f"a graph of {len(self.tensors)} tensors has no tensor {index}")
        return self.tensors[index]

    def array(self, index: int) -> StoredArray | None:
        """Returns a tensor's stored values, dequantised; None if it stores none."""
        tensor = self.tensor(index)
        buffer = self._buffers[tensor.number(_BUFFER, "<I")]
        shape = tuple(tensor.numbers(_SHAPE, _INT32).tolist())
        name = _TYPES.get(tensor.number(_TYPE, "<b"))
        content = buffer.numbers(_DATA, np.dtype(np.uint8))
        if buffer.number(_FAR_OFFSET, "<Q") > 1:
            size = buffer.number(_FAR_SIZE, "<Q")
            content = view(
                self._data, buffer.number(_FAR_OFFSET, "<Q"), np.dtype(np.uint8), (size,)
            )
        if name is None or not content.size:
            return None
        dtype = DTYPES[name]
        count = element_count(shape)
        sparsity = tensor.table(_SPARSITY)
        if sparsity is not None:
            values = content.view(dtype)
            stored = StoredArray(shape, dtype, lambda: _dense(values, sparsity, shape))
        elif content.size != count * dtype.itemsize:
            raise ValueError(f"tensor {self.name(index)!r} has {content.size} bytes for {shape}")
        else:
            stored = StoredArray.of(content.view(dtype).reshape(shape))
        quantization = tensor.table(_QUANTIZATION)
        return _dequantized(stored, quantization) if quantization else stored


def _dequantized(array: StoredArray, quantization: Table) -> StoredArray:
    scale = quantization.numbers(_SCALE, np.dtype("<f4"))
    if not scale.size or array.dtype.kind not in "iu":
        return array
    zero = quantization.numbers(_ZERO_POINT, np.dtype("<i8"))
    return dequantized(array, scale, zero, quantization.number(_AXIS, "<i"))


MAX_SPARSE = 1 << 24
"""Elements of a sparse tensor: a few stored values can claim any shape, and kernels are smaller."""

# Fields of SparsityParameters, DimensionMetadata and the vectors of indices.
_TREE_ORDER, _BLOCKS, _LEVELS = 0, 1, 2
_FORMAT, _SIZE, _SEGMENTS, _INDICES = 0, 1, (2, 3), (4, 5)
_VALUES = 0
_INDEX_TYPES: dict[int, np.dtype] = {1: _INT32, 2: np.dtype("<u2"), 3: np.dtype("u1")}


def _dense(values: np.ndarray, sparsity: Table, shape: tuple[int, ...]) -> np.ndarray:
    """Puts the stored values of a sparse tensor into their places among zeros.

    The format describes the tensor as a tree with a level for each axis, and a further level for
    each axis that is cut into blocks. A level either has all indices of its axis or lists those
    that occur.

    Args:
      values: (n,), in the order of the tree's leaves.
      sparsity: the tensor's ``SparsityParameters``.
      shape: the shape of the dense tensor.

    Returns:
      The dense tensor.

    Raises:
      ValueError: if the tree does not fit the shape, or has more or fewer leaves than values.

    Reference: ``SparsityParameters`` in tensorflow/compiler/mlir/lite/schema/schema.fbs
    """
    if math.prod(shape) > MAX_SPARSE:
        raise ValueError(f"a sparse tensor of shape {shape}, more than {MAX_SPARSE} elements")
    order = sparsity.numbers(_TREE_ORDER, _INT32).tolist()
    blocks = sparsity.numbers(_BLOCKS, _INT32).tolist()
    levels = sparsity.tables(_LEVELS)
    extents = _extents(order, blocks, levels, shape)
    # Count the nodes before building them: the file must have the values or segments for them.
    counts = [1]
    for level, extent in zip(levels, extents, strict=True):
        counts.append(_count(level, counts[-1], extent))
    if counts[-1] != values.size:
        raise ValueError(f"a sparse tensor with {values.size} values in {counts[-1]} places")
    found: list[np.ndarray] = []
    for level, above, extent in zip(levels, counts[:-1], extents, strict=True):
        parents, inside = _level(level, above, extent)
        found = [indices[parents] for indices in found] + [inside]
    by_axis = dict(zip(order, found, strict=True))
    sizes = dict(zip(order, extents, strict=True))
    for block, axis in enumerate(blocks, start=len(shape)):
        by_axis[axis] = by_axis[axis] * sizes[block] + by_axis[block]
    whole = np.zeros(shape, values.dtype)
    whole[tuple(by_axis[axis] for axis in range(len(shape)))] = values
    return whole


def _extents(
    order: list[int], blocks: list[int], levels: list[Table], shape: tuple[int, ...]
) -> list[int]:
    """Returns how many indices each level can have."""
    axes = len(shape)
    fits = sorted(order) == list(range(axes + len(blocks))) and len(levels) == len(order)
    if not fits or sorted(order[:axes]) != list(range(axes)) or not set(blocks) <= set(range(axes)):
        raise ValueError(f"{len(levels)} sparse levels of order {order} for the shape {shape}")
    sizes = list(shape)
    for block, axis in enumerate(blocks, start=axes):
        size = levels[order.index(block)].number(_SIZE, "<i")
        if size < 1 or sizes[axis] % size:
            raise ValueError(f"blocks of {size} for axis {axis} of the shape {shape}")
        sizes[axis] //= size
        sizes.append(size)
    return [sizes[axis] for axis in order]


def _count(level: Table, above: int, extent: int) -> int:
    """Returns how many nodes a level has."""
    if not _lists_indices(level):
        if level.number(_SIZE, "<i") != extent:
            raise ValueError(f"a level of {level.number(_SIZE, '<i')} instead of {extent}")
        return above * extent
    segments, indices = _vector(level, *_SEGMENTS), _vector(level, *_INDICES)
    if segments.size != above + 1 or segments[0] != 0 or segments[-1] != indices.size:
        raise ValueError(f"{segments.size} segments for {above} nodes and {indices.size} indices")
    return indices.size


def _level(level: Table, above: int, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each node of a level, the node above it and its index along the level's axis."""
    if not _lists_indices(level):
        return np.repeat(np.arange(above), extent), np.tile(np.arange(extent), above)
    lengths = np.diff(_vector(level, *_SEGMENTS))
    if lengths.min(initial=0) < 0:
        raise ValueError("sparse segments that do not rise")
    parents, indices = np.repeat(np.arange(above), lengths), _vector(level, *_INDICES)
    rising = (np.diff(indices) > 0) | (np.diff(parents) > 0)
    if indices.size and not (indices.min() >= 0 and indices.max() < extent and rising.all()):
        raise ValueError(f"sparse indices that do not rise from 0 to {extent - 1} at most")
    return parents, indices


def _lists_indices(level: Table) -> bool:
    return level.number(_FORMAT, "<b") != 0


def _vector(level: Table, kind: int, field: int) -> np.ndarray:
    vector = level.table(field)
    dtype = _INDEX_TYPES.get(level.number(kind, "<B"))
    if vector is None or dtype is None:
        raise ValueError("a sparse level without its indices")
    return vector.numbers(_VALUES, dtype).astype(np.int64)
