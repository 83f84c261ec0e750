"""The ways in which ONNX files store a kernel other than as plain (out, in, kh, kw) numbers."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, dequantized
from kernsym_jax.formats.onnx_graph import Graph, Node, walk

BLOCKED = "com.microsoft.nchwc."
"""The domain whose operators ONNX Runtime substitutes for one kind of processor."""

# What may lie between a ConvInteger and the multiplication by its scales.
_ON_THE_WAY = ("Add", "Cast", "Identity")
_MAX_STEPS = 4

Values = Mapping[str, StoredArray]
"""Name -> array that is stored, or made from stored ones."""


def made_once(array: StoredArray) -> StoredArray:
    """The same array, computed when it is first read and kept."""
    return StoredArray(array.shape, array.dtype, functools.cache(array.read))


def dequantize(
    array: StoredArray, values: Values, scale: str, zero: str, axis: int
) -> StoredArray | None:
    """Turns integers into numbers by stored scales, as DequantizeLinear and QLinearConv name them.

    Args:
      array: integers.
      values: the other arrays.
      scale: name of the scales.
      zero: name of the integers that stand for 0; empty for 0 itself.
      axis: which axis has scales of its own.

    Returns:
      The numbers; None if a scale or zero is computed, not stored.

    Raises:
      ValueError: if there is more than one scale and not one for each index of the axis.
    """
    if scale not in values or (zero and zero not in values):
        return None
    zeros = values[zero].read() if zero else None
    return made_once(dequantized(array, values[scale].read(), zeros, axis))


def dequantize_conv_integer(
    node: Node, array: StoredArray, graph: Graph, values: Values
) -> tuple[StoredArray | None, bool]:
    """Turns the kernel of a ConvInteger into numbers; the nodes behind it apply its scales.

    Args:
      node: the convolution.
      array: the integers of its kernel, (out, in, kh, kw).
      graph: the graph that contains it.
      values: the arrays.

    Returns:
      The kernel, None if its zero is computed, not stored; and whether its scales are known.
      Unknown scales count as 1, as if all outputs had the same one.
    """
    zero = node.input(3)
    if zero and zero not in values:
        return None, False
    zeros = values[zero].read() if zero else None
    scale = _scale_behind(node, len(array.shape), graph, values)
    if scale is None or scale.size not in (1, array.shape[0]):
        return made_once(dequantized(array, np.ones(1), zeros, 0)), False
    return made_once(dequantized(array, scale, zeros, 0)), True


def block_size(graph: Graph, values: Values) -> int | None:
    """How many channels ONNX Runtime stored together: 8, 16, or None if the graph leaves it open.

    The numbers of output channels are multiples of it. A convolution that reads an image in plain
    layout has fewer input channels than it, the others have multiples of it.

    Args:
      graph: of the network.
      values: the arrays stored in it.
    """
    sizes = {8, 16}
    for node in (node for inner in walk(graph) for node in inner.nodes):
        kernel = values.get(node.input(1))
        if node.op != f"{BLOCKED}Conv" or kernel is None or len(kernel.shape) != 4:
            continue
        outputs, inputs = kernel.shape[:2]
        if not _reads_blocks(node, graph):
            sizes = {size for size in sizes if inputs < size or node.integer("group", 1) > 1}
        elif node.integer("group", 1) == 1:
            sizes = {size for size in sizes if inputs % size == 0}
        sizes = {size for size in sizes if outputs % size == 0}
    return sizes.pop() if len(sizes) == 1 else None


def unblocked(node: Node, array: StoredArray, graph: Graph, block: int) -> StoredArray:
    """Puts the channels of a kernel of ONNX Runtime's NCHWc operators back in order.

    Args:
      node: the convolution.
      array: its kernel, (out, in, kh, kw) in name; stored as (out / block, in, kh, kw, block), or
        (out / block, in / block, kh, kw, block of in, block of out) if its input is blocked too.
      graph: the graph that contains it.
      block: the number of channels that are stored together.

    Returns:
      The kernel, (out, in, kh, kw), without the channels that only fill the last block.

    Raises:
      ValueError: if its channels are not a multiple of the block.
    """
    outputs, inputs, kh, kw = array.shape
    depthwise = inputs == 1 and node.integer("group", 1) > 1
    inner = block if _reads_blocks(node, graph) and not depthwise else 1
    if outputs % block or inputs % inner:
        raise ValueError(f"{node.layer}: a kernel {array.shape} in blocks of {block} channels")
    stored = (outputs // block, inputs // inner, kh, kw, inner, block)

    @functools.cache
    def read() -> np.ndarray:
        plain = array.read().reshape(stored).transpose(0, 5, 1, 4, 2, 3).reshape(array.shape)
        used_outputs = _used(np.any(plain, (1, 2, 3)), block)
        used_inputs = _used(np.any(plain, (0, 2, 3)), inner)
        return plain[:used_outputs, :used_inputs]

    return StoredArray(read().shape, array.dtype, read)


def _used(channels: Any, block: int) -> int:
    """The number of channels without those at the end that only fill the last block."""
    last = np.flatnonzero(channels[len(channels) - block + 1 :])
    return len(channels) - block + 1 + (int(last[-1]) + 1 if last.size else 0)


def _reads_blocks(node: Node, graph: Graph) -> bool:
    maker = graph.makers.get(node.input(0))
    return maker is not None and maker.op.startswith(BLOCKED) and "ReorderOutput" not in maker.op


def _scale_behind(node: Node, axes: int, graph: Graph, values: Values) -> np.ndarray | None:
    """The scales of the integers of a kernel, (1,) or (out,); None if they are not certain."""
    images = graph.makers.get(node.input(0))
    if images is None or images.op not in ("DynamicQuantizeLinear", "QuantizeLinear"):
        return None
    scale_of_images = images.input(1)
    if images.op == "DynamicQuantizeLinear":
        scale_of_images = images.outputs[1]
    behind = graph.only_user(node)
    before = node
    for _ in range(_MAX_STEPS):
        if behind is None or behind.op not in _ON_THE_WAY:
            break
        before, behind = behind, graph.only_user(behind)
    if behind is None or behind.op != "Mul":
        return None
    products = [graph.makers.get(name) for name in behind.inputs if name not in before.outputs]
    if len(products) != 1 or products[0] is None or products[0].op != "Mul":
        return None
    names = list(products[0].inputs)
    if scale_of_images not in names:
        return None
    names.remove(scale_of_images)
    scale = values.get(names[0]) if names else None
    return None if scale is None else _by_output(scale, axes)


def _by_output(scale: StoredArray, axes: int) -> np.ndarray | None:
    """The scales in one row, if the only axis along which they differ is that of the outputs."""
    shape = (1,) * (axes - len(scale.shape)) + scale.shape
    if len(shape) != axes or shape != (1, shape[1]) + (1,) * (axes - 2):
        return None
    return scale.read().reshape(-1)
