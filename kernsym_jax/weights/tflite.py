"""Reads TensorFlow Lite models: dequantised kernels with strides and paddings from the graph."""

import os

from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.formats.tflite_graph import (
    CONV_2D,
    DEPTHWISE_CONV_2D,
    TRANSPOSE_CONV,
    Graph,
    Operator,
    read_graphs,
)
from kernsym_jax.weights.kernels import POINTWISE, describe_axes
from kernsym_jax.weights.layout import (
    CONV,
    DEPTHWISE,
    OHWI,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Weights,
    axes_to_hwio,
)

_PAD, _SPACE_TO_BATCH = 34, 38


def read(path: str | os.PathLike) -> Weights:
    """Reads the kernels of every convolution of a TensorFlow Lite model, in graph order.

    Args:
      path: the model, in which the converter has folded every BatchNorm already.

    Raises:
      ValueError: if the file is not such a model, or is damaged.
    """
    kernels: dict[str, ConvKernel] = {}
    skipped: dict[str, str] = {}
    for graph in read_graphs(path):
        _collect(graph, kernels, skipped)
    return Weights(
        kernels=kernels,
        skipped=skipped,
        source=os.fspath(path),
        format="TensorFlow Lite",
        order="forward",
        layout="OHWI (the format's rule)",
        notes=("BatchNorm is folded: the converter does it",),
    )


def _collect(graph: Graph, kernels: dict[str, ConvKernel], skipped: dict[str, str]) -> None:
    """Adds the kernels of a graph, and the reasons why its other arrays are none."""
    layers = graph.kernels()
    for operator in graph.operators:
        if operator.code not in (CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV):
            continue
        index = graph.source(operator.inputs[1])
        name, array = layers.pop(index, None), graph.array(index)
        if name is None:  # a kernel that several convolutions share is one
            continue
        if array is None or len(array.shape) != 4 or 0 in array.shape:
            skipped[name] = "a kernel that is computed, not stored"
        elif array.shape[1:3] == (1, 1):
            skipped[name] = POINTWISE
        else:
            layer = name if name not in kernels else f"{name} ({index})"
            kernels[layer] = _kernel(graph, operator, array)
    used = graph.kernels()
    for index in range(len(graph.tensors)):
        array = graph.array(index) if index not in used else None
        if array is not None and array.shape:
            plain = describe_axes(array)
            unused = f"4-D array {array.shape}: not the kernel of a convolution"
            skipped[graph.name(index)] = unused if len(array.shape) == 4 else plain


def _kernel(graph: Graph, operator: Operator, array: StoredArray) -> ConvKernel:
    weight = array.read()
    _, kh, kw, last = weight.shape
    depthwise = operator.code == DEPTHWISE_CONV_2D
    dilation = (1, 1)
    if depthwise:
        kind, weight = DEPTHWISE, weight.reshape(kh, kw, 1, last)
        dilation = operator.option(6, default=1), operator.option(5, default=1)
    else:
        kind = TRANSPOSED if operator.code == TRANSPOSE_CONV else CONV
        weight = weight.transpose(axes_to_hwio(OHWI))
        if kind == CONV:
            dilation = operator.option(5, default=1), operator.option(4, default=1)
    multiplier = max(operator.option(3), 1) if depthwise else 1
    block = _block(graph, operator)
    if block is not None:
        dilation = block
    return ConvKernel(
        weight,
        kind,
        stride=(operator.option(2), operator.option(1)),
        padding=_padding(graph, operator),
        dilation=dilation,
        groups=last // multiplier if depthwise else None,
    )


def _block(graph: Graph, operator: Operator) -> tuple[int, int] | None:
    """Returns the dilation that SPACE_TO_BATCH_ND in front of a layer stands for."""
    before = graph.makers.get(operator.inputs[0])
    if before is None or before.code != _SPACE_TO_BATCH:
        return None
    sizes = graph.array(before.inputs[1])
    if sizes is None or sizes.shape != (2,):
        return None
    rows, columns = sizes.read().tolist()
    return int(rows), int(columns)


def _padding(graph: Graph, operator: Operator) -> Padding | None:
    """Returns the padding of a layer, including that of a PAD in front of it.

    It is unknown if the layer reads blocks of a map: what is cut off behind it counts too.
    """
    if _block(graph, operator) is not None:
        return None
    if operator.option(0, "<b") == 0:
        return "SAME"
    transposed = operator.code == TRANSPOSE_CONV
    images = operator.inputs[-1] if transposed else operator.inputs[0]
    before = graph.makers.get(images)
    if before is None or before.code != _PAD:
        return (0, 0), (0, 0)
    pads = graph.array(before.inputs[1])
    if pads is None or pads.shape != (4, 2):
        return None
    _, rows, columns, _ = pads.read().tolist()
    return (rows[0], rows[1]), (columns[0], columns[1])
