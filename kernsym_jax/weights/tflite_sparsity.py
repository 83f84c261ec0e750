"""TensorFlow Lite's sparse tensors: those of which only some values are stored."""

import math

import numpy as np

from kernsym_jax.weights.flatbuffer import Table

MAX_ELEMENTS = 1 << 24
"""A few stored values can claim any shape; no convolution's kernel is near as large as this."""

# Fields of SparsityParameters, DimensionMetadata and the vectors of indices.
_ORDER, _BLOCKS, _LEVELS = 0, 1, 2
_FORMAT, _SIZE, _SEGMENTS, _INDICES = 0, 1, (2, 3), (4, 5)
_VALUES = 0
_INT32 = np.dtype("<i4")
_INDEX_TYPES: dict[int, np.dtype] = {1: _INT32, 2: np.dtype("<u2"), 3: np.dtype("u1")}


def dense(values: np.ndarray, sparsity: Table, shape: tuple[int, ...]) -> np.ndarray:
    """Puts the stored values of a sparse tensor into their places among zeros.

    The tensor is a tree: each level gives one axis, or the axis inside the blocks that another is
    cut into, either whole or as a list of the indices that are there.

    Args:
      values: (n,), in the order of the tree's leaves.
      sparsity: the tensor's ``SparsityParameters``.
      shape: of the whole tensor.

    Returns:
      The whole tensor.

    Raises:
      ValueError: if the tree does not fit the shape, or its leaves are not as many as the values.

    Reference: ``SparsityParameters`` in tensorflow/compiler/mlir/lite/schema/schema.fbs
    """
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a sparse tensor of shape {shape}, more than {MAX_ELEMENTS} elements")
    order = sparsity.numbers(_ORDER, _INT32).tolist()
    blocks = sparsity.numbers(_BLOCKS, _INT32).tolist()
    levels = sparsity.tables(_LEVELS)
    extents = _extents(order, blocks, levels, shape)
    # Counted before it is built: no more nodes than the file has values or segments for.
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
    """How many indices each level can have."""
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
    """How many nodes a level has."""
    if not _lists_indices(level):
        if level.number(_SIZE, "<i") != extent:
            raise ValueError(f"a level of {level.number(_SIZE, '<i')} instead of {extent}")
        return above * extent
    segments, indices = _vector(level, *_SEGMENTS), _vector(level, *_INDICES)
    if segments.size != above + 1 or segments[0] != 0 or segments[-1] != indices.size:
        raise ValueError(f"{segments.size} segments for {above} nodes and {indices.size} indices")
    return indices.size


def _level(level: Table, above: int, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """For each node of a level the node above it, and its own index along the level's axis."""
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
