"""ONNX's three ways to keep a kernel as integers."""

import numpy as np

from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.formats.quantization import dequantized
from kernsym_jax.weights.onnx_graph import Graph, Node

# What may lie between a ConvInteger and the multiplication by its scales.
_ON_THE_WAY = ("Add", "Cast", "Identity")
_MAX_STEPS = 4


def dequantize(
    array: StoredArray, graph: Graph, scale: str, zero: str, axis: int
) -> StoredArray | None:
    """Integers made numbers by stored scales, as DequantizeLinear and QLinearConv name them.

    Args:
      array: integers.
      graph: where the other values are.
      scale: name of the scales.
      zero: name of the integers that stand for 0; empty for 0 itself.
      axis: which axis has scales of its own.

    Returns:
      The numbers; None if a scale or zero is computed, not stored.

    Raises:
      ValueError: if there are more scales than one and not as many as the axis is long.
    """
    if scale not in graph.values or (zero and zero not in graph.values):
        return None
    zeros = graph.values[zero].read() if zero else None
    return dequantized(array, graph.values[scale].read(), zeros, axis)


def dequantize_conv_integer(
    node: Node, array: StoredArray, graph: Graph
) -> tuple[StoredArray | None, bool]:
    """The kernel of a ConvInteger, which leaves its scales to the nodes behind it.

    Args:
      node: the convolution.
      array: its kernel's integers, (out, in, kh, kw).
      graph: the graph that it is in.

    Returns:
      The kernel, None if its zero is computed, not stored; and whether its scales are known. If
      they are not they count as 1, as if no output had another than the others.
    """
    zero = node.input(3)
    if zero and zero not in graph.values:
        return None, False
    zeros = graph.values[zero].read() if zero else None
    scale = _scale_behind(node, len(array.shape), graph)
    if scale is None or scale.size not in (1, array.shape[0]):
        return dequantized(array, np.ones(1), zeros, 0), False
    return dequantized(array, scale, zeros, 0), True


def _scale_behind(node: Node, axes: int, graph: Graph) -> np.ndarray | None:
    """What scales the kernel's integers, (1,) or (out,), where it is sure which number that is."""
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
    scale = graph.values.get(names[0])
    return None if scale is None else _by_output(scale, axes)


def _by_output(scale: StoredArray, axes: int) -> np.ndarray | None:
    """The scales as a line, if the one axis that they differ along is that of the outputs."""
    shape = (1,) * (axes - len(scale.shape)) + scale.shape
    outputs = shape[1]
    return scale.read().reshape(-1) if shape == (1, outputs) + (1,) * (axes - 2) else None
