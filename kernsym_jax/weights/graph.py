"""Reads models that keep their graph, ONNX and TensorFlow Lite: kernels in the order of the graph.

Strides, paddings and groups come from the operators. `weights.keras` reads Keras models.
"""

import contextlib
import math
import os
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping

import numpy as np

from kernsym_jax.formats import tflite_graph
from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.formats.onnx_graph import (
    COMPUTED,
    KERNEL_INPUT,
    PASSES,
    Graph,
    Model,
    Node,
    evaluated,
    is_channels_last,
    is_height_first,
    on_the_way_to_kernels,
    read_model,
    size_of_result,
)
from kernsym_jax.formats.tflite_graph import (
    CONV_2D,
    DEPTHWISE_CONV_2D,
    TRANSPOSE_CONV,
    Operator,
    read_graphs,
)
from kernsym_jax.weights import fold
from kernsym_jax.weights.fold import Norm
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
    transposed_to_hwio,
)

_MAX_USES = 64
_BLOCKS = (
    "stored by ONNX Runtime in blocks of 8 or 16 channels, and the file does not say which: save "
    "the model without its layout optimization"
)
_QUANTIZED = ("QLinearConv", "com.microsoft.QLinearConv")
# Codes of operators of TensorFlow Lite.
_PAD, _SPACE_TO_BATCH = 34, 38


def read_onnx(path: str | os.PathLike, *, fold_batchnorm: bool = False) -> Weights:
    """Reads the kernels of every convolution of an ONNX graph, in the order in which it runs.

    Args:
      path: the model; values in external files must lie in its folder or below.
      fold_batchnorm: multiplies a kernel by the scale of a BatchNormalization that is the only
        operator to take the convolution's output.

    Raises:
      ValueError: if it is no ONNX model, is damaged, or stores every kernel in an order that it
        does not tell.

    Reference: https://github.com/onnx/onnx/blob/main/docs/IR.md
    """
    model = read_model(path)
    walk = _Walk(model, fold_batchnorm)
    walk.graph(model.graph, {})
    if not walk.kernels and _BLOCKS in walk.skipped.values():
        raise ValueError(f"its kernels are {_BLOCKS}")
    return Weights(
        kernels=walk.kernels,
        skipped=walk.skipped,
        source=os.fspath(path),
        format="ONNX",
        order="forward",
        layout="OIHW (the format's rule)",
        notes=walk.notes(),
        first=walk.first,
    )


class _Walk:
    """A pass over a graph and the graphs inside it that collects kernels."""

    def __init__(self, model: Model, fold_batchnorm: bool):
        stored = {name: array for name, array in model.graph.arrays.items() if array is not None}
        self.opsets = model.proto.opset_import
        self.needed: set[str] = set()
        self.parts: dict[str, set[str]] = {}
        self.fold_batchnorm = fold_batchnorm
        self.kernels: dict[str, ConvKernel] = {}
        self.skipped: dict[str, str] = {}
        self.first: str | None = None
        self.folded = 0
        self.unscaled = 0
        self.uses: Counter[str] = Counter()
        self.block = fold.block_size(model.graph, stored)
        # Integers become numbers of four times their size, once for each kernel.
        self.room = (64 << 20) + 8 * sum(
            math.prod(array.shape) * array.dtype.itemsize for array in stored.values()
        )
        self.spent: set[StoredArray] = set()
        self.made: dict[tuple[StoredArray | None, ...], StoredArray | None] = {}

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.unscaled:
            notes.append(
                f"the scales of {self.unscaled} kernels of integers are unknown: if outputs have "
                "scales of their own, they are weighted unlike in the network"
            )
        if self.fold_batchnorm:
            notes.append(f"BatchNorm folded into {self.folded} of {len(self.kernels)} kernels")
        return tuple(notes)

    def graph(self, graph: Graph, outside: MutableMapping[str, StoredArray]) -> set[str]:
        values: MutableMapping[str, StoredArray] = ChainMap({}, outside)
        for name, array in graph.arrays.items():
            self.keep(name, array, values)
        used: set[str] = set()
        self.needed = on_the_way_to_kernels(graph)
        for node in graph.nodes:
            self.constant(node, values)
            if node.layer is not None:
                used |= self.convolution(node, node.layer, graph, values)
            elif "Conv" in node.op:
                for name in node.inputs:
                    self.unknown(name, node, values)
            for inner in node.graphs:
                used |= self.graph(inner, values)
        for name in graph.arrays:
            if name in values and name not in used and name not in self.skipped:
                array = values[name]
                unused = f"4-D array {array.shape}: no convolution's kernel"
                self.skipped[name] = unused if len(array.shape) == 4 else describe_axes(array)
        return used

    def keep(
        self, name: str, array: StoredArray | None, values: MutableMapping[str, StoredArray]
    ) -> None:
        if array is None:
            self.skipped[name] = "not an array of numbers, or a sparse one that is too large"
        else:
            values[name] = array

    def unknown(self, name: str, node: Node, values: MutableMapping[str, StoredArray]) -> None:
        if name in values and len(values[name].shape) == 4:
            self.skipped[name] = f"a kernel of {node.op}, which is an unknown operator"

    def constant(self, node: Node, values: MutableMapping[str, StoredArray]) -> None:
        """Follows the nodes that a kernel may pass on its way to its convolution."""
        if node.op == "Constant" and node.outputs:
            for name in ("value", "sparse_value"):
                if name in node.attributes:
                    array = node.attributes[name]
                    known = array if isinstance(array, StoredArray) else None
                    self.keep(node.outputs[0], known, values)
        source = values.get(node.input(0)) if node.outputs else None
        if source is None:
            return
        if node.op == "Transpose":
            reverse = list(range(len(source.shape)))[::-1]
            values[node.outputs[0]] = _transposed(source, tuple(node.integers("perm", reverse)))
        elif node.op in COMPUTED and node.outputs[0] in self.needed:
            self.computed(node, values)
        elif node.op in PASSES:
            values[node.outputs[0]] = source
            if "Dequantize" in node.op and source.dtype.kind in "iu":
                del values[node.outputs[0]]
                # Scales by blocks, as dense layers may have them, leave the value unknown.
                with contextlib.suppress(ValueError):
                    axis = node.integer("axis", 1)
                    numbers = fold.dequantize(source, values, node.input(1), node.input(2), axis)
                    if numbers is not None:
                        values[node.outputs[0]] = numbers

    def computed(self, node: Node, values: MutableMapping[str, StoredArray]) -> None:
        """Computes a node from stored arrays, such as a weight and its mask."""
        names = [name for name in node.inputs if name]
        if not all(name in values for name in names):
            return
        size = size_of_result(node, [values[name].shape for name in names])
        if 4 * size > self.room:
            raise ValueError(f"{node.name or node.op}: it makes a kernel of {size} elements")
        result = evaluated(node, {name: values[name].read() for name in names}, self.opsets)
        if result is not None:
            values[node.outputs[0]] = StoredArray.of(result)
            self.spend(values[node.outputs[0]])
            self.parts[node.outputs[0]] = set().union(*(self.parts.get(n, {n}) for n in names))

    def convolution(
        self, node: Node, layer: str, graph: Graph, values: MutableMapping[str, StoredArray]
    ) -> set[str]:
        """Adds a convolution's kernel; returns the names of the values that it is made from."""
        self.first = self.first or layer
        name = node.input(KERNEL_INPUT[node.op])
        array = values.get(name)
        if array is None:
            self.skipped[name or node.name] = "a kernel that is computed, not stored"
            return set()
        origin = node.origin or name
        self.uses[name] += 1
        if self.uses[name] > _MAX_USES:
            self.skipped[layer] = f"its kernel {origin} is used more than {_MAX_USES} times"
            return {name, origin}
        parts = self.parts.get(name, set())
        self.skipped |= dict.fromkeys(parts - {origin}, fold.PART)
        reason = self.reason(node, array)
        numbers = None if reason else self.numbers(node, array, graph, values)
        if numbers is None:
            self.skipped[origin] = reason or "integers whose scale or zero is computed, not stored"
        else:
            self.spend(numbers)
            self.kernels[layer] = self.kernel(node, numbers, graph, values)
        return {name, origin}

    def reason(self, node: Node, array: StoredArray) -> str | None:
        """Returns why a convolution's kernel is left out; None if it is read."""
        if len(array.shape) != 4:
            return f"{len(array.shape) - 2}-D convolution"
        first = 1 if is_height_first(node, array.shape) else 2
        if array.shape[first : first + 2] == (1, 1):
            return POINTWISE
        if 0 in array.shape:
            return "an empty array"
        if node.op.startswith(fold.BLOCKED) and self.block is None:
            return _BLOCKS
        return None

    def numbers(
        self, node: Node, array: StoredArray, graph: Graph, values: Mapping[str, StoredArray]
    ) -> StoredArray | None:
        """Returns a kernel's values, made from integers or blocks if needed; None if unknown."""
        if node.op in _QUANTIZED:
            scale, zero = node.input(4), node.input(5)
            parts = (array, values.get(scale), values.get(zero))
            if parts not in self.made:
                self.made[parts] = fold.dequantize(array, values, scale, zero, 0)
            return self.made[parts]
        if node.op == "ConvInteger":
            numbers, scaled = fold.dequantize_conv_integer(node, array, graph, values)
            self.unscaled += numbers is not None and not scaled
            return numbers
        if node.op.startswith(fold.BLOCKED):
            return fold.unblocked(node, array, graph, self.block or 1)
        return _transposed(array, (0, 3, 1, 2)) if is_height_first(node, array.shape) else array

    def kernel(
        self, node: Node, array: StoredArray, graph: Graph, values: Mapping[str, StoredArray]
    ) -> ConvKernel:
        groups = node.integer("group", 1)
        outputs, inputs = array.shape[:2]
        channels = inputs if node.op == "ConvTranspose" else outputs
        if groups < 1 or channels % groups:
            raise ValueError(f"{node.layer} has {groups} groups for {channels} channels")
        weight = array.read()
        if node.op == "ConvTranspose":
            kind = TRANSPOSED
            weight = transposed_to_hwio(weight, groups)
        else:
            kind = DEPTHWISE if inputs == 1 < groups else CONV
            weight = weight.transpose(2, 3, 1, 0)
        kernel = ConvKernel(
            weight,
            kind,
            stride=_pair(node.integers("strides", [1, 1])),
            padding=_padding(node, graph, values),
            dilation=_pair(node.integers("dilations", [1, 1])),
            groups=groups,
        )
        return self.fold(kernel, node, graph, values) if self.fold_batchnorm else kernel

    def fold(
        self, kernel: ConvKernel, node: Node, graph: Graph, values: Mapping[str, StoredArray]
    ) -> ConvKernel:
        norm = graph.only_user(node)
        if norm is None or norm.op != "BatchNormalization":
            return kernel
        scale, variance = values.get(norm.input(1)), values.get(norm.input(4))
        if scale is None or variance is None or variance.shape != kernel.shape[-1:]:
            return kernel
        self.folded += 1
        self.spend(StoredArray(kernel.shape, np.dtype(np.float32), lambda: kernel.weight))
        return Norm(scale.read(), variance.read(), norm.floating("epsilon", 1e-5)).fold(kernel)

    def spend(self, array: StoredArray) -> None:
        """Counts the memory of an array, once, and refuses a file whose kernels need too much."""
        if array not in self.spent:
            self.spent.add(array)
            self.room -= math.prod(array.shape) * array.dtype.itemsize
        if self.room < 0:
            raise ValueError("its kernels need many times the memory of its arrays")


def _transposed(array: StoredArray, axes: tuple[int, ...]) -> StoredArray:
    """Returns the array with its axes in another order."""
    if sorted(axes) != list(range(len(array.shape))):
        raise ValueError(f"an array of shape {array.shape} has no axes {axes} to exchange")
    shape = tuple(array.shape[axis] for axis in axes)
    return StoredArray(shape, array.dtype, lambda: np.transpose(array.read(), axes))


def _pair(numbers: list[int]) -> tuple[int, int]:
    rows, columns = numbers
    return rows, columns


def _padding(node: Node, graph: Graph, values: Mapping[str, StoredArray]) -> Padding | None:
    rule = node.text("auto_pad")
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        return rule.removesuffix("_UPPER")
    top, left, bottom, right = node.integers("pads", [0, 0, 0, 0])
    before = graph.makers.get(node.input(0))
    if before is not None and before.op == "Pad":
        pads = before.integers("pads", [])
        if before.input(1) in values:
            pads = values[before.input(1)].read().reshape(-1).tolist()
        if len(pads) != 8 or before.input(3):
            return None
        first = 1 if is_channels_last(node) else 2
        ends = (*pads[first : first + 2], *pads[first + 4 : first + 6])
        top, left, bottom, right = (
            own + more for own, more in zip((top, left, bottom, right), ends, strict=True)
        )
    return (top, bottom), (left, right)


def read_tflite(path: str | os.PathLike) -> Weights:
    """Reads the kernels of every convolution of a TensorFlow Lite model, in graph order.

    Args:
      path: the model, in which the converter has folded every BatchNorm already.

    Raises:
      ValueError: if the file is not such a model, or is damaged.
    """
    kernels: dict[str, ConvKernel] = {}
    skipped: dict[str, str] = {}
    graphs = read_graphs(path)
    for graph in graphs:
        _collect_tflite(graph, kernels, skipped)
    return Weights(
        kernels=kernels,
        skipped=skipped,
        source=os.fspath(path),
        format="TensorFlow Lite",
        order="forward",
        layout="OHWI (the format's rule)",
        notes=("BatchNorm is folded: the converter does it",),
        first=next((layer for graph in graphs for layer in graph.kernels().values()), None),
    )


def _collect_tflite(
    graph: tflite_graph.Graph, kernels: dict[str, ConvKernel], skipped: dict[str, str]
) -> None:
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
            kernels[layer] = _tflite_kernel(graph, operator, array)
    used = graph.kernels()
    for index in range(len(graph.tensors)):
        array = graph.array(index) if index not in used else None
        if array is not None and array.shape:
            plain = describe_axes(array)
            unused = f"4-D array {array.shape}: not the kernel of a convolution"
            skipped[graph.name(index)] = unused if len(array.shape) == 4 else plain


def _tflite_kernel(graph: tflite_graph.Graph, operator: Operator, array: StoredArray) -> ConvKernel:
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
    block = _tflite_block(graph, operator)
    if block is not None:
        dilation = block
    return ConvKernel(
        weight,
        kind,
        stride=(operator.option(2), operator.option(1)),
        padding=_tflite_padding(graph, operator),
        dilation=dilation,
        groups=last // multiplier if depthwise else None,
    )


def _tflite_block(graph: tflite_graph.Graph, operator: Operator) -> tuple[int, int] | None:
    """Returns the dilation that SPACE_TO_BATCH_ND in front of a layer stands for."""
    before = graph.makers.get(operator.inputs[0])
    if before is None or before.code != _SPACE_TO_BATCH:
        return None
    sizes = graph.array(before.inputs[1])
    if sizes is None or sizes.shape != (2,):
        return None
    rows, columns = sizes.read().tolist()
    return int(rows), int(columns)


def _tflite_padding(graph: tflite_graph.Graph, operator: Operator) -> Padding | None:
    """Returns the padding of a layer, including that of a PAD in front of it.

    It is unknown if the layer reads blocks of a map, because crops behind the layer count too.
    """
    if _tflite_block(graph, operator) is not None:
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
