"""ONNX models: kernels with their strides, paddings, groups and order from the graph."""

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping

from kernsym_jax.formats.arrays import StoredArray, layer_name, map_file
from kernsym_jax.weights.conv_kernel import (
    CONV,
    DEPTHWISE,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Weights,
)
from kernsym_jax.weights.fold import Norm
from kernsym_jax.weights.kernels import POINTWISE, describe_axes
from kernsym_jax.weights.layout import transposed_to_hwio
from kernsym_jax.weights.onnx_graph import MAX_DEPTH, Graph, Node
from kernsym_jax.weights.onnx_quantization import dequantize, dequantize_conv_integer
from kernsym_jax.weights.onnx_tensor import (
    ExternalFiles,
    read_tensor,
    tensor_name,
    transposed,
)
from kernsym_jax.weights.protobuf import Message

# Fields of ModelProto and GraphProto.
_IR_VERSION, _GRAPH = 1, 7
_NODE, _INITIALIZER = 1, 5

# Where each kind of convolution has its kernel, among its inputs.
_KERNEL_INPUT = {
    "Conv": 1,
    "FusedConv": 1,
    "DeformConv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "QLinearConv": 3,
}
_MADE_UP = re.compile(r"(onnx::.*|/.*|val_\d+|\d*)", re.DOTALL)


def read(path: str | os.PathLike, fold_batchnorm: bool = False) -> Weights:
    """Reads the kernels of every convolution of an ONNX graph, in the order in which it runs.

    The file is mapped and read as it is; neither the onnx library nor a runtime is needed.

    Args:
      path: the model; values in external files must lie in its folder or below.
      fold_batchnorm: multiplies a kernel by the scale of a BatchNormalization that takes the
        convolution's output and nothing else does.

    Raises:
      ValueError: if it is no ONNX model, or is damaged.

    Reference: https://github.com/onnx/onnx/blob/main/docs/IR.md
    """
    model = Message(map_file(path))
    graphs = model.messages(_GRAPH)
    if model.integer(_IR_VERSION) < 1 or len(graphs) != 1:
        raise ValueError("a protocol buffer that is no ONNX model")
    walk = _Walk(ExternalFiles(pathlib.Path(path).parent), fold_batchnorm)
    walk.graph(graphs[0], {}, 0)
    return Weights(
        kernels=walk.kernels,
        skipped=walk.skipped,
        source=os.fspath(path),
        format="ONNX",
        order="forward",
        layout="OIHW (the format's rule)",
        notes=walk.notes(),
    )


class _Walk:
    """A pass over a graph and the graphs inside it, collecting kernels."""

    def __init__(self, files: ExternalFiles, fold_batchnorm: bool):
        self.files = files
        self.fold_batchnorm = fold_batchnorm
        self.kernels: dict[str, ConvKernel] = {}
        self.skipped: dict[str, str] = {}
        self.folded = 0
        self.unscaled = 0

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

    def graph(self, message: Message, outside: Mapping[str, StoredArray], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"graphs nested more than {MAX_DEPTH} deep")
        values = dict(outside)
        stored: list[str] = []
        for tensor in message.messages(_INITIALIZER):
            stored.append(tensor_name(tensor))
            self.keep(tensor_name(tensor), read_tensor(tensor, self.files), values)
        graph = Graph.of([Node.read(node) for node in message.messages(_NODE)], values)
        used: set[str] = set()
        for node in graph.nodes:
            self.constant(node, graph)
            if node.op in _KERNEL_INPUT:
                used |= self.convolution(node, graph)
            for inner in node.graphs():
                self.graph(inner, values, depth + 1)
        for name in stored:
            if name in values and name not in used:
                array = values[name]
                unused = f"4-D array {array.shape}: no convolution's kernel"
                self.skipped[name] = unused if len(array.shape) == 4 else describe_axes(array)

    def keep(self, name: str, array: StoredArray | None, values: dict[str, StoredArray]) -> None:
        if array is None:
            self.skipped[name] = "not an array of numbers"
        else:
            values[name] = array

    def constant(self, node: Node, graph: Graph) -> None:
        """Follows the nodes that a kernel may pass on its way to its convolution."""
        values = graph.values
        if node.op == "Constant" and node.outputs:
            for tensor in node.tensors("value"):
                self.keep(node.outputs[0], read_tensor(tensor, self.files), values)
        source = values.get(node.input(0)) if node.outputs else None
        if source is None:
            return
        if node.op in ("Identity", "Cast", "QuantizeLinear"):
            values[node.outputs[0]] = source
        elif node.op == "Transpose":
            reverse = list(reversed(range(len(source.shape))))
            values[node.outputs[0]] = transposed(source, tuple(node.integers("perm", reverse)))
        elif node.op == "DequantizeLinear" and source.dtype.kind in "iu":
            # Scales by blocks, as dense layers may have them, leave the value unknown.
            with contextlib.suppress(ValueError):
                axis = node.integer("axis", 1)
                known = dequantize(source, graph, node.input(1), node.input(2), axis)
                if known is not None:
                    values[node.outputs[0]] = known
        elif node.op == "DequantizeLinear":
            values[node.outputs[0]] = source

    def convolution(self, node: Node, graph: Graph) -> set[str]:
        """Adds a convolution's kernel; gives the names of the values that were used for it."""
        name = node.input(_KERNEL_INPUT[node.op])
        array = graph.values.get(name)
        if array is None:
            self.skipped[name or node.name] = "a kernel that is computed, not stored"
            return set()
        origin = graph.origin(name)
        if len(array.shape) != 4:
            self.skipped[origin] = f"{len(array.shape) - 2}-D convolution"
        elif array.shape[2:] == (1, 1):
            self.skipped[origin] = POINTWISE
        elif 0 in array.shape:
            self.skipped[origin] = "an empty array"
        elif (numbers := self.numbers(node, array, graph)) is None:
            self.skipped[origin] = "integers whose scale or zero is computed, not stored"
        elif layer := self.unused_name(origin, node):
            self.kernels[layer] = self.fold(_kernel(node, numbers, graph), node, graph)
        return {name, origin}

    def numbers(self, node: Node, array: StoredArray, graph: Graph) -> StoredArray | None:
        """A kernel's values, if need be from its integers; None if they cannot be known."""
        if node.op == "QLinearConv":
            return dequantize(array, graph, node.input(4), node.input(5), 0)
        if node.op == "ConvInteger":
            numbers, scaled = dequantize_conv_integer(node, array, graph)
            self.unscaled += numbers is not None and not scaled
            return numbers
        return array

    def unused_name(self, origin: str, node: Node) -> str:
        """The layer's name: its kernel's, or its node's where the exporter made the former up."""
        layer = layer_name(origin)
        if _MADE_UP.fullmatch(layer):
            layer = node.name or layer or node.op
        if layer in self.kernels:
            layer = f"{layer} ({node.name or (node.outputs or [''])[0]})"
        return layer

    def fold(self, kernel: ConvKernel, node: Node, graph: Graph) -> ConvKernel:
        norm = graph.only_user(node)
        if not self.fold_batchnorm or norm is None or norm.op != "BatchNormalization":
            return kernel
        scale, variance = graph.values.get(norm.inputs[1]), graph.values.get(norm.inputs[4])
        if scale is None or variance is None or variance.shape != kernel.shape[-1:]:
            return kernel
        self.folded += 1
        return Norm(scale.read(), variance.read(), norm.floating("epsilon", 1e-5)).fold(kernel)


def _kernel(node: Node, array: StoredArray, graph: Graph) -> ConvKernel:
    groups = node.integer("group", 1)
    outputs, inputs = array.shape[:2]
    if groups < 1 or outputs % groups:
        raise ValueError(f"{node.name or node.op} has {groups} groups for {outputs} channels")
    weight = array.read()
    if node.op == "ConvTranspose":
        kind = TRANSPOSED
        weight = transposed_to_hwio(weight, groups)
    else:
        kind = DEPTHWISE if inputs == 1 < groups else CONV
        weight = weight.transpose(2, 3, 1, 0)
    return ConvKernel(
        weight,
        kind,
        stride=_pair(node.integers("strides", [1, 1])),
        padding=_padding(node, graph),
        dilation=_pair(node.integers("dilations", [1, 1])),
        groups=groups,
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    rows, columns = numbers
    return rows, columns


def _padding(node: Node, graph: Graph) -> Padding | None:
    rule = node.text("auto_pad")
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        return rule.removesuffix("_UPPER")
    top, left, bottom, right = node.integers("pads", [0, 0, 0, 0])
    before = graph.makers.get(node.input(0))
    if before is not None and before.op == "Pad":
        pads = before.integers("pads", [])
        if before.input(1) in graph.values:
            pads = graph.values[before.input(1)].read().tolist()
        if len(pads) != 8:
            return None
        top, left, bottom, right = (
            own + more
            for own, more in zip((top, left, bottom, right), (*pads[2:4], *pads[6:]), strict=True)
        )
    return (top, bottom), (left, right)
