"""The audit of an ONNX file: the same rows as of a JAX function."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from kernsym_jax.geometry import onnx_shapes, weight_path
from kernsym_jax.geometry.arithmetic import Windows, padding_amounts
from kernsym_jax.geometry.axis import Axes, Source, unknown, whole
from kernsym_jax.geometry.layer import LayerGeometry
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.onnx_graph import OnnxGraph, attributes, read_graph
from kernsym_jax.geometry.onnx_shapes import Values

# Where each kind of convolution has its kernel, among its inputs.
_CONVOLUTIONS = {
    "Conv": 1,
    "FusedConv": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "ConvTranspose": 1,
}
_POOLS = {"MaxPool": "max_pool", "AveragePool": "avg_pool", "LpPool": "pool"}
_RULES = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}


def audit_onnx(
    path: str | os.PathLike, input_size: int | Sequence[int] | None = None
) -> list[LayerGeometry]:
    """Reads the geometry of every convolution and pooling window off an ONNX file.

    Shapes are inferred for the given input size; weights are not read. Pads, slices and
    concatenations in front of a layer are counted as its padding, whatever the exporter made of
    them, and a window that hangs over the far end (``ceil_mode``) as padding there. A layer is
    named by its weights, ``layer1.0.conv1`` for ``layer1.0.conv1.weight``, or by its node where the
    exporter made up the weights' name.

    Args:
      path: the model.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for those that the model is fixed to.

    Returns:
      A row per layer, in the order of the graph.

    Raises:
      ValueError: naming the file, if it is no ONNX model or is cut, for images of dynamic size
        without an ``input_size``, for a shape that cannot be inferred; and the layer, for an empty
        map or a kernel larger than its padded input.
      FileNotFoundError: if there is no such file.
    """
    graph = read_graph(path, input_size)
    try:
        return _Walk(graph).rows()
    except ValueError as error:
        raise ValueError(f"{graph.path}: {error}") from None
    except (LookupError, TypeError, ArithmeticError) as error:
        # A node lacks an input or attribute that its operator asks for, or has one of another kind.
        raise ValueError(f"{graph.path}: a damaged graph ({error!r})") from error


class _Walk:
    """A pass over a graph and the graphs inside it."""

    def __init__(self, graph: OnnxGraph):
        self.graph = graph
        self.network = Network()
        self.values = Values(self.network, graph)
        self.names: set[str] = set()

    def rows(self) -> list[LayerGeometry]:
        values = self.values
        stored = {tensor.name for tensor in self.graph.proto.initializer}
        inputs = [value.name for value in self.graph.proto.input if value.name not in stored]
        for number, name in enumerate(inputs, start=1):
            rows = frozenset({-number})
            axes = [whole(Source(size, rows)) for size in values.shapes.get(name, ())]
            values.keep(name, tuple(axes) if name in values.shapes else None)
        self.run(self.graph.proto)
        for output in self.graph.proto.output:
            self.network.leave(values.axes.get(output.name) or ())
        return self.network.rows()

    def run(self, proto: Any) -> None:
        self.values.store(proto)
        for node in proto.node:
            self.node(node)

    def node(self, node: Any) -> None:
        given = attributes(node)
        if not any(name in self.values.depends for name in node.input):
            inner = [name for a in node.attribute if a.HasField("g") for name in _read(a.g)]
            if not any(name in self.values.depends for name in inner):
                self.values.constant(node, given)
                return
        if node.op_type in _CONVOLUTIONS:
            self.convolution(node, given)
        elif node.op_type in _POOLS:
            self.pool(node, given)
        elif node.op_type == "If":
            self.branches(node, given)
        elif node.op_type in ("Loop", "Scan"):
            self.loop(node, given)
        else:
            onnx_shapes.apply(self.values, node, given)

    def convolution(self, node: Any, given: dict[str, Any]) -> None:
        weight = node.input[_CONVOLUTIONS[node.op_type]]
        layer = self.name(node, weight)
        if weight not in self.values.shapes:
            raise ValueError(f"{layer}: the shape of its weights cannot be inferred")
        axes, shape = self.input(node, layer)
        outputs, inputs, *kernel = self.values.shapes[weight]
        n, groups = len(kernel), given.get("group", 1)
        stride = list(given.get("strides", [1] * n))
        dilation = list(given.get("dilations", [1] * n))
        window = {"groups": groups, "upsampling": [1] * n}
        if node.op_type == "ConvTranspose":
            kind, channels = "transposed", inputs * groups
            padding = _spread_padding(given, shape[2:], kernel, stride, dilation)
            window["upsampling"], stride = stride, [1] * n
        else:
            kind, channels = "depthwise" if 1 < groups == shape[1] else "conv", outputs
            padding = _padding(given, shape[2:], kernel, stride, dilation)
        made = self.network.window(
            layer, kind, axes[2:], shape[2:], kernel, stride, dilation, padding, **window
        )
        features = unknown(channels, "feature")
        self.values.keep(node.output[0], (axes[0] or unknown(shape[0]), features, *made))

    def pool(self, node: Any, given: dict[str, Any]) -> None:
        kind, kernel = _POOLS[node.op_type], list(given["kernel_shape"])
        axes, shape = self.input(node, node.name or kind)
        n = len(kernel)
        stride = list(given.get("strides", [1] * n))
        dilation = list(given.get("dilations", [1] * n))
        padding = _padding(given, shape[2:], kernel, stride, dilation)
        outputs = None
        if given.get("ceil_mode", 0):
            outputs = list(map(_with_overhang, shape[2:], kernel, stride, padding, dilation))
        made = self.network.window(
            None, kind, axes[2:], shape[2:], kernel, stride, dilation, padding, outputs=outputs
        )
        self.values.keep(node.output[0], (*axes[:2], *made))

    def input(self, node: Any, layer: str) -> tuple[Axes, tuple[int, ...]]:
        """The map that a layer reads."""
        axes = self.values.axes.get(node.input[0])
        if axes is None:
            raise ValueError(f"{layer}: the size of its input cannot be inferred")
        axes = self.network.settle(axes)
        return axes, self.values.shapes[node.input[0]]

    def name(self, node: Any, weight: str) -> str:
        origin = self.values.origins.get(weight, "")
        layer = weight_path.stored_layer(origin)
        if weight_path.is_made_up(layer):
            layer = node.name or layer or node.op_type
        if layer in self.names:
            layer = f"{layer} ({node.name or node.output[0]})"
        self.names.add(layer)
        return layer

    def branches(self, node: Any, given: dict[str, Any]) -> None:
        graphs = [given["then_branch"], given["else_branch"]]
        self.network.branches([functools.partial(self.run, graph) for graph in graphs])
        for i, name in enumerate(node.output):
            results = [graph.output[i].name for graph in graphs]
            known = [self.values.axes.get(result) for result in results]
            maps = [axes for axes in known if axes is not None]
            same = len({self.values.shapes.get(r) for r in results}) == 1
            self.values.keep(name, self.network.merge(maps) if maps and same else None)

    def loop(self, node: Any, given: dict[str, Any]) -> None:
        body, turns = given["body"], 1
        if node.op_type == "Loop":
            limit = self.values.consts.get(node.input[0])
            turns = 1 if limit is None else max(int(limit), 1)
        for outside, inside in zip(node.input, body.input, strict=False):
            shape = self.values.shapes.get(outside)
            if node.op_type == "Loop" and shape is not None:
                same = self.values.shapes.setdefault(inside.name, shape) == shape
                self.values.keep(inside.name, self.values.axes.get(outside) if same else None)
            else:
                self.values.keep(inside.name, None)
        with self.network.loop(turns):
            self.run(body)
        carried = len(node.input) - 2 if node.op_type == "Loop" else 0
        for i, name in enumerate(node.output):
            inside = body.output[i + 1].name if i < carried else ""
            self.values.keep(name, self.values.axes.get(inside))


def _padding(
    given: dict[str, Any],
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    rule, n = given.get("auto_pad", "NOTSET"), len(kernel)
    if rule in _RULES:
        axes = zip(sizes, kernel, stride, [_RULES[rule]] * n, dilation, strict=True)
        return [padding_amounts(*axis) for axis in axes]  # type: ignore[misc]  # one axis: a pair
    pads = given.get("pads", [0] * (2 * n))
    return list(zip(pads[:n], pads[n:], strict=True))


def _spread_padding(
    given: dict[str, Any],
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """What a transposed convolution's windows see around its spread input.

    Reference: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    n, rule = len(kernel), given.get("auto_pad", "NOTSET")
    more = given.get("output_padding", [0] * n)
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    pads = given.get("pads", [0] * (2 * n))
    cut = list(zip(pads[:n], pads[n:], strict=True))
    wanted = given.get("output_shape")
    if wanted is None and rule.startswith("SAME"):
        # A kernel smaller than its step leaves gaps, but the map is never padded to fill them.
        axes = zip(sizes, stride, spans, more, strict=True)
        wanted = [min(n * s, (n - 1) * s + span + 1 + extra) for n, s, span, extra in axes]
    if wanted is not None:
        ends = zip(sizes, stride, spans, more, list(wanted)[-n:], strict=True)
        totals = [(size - 1) * s + span + 1 + extra - out for size, s, span, extra, out in ends]
        near = [-(-t // 2) if rule == "SAME_UPPER" else t // 2 for t in totals]
        cut = [(lo, t - lo) for lo, t in zip(near, totals, strict=True)]
    around = zip(spans, cut, more, strict=True)
    return [(span - lo, span - hi + extra) for span, (lo, hi), extra in around]


def _with_overhang(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """The output size of ``ceil_mode``: one window may hang over, if it begins before the far end.

    Reference: https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    axis = Windows(size, kernel, stride, *padding, dilation)
    begins = axis.output_size * stride < size + padding[0]
    return axis.output_size + (1 if axis.uneven and begins else 0)


def _read(graph: Any) -> list[str]:
    """Every name that the nodes of a graph read, those of graphs inside it included."""
    names = [name for node in graph.node for name in node.input]
    names += [output.name for output in graph.output]
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return names + [name for g in inner for name in _read(g)]
