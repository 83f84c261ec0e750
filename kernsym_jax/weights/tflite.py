"""Reads TensorFlow Lite models: dequantised kernels with strides and paddings from the graph."""

import dataclasses
import math
import os

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    StoredArray,
    dequantized,
    element_count,
    map_file,
    view,
)
from kernsym_jax.formats.flatbuffer import Table
from kernsym_jax.weights.conv_kernel import (
    CONV,
    DEPTHWISE,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Weights,
)
from kernsym_jax.weights.kernels import POINTWISE, describe_axes
from kernsym_jax.weights.layout import OHWI, axes_to_hwio

# Fields of Model, SubGraph, Tensor, QuantizationParameters, Operator, OperatorCode and Buffer.
_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4
_TENSORS, _OPERATORS = 0, 3
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY = 0, 1, 2, 3, 4, 6
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
_CONV_2D, _DEPTHWISE_2D, _DEQUANTIZE, _PAD, _TRANSPOSE_CONV, _DENSIFY = 3, 4, 6, 34, 67, 124
_INT32 = np.dtype("<i4")


def read(path: str | os.PathLike) -> Weights:
    """Reads the kernels of every convolution of a TensorFlow Lite model, in graph order.

    Args:
      path: the model, in which the converter has folded every BatchNorm already.

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
    kernels: dict[str, ConvKernel] = {}
    skipped: dict[str, str] = {}
    for subgraph in model.tables(_SUBGRAPHS):
        _Graph(data, subgraph, buffers, codes).collect(kernels, skipped)
    return Weights(
        kernels=kernels,
        skipped=skipped,
        source=os.fspath(path),
        format="TensorFlow Lite",
        order="forward",
        layout="OHWI (the format's rule)",
        notes=("BatchNorm is folded: the converter does it",),
    )


@dataclasses.dataclass(frozen=True)
class _Operator:
    code: int
    inputs: list[int]
    outputs: list[int]
    options: Table | None

    def option(self, field: int, layout: str = "<i", default: int = 0) -> int:
        return self.options.number(field, layout, default) if self.options else default


class _Graph:
    def __init__(self, data: np.ndarray, subgraph: Table, buffers: list[Table], codes: list[int]):
        self.data = data
        self.tensors = subgraph.tables(_TENSORS)
        self.buffers = buffers
        self.operators = [
            _Operator(
                codes[operator.number(_OPCODE, "<I")],
                operator.numbers(_INPUTS, _INT32).tolist(),
                operator.numbers(_OUTPUTS, _INT32).tolist(),
                operator.table(_OPTIONS),
            )
            for operator in subgraph.tables(_OPERATORS)
        ]
        self.makers = {output: each for each in self.operators for output in each.outputs}

    def collect(self, kernels: dict[str, ConvKernel], skipped: dict[str, str]) -> None:
        used: set[int] = set()
        for operator in self.operators:
            if operator.code not in (_CONV_2D, _DEPTHWISE_2D, _TRANSPOSE_CONV):
                continue
            index = self.source(operator.inputs[1])
            name = self.name(index)
            array = self.array(index)
            used.add(index)
            if array is None or len(array.shape) != 4 or 0 in array.shape:
                skipped[name] = "a kernel that is computed, not stored"
            elif array.shape[1:3] == (1, 1):
                skipped[name] = POINTWISE
            else:
                kernels[name if name not in kernels else f"{name} ({index})"] = self.kernel(
                    operator, array
                )
        for index in range(len(self.tensors)):
            array = self.array(index) if index not in used else None
            if array is not None and array.shape:
                plain = describe_axes(array)
                unused = f"4-D array {array.shape}: not the kernel of a convolution"
                skipped[self.name(index)] = unused if len(array.shape) == 4 else plain

    def kernel(self, operator: _Operator, array: StoredArray) -> ConvKernel:
        weight = array.read()
        _, kh, kw, last = weight.shape
        depthwise = operator.code == _DEPTHWISE_2D
        dilation = (1, 1)
        if depthwise:
            kind, weight = DEPTHWISE, weight.reshape(kh, kw, 1, last)
            dilation = operator.option(6, default=1), operator.option(5, default=1)
        else:
            kind = TRANSPOSED if operator.code == _TRANSPOSE_CONV else CONV
            weight = weight.transpose(axes_to_hwio(OHWI))
            if kind == CONV:
                dilation = operator.option(5, default=1), operator.option(4, default=1)
        multiplier = max(operator.option(3), 1) if depthwise else 1
        return ConvKernel(
            weight,
            kind,
            stride=(operator.option(2), operator.option(1)),
            padding=self.padding(operator),
            dilation=dilation,
            groups=last // multiplier if depthwise else None,
        )

    def padding(self, operator: _Operator) -> Padding | None:
        """Returns the padding of a layer, including that of a PAD in front of it."""
        if operator.option(0, "<b") == 0:
            return "SAME"
        images = operator.inputs[-1] if operator.code == _TRANSPOSE_CONV else operator.inputs[0]
        before = self.makers.get(images)
        if before is None or before.code != _PAD:
            return (0, 0), (0, 0)
        pads = self.array(before.inputs[1])
        if pads is None or pads.shape != (4, 2):
            return None
        _, rows, columns, _ = pads.read().tolist()
        return (rows[0], rows[1]), (columns[0], columns[1])

    def source(self, index: int) -> int:
        """Returns the stored tensor that DENSIFY and DEQUANTIZE turn into a given tensor."""
        for code in (_DEQUANTIZE, _DENSIFY):
            maker = self.makers.get(index)
            if maker is not None and maker.code == code:
                index = maker.inputs[0]
        return index

    def name(self, index: int) -> str:
        return self.tensor(index).text(_NAME) or f"tensor {index}"

    def tensor(self, index: int) -> Table:
        if not 0 <= index < len(self.tensors):
            raise ValueError(f"tensor {index} of {len(self.tensors)}")
        return self.tensors[index]

    def array(self, index: int) -> StoredArray | None:
        """Returns a tensor's stored values, dequantised; None if it stores none."""
        tensor = self.tensor(index)
        buffer = self.buffers[tensor.number(_BUFFER, "<I")]
        shape = tuple(tensor.numbers(_SHAPE, _INT32).tolist())
        name = _TYPES.get(tensor.number(_TYPE, "<b"))
        content = buffer.numbers(_DATA, np.dtype(np.uint8))
        if buffer.number(_FAR_OFFSET, "<Q") > 1:
            size = buffer.number(_FAR_SIZE, "<Q")
            content = view(self.data, buffer.number(_FAR_OFFSET, "<Q"), np.dtype(np.uint8), (size,))
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
