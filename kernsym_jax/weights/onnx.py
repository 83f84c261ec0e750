"""ONNX models: kernels with their strides, paddings, groups and order from the graph."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from kernsym_jax.weights.batch_norm import Norm
from kernsym_jax.weights.conv_kernel import (
    CONV,
    DEPTHWISE,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Weights,
)
from kernsym_jax.weights.kernels import POINTWISE, describe_axes
from kernsym_jax.weights.layout import transposed_to_hwio
from kernsym_jax.weights.names import layer_name
from kernsym_jax.weights.onnx_tensor import (
    ExternalFiles,
    read_tensor,
    tensor_name,
    transposed,
)
from kernsym_jax.weights.protobuf import Message
from kernsym_jax.weights.quantization import dequantized
from kernsym_jax.weights.stored_array import StoredArray, map_file

MAX_DEPTH = 16

# Fields of ModelProto, GraphProto, NodeProto and AttributeProto.
_IR_VERSION, _GRAPH = 1, 7
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_INPUT, _OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _F, _I, _S, _T, _G, _INTS = 1, 2, 3, 4, 5, 6, 8

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
    notes = (f"BatchNorm folded into {walk.folded} of {len(walk.kernels)} kernels",)
    return Weights(
        kernels=walk.kernels,
        skipped=walk.skipped,
        source=os.fspath(path),
        format="ONNX",
        order="forward",
        layout="OIHW (the format's rule)",
        notes=notes if fold_batchnorm else (),
    )


@dataclasses.dataclass(frozen=True)
class _Node:
    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Message]

    def integers(self, name: str, default: list[int]) -> list[int]:
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.integers(_INTS).tolist()

    def integer(self, name: str, default: int) -> int:
        return self.attributes[name].integer(_I) if name in self.attributes else default

    def text(self, name: str) -> str:
        return self.attributes[name].text(_S) if name in self.attributes else ""


class _Walk:
    """A pass over a graph and the graphs inside it, collecting kernels."""

    def __init__(self, files: ExternalFiles, fold_batchnorm: bool):
        self.files = files
        self.fold_batchnorm = fold_batchnorm
        self.kernels: dict[str, ConvKernel] = {}
        self.skipped: dict[str, str] = {}
        self.folded = 0

    def graph(self, graph: Message, outside: Mapping[str, StoredArray], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"graphs nested more than {MAX_DEPTH} deep")
        values = dict(outside)
        stored: list[str] = []
        for tensor in graph.messages(_INITIALIZER):
            stored.append(tensor_name(tensor))
            self.keep(tensor_name(tensor), read_tensor(tensor, self.files), values)
        nodes = [_node(message) for message in graph.messages(_NODE)]
        makers = {output: node for node in nodes for output in node.outputs}
        users: dict[str, list[_Node]] = {}
        for node in nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        used: set[str] = set()
        for node in nodes:
            self.constant(node, values)
            if node.op in _KERNEL_INPUT:
                used |= self.convolution(node, values, makers, users)
            for attribute in node.attributes.values():
                for inner in attribute.messages(_G):
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

    def constant(self, node: _Node, values: dict[str, StoredArray]) -> None:
        """Follows the nodes that a kernel may pass on its way to its convolution."""
        if node.op == "Constant" and node.outputs and "value" in node.attributes:
            for tensor in node.attributes["value"].messages(_T):
                self.keep(node.outputs[0], read_tensor(tensor, self.files), values)
        source = values.get(node.inputs[0]) if node.inputs and node.outputs else None
        if source is None:
            return
        if node.op in ("Identity", "Cast", "QuantizeLinear"):
            values[node.outputs[0]] = source
        elif node.op == "Transpose":
            reverse = list(reversed(range(len(source.shape))))
            values[node.outputs[0]] = transposed(source, tuple(node.integers("perm", reverse)))
        elif node.op == "DequantizeLinear" and source.dtype.kind in "iu":
            known = [values.get(name) for name in node.inputs[1:3]]
            if known and known[0] is not None:
                axis = node.integer("axis", 1)
                # Scales by blocks, as dense layers may have them, leave the value unknown.
                with contextlib.suppress(ValueError):
                    values[node.outputs[0]] = _dequantized(source, known, axis)
        elif node.op == "DequantizeLinear":
            values[node.outputs[0]] = source

    def convolution(
        self,
        node: _Node,
        values: Mapping[str, StoredArray],
        makers: Mapping[str, _Node],
        users: Mapping[str, list[_Node]],
    ) -> set[str]:
        """Adds a convolution's kernel; gives the names of the values that were used for it."""
        index = _KERNEL_INPUT[node.op]
        name = node.inputs[index] if len(node.inputs) > index else ""
        array = values.get(name)
        if array is None:
            self.skipped[name or node.name] = "a kernel that is computed, not stored"
            return set()
        origin = _origin(name, makers)
        if node.op == "QLinearConv":
            array = _dequantized(array, [values.get(name) for name in node.inputs[4:6]], 0)
        if len(array.shape) != 4:
            self.skipped[origin] = f"{len(array.shape) - 2}-D convolution"
        elif array.shape[2:] == (1, 1):
            self.skipped[origin] = POINTWISE
        elif 0 in array.shape:
            self.skipped[origin] = "an empty array"
        elif layer := self.unused_name(origin, node):
            kernel = _kernel(node, array, makers, values)
            self.kernels[layer] = self.fold(kernel, node, values, users)
        return {name, origin}

    def unused_name(self, origin: str, node: _Node) -> str:
        """The layer's name: its kernel's, or its node's where the exporter made the former up."""
        layer = layer_name(origin)
        if _MADE_UP.fullmatch(layer):
            layer = node.name or layer or node.op
        if layer in self.kernels:
            layer = f"{layer} ({node.name or (node.outputs or [''])[0]})"
        return layer

    def fold(
        self,
        kernel: ConvKernel,
        node: _Node,
        values: Mapping[str, StoredArray],
        users: Mapping[str, list[_Node]],
    ) -> ConvKernel:
        following = users.get(node.outputs[0], []) if node.outputs else []
        if not self.fold_batchnorm or [n.op for n in following] != ["BatchNormalization"]:
            return kernel
        (norm,) = following
        scale, variance = values.get(norm.inputs[1]), values.get(norm.inputs[4])
        if scale is None or variance is None or variance.shape != kernel.shape[-1:]:
            return kernel
        epsilon = 1e-5
        if "epsilon" in norm.attributes:
            epsilon = norm.attributes["epsilon"].floating(_F, epsilon)
        self.folded += 1
        return Norm(scale.read(), variance.read(), epsilon).fold(kernel)


def _node(message: Message) -> _Node:
    attributes = message.messages(_ATTRIBUTE)
    return _Node(
        op=message.text(_OP_TYPE),
        name=message.text(_NODE_NAME),
        inputs=message.texts(_INPUT),
        outputs=message.texts(_OUTPUT),
        attributes={attribute.text(_ATTRIBUTE_NAME): attribute for attribute in attributes},
    )


def _origin(name: str, makers: Mapping[str, _Node]) -> str:
    """The stored value that a value was made from."""
    for _ in range(MAX_DEPTH):
        if name not in makers or not makers[name].inputs:
            break
        name = makers[name].inputs[0]
    return name


def _dequantized(array: StoredArray, known: Sequence[StoredArray | None], axis: int) -> StoredArray:
    """The array made numbers by a scale and perhaps a zero point."""
    scale, zero = [*known, None, None][:2]
    if scale is None:
        raise ValueError("a quantised kernel without a stored scale")
    return dequantized(array, scale.read(), None if zero is None else zero.read(), axis)


def _kernel(
    node: _Node,
    array: StoredArray,
    makers: Mapping[str, _Node],
    values: Mapping[str, StoredArray],
) -> ConvKernel:
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
        padding=_padding(node, makers, values),
        dilation=_pair(node.integers("dilations", [1, 1])),
        groups=groups,
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    rows, columns = numbers
    return rows, columns


def _padding(
    node: _Node, makers: Mapping[str, _Node], values: Mapping[str, StoredArray]
) -> Padding | None:
    rule = node.text("auto_pad")
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        return rule.removesuffix("_UPPER")
    top, left, bottom, right = node.integers("pads", [0, 0, 0, 0])
    before = makers.get(node.inputs[0])
    if before is not None and before.op == "Pad":
        pads = before.integers("pads", [])
        if len(before.inputs) > 1 and before.inputs[1] in values:
            pads = values[before.inputs[1]].read().tolist()
        if len(pads) != 8:
            return None
        top, left, bottom, right = (
            own + more
            for own, more in zip((top, left, bottom, right), (*pads[2:4], *pads[6:]), strict=True)
        )
    return (top, bottom), (left, right)
