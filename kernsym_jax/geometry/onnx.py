"""Audits an ONNX file; the rows are those of the audit of a JAX function."""

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

from kernsym_jax.formats.arrays import naming
from kernsym_jax.formats.onnx_file import text, use_plain_operators
from kernsym_jax.formats.onnx_graph import (
    KERNEL_INPUT,
    Graph,
    Model,
    Node,
    alone,
    is_channels_last,
    is_height_first,
    read_model,
)
from kernsym_jax.geometry import onnx_values
from kernsym_jax.geometry.arithmetic import Windows, padding_amounts
from kernsym_jax.geometry.axis import Axes, Source, unknown, whole
from kernsym_jax.geometry.layer import FileAudit, LayerGeometry
from kernsym_jax.geometry.network import Network, Sliding
from kernsym_jax.geometry.onnx_values import MAX_EVALUATIONS, Values, small_array

_POOLS = {
    "MaxPool": "max_pool",
    "AveragePool": "avg_pool",
    "LpPool": "pool",
    "com.microsoft.NhwcMaxPool": "max_pool",
    "com.microsoft.QLinearAveragePool": "avg_pool",
    "com.microsoft.nchwc.AveragePool": "avg_pool",
    "com.microsoft.nchwc.MaxPool": "max_pool",
    "com.ms.internal.nhwc.AveragePool": "avg_pool",
    "com.ms.internal.nhwc.MaxPool": "max_pool",
}
_RULES = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
_SCALED = ("Resize", "Upsample")
_SAME_PLACES = ("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Clip", "QuantizeLinear")
_CHANNELS = (1, 3, 4)
_INT32, _INT64 = 6, 7


def audit_onnx(path: str | os.PathLike, input_size: int | Sequence[int] | None = None) -> FileAudit:
    """Reads the geometry of every convolution and pooling window from an ONNX file.

    Shapes are inferred for the given input size; weights are not read. Pads, slices and
    concatenations in front of a layer count as its padding, whatever the exporter made of them, and
    so does what a window covers beyond the far end (``ceil_mode``). Layers have the names that
    `kernsym_jax.weights.read` gives them: ``layer1.0.conv1`` for ``layer1.0.conv1.weight``. If the
    exporter invented the name of the weights, the layer has the name of its node.

    Args:
      path: the model.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the model's own fixed size.

    Returns:
      A row per layer, in the order of the graph. Layers whose shapes cannot be inferred, such as
      those behind an unknown operator, are in its ``left_out``.

    Raises:
      ValueError: naming the file, if it is no ONNX model or is damaged, if its images have a
        dynamic size and ``input_size`` is not given, or if no shape of any layer can be inferred;
        naming the layer too, for an empty map, a kernel larger than its padded input, or maps that
        do not fit together.
      FileNotFoundError: if there is no such file.
    """
    with naming(path):
        model = read_model(path)
        if not model.graph.nodes:
            raise ValueError("not an ONNX model, or one without any node")
        walk = _Walk(model, _shapes(model, input_size))
        try:
            rows = walk.rows()
        except (LookupError, TypeError, ArithmeticError) as error:
            # A node lacks an input or attribute that its operator needs, or has a wrong one.
            raise ValueError(f"a damaged graph ({error!r})") from error
        if walk.left_out and not rows:
            layer, why = next(iter(walk.left_out.items()))
            raise ValueError(f"{layer}: {why}")
        return FileAudit(rows, walk.left_out)


def _shapes(model: Model, input_size: int | Sequence[int] | None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the values of a graph at one input size, as far as onnx infers them."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _set_input_size(proto.graph, model.graph, input_size)
    _forget_outputs(proto.graph)
    _fill_in(proto.graph, model.graph)
    use_plain_operators(proto.graph)
    imported = {text(opset.domain) for opset in proto.opset_import}
    for domain in {text(node.domain) for node in proto.graph.node} - imported - {"ai.onnx"}:
        proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception as error:  # the library raises errors of its own and of pybind11
        raise ValueError(" ".join(str(error).split()) or "its shapes cannot be inferred") from error
    found = dict(model.graph.shapes)
    _collect_shapes(inferred, found)
    return found


def _collect_shapes(graph: Any, found: dict[str, tuple[int, ...]]) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found.setdefault(text(value.name), tuple(d.dim_value for d in dims))
    for inner in _inner_graphs(graph):
        _collect_shapes(inner, found)


def _forget_outputs(graph: Any) -> None:
    """Drops the shapes of outputs, which hold for the input size that the exporter saw."""
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for inner in _inner_graphs(graph):
        _forget_outputs(inner)


def _inner_graphs(graph: Any) -> list[Any]:
    return [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _fill_in(proto: Any, graph: Graph) -> None:
    """Puts the small arrays that shapes depend on, which may be in other files, into the graph."""
    scales = {name for node in graph.nodes if node.op in _SCALED for name in node.inputs}
    for tensor in proto.initializer:
        name = text(tensor.name)
        if tensor.data_location != tensor.EXTERNAL:
            continue
        if tensor.data_type in (_INT32, _INT64) or name in scales:
            value = small_array(graph.arrays.get(name))
            if value is not None:
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
                tensor.raw_data = value.tobytes()


def _set_input_size(proto: Any, graph: Graph, input_size: int | Sequence[int] | None) -> None:
    """Fixes the shape of the images that go in."""
    names = set(graph.inputs)
    inputs = [value for value in proto.input if text(value.name) in names]
    ranks = [len(value.type.tensor_type.shape.dim) for value in inputs]
    images = [value for value, rank in zip(inputs, ranks, strict=True) if rank in (4, 5)]
    images = images or [value for value, rank in zip(inputs, ranks, strict=True) if rank == 3]
    first_sizes: list[int] | None = None
    for value in images:
        dims = value.type.tensor_type.shape.dim
        first = 1 if _is_channels_last_image(graph, value) else 2
        space = range(first, first + len(dims) - 2)
        sizes = [dims[d].dim_value for d in space]
        first_sizes = first_sizes or sizes
        if input_size is not None and (min(sizes) < 1 or sizes == first_sizes):
            given = input_size if isinstance(input_size, Sequence) else [input_size] * len(space)
            sizes = list(given)
        if len(sizes) != len(space) or min(sizes) < 1:
            shape = ", ".join(str(d.dim_value or text(d.dim_param) or "?") for d in dims)
            wanted = "an input size" if input_size is None else f"{len(space)} sizes above 0"
            raise ValueError(f"its input {text(value.name)!r} has shape ({shape}); give {wanted}")
        for d, size in zip(space, sizes, strict=True):
            dims[d].dim_value = size
        if dims[0].dim_value < 1:
            dims[0].dim_value = 1


def _is_channels_last_image(graph: Graph, image: Any) -> bool:
    """Returns whether an image's channels come last, as TensorFlow's exporter writes them."""
    name = text(image.name)
    for _ in range(len(_SAME_PLACES)):
        reader = next(iter(graph.users.get(name, [])), None)
        if reader is None:
            break
        if reader.op == "Transpose":
            order = reader.integers("perm", [])
            return order == [0, len(order) - 1, *range(1, len(order) - 1)]
        if reader.op in KERNEL_INPUT or reader.op in _POOLS:
            return is_channels_last(reader)
        if reader.op not in _SAME_PLACES or not reader.outputs:
            break
        name = reader.outputs[0]
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    return dims[-1] in _CHANNELS and dims[1] not in (0, *_CHANNELS)


class _Walk:
    """A pass over a graph and the graphs inside it."""

    def __init__(self, model: Model, shapes: dict[str, tuple[int, ...]]):
        self.graph = model.graph
        self.network = Network()
        self.values = Values(self.network, model, shapes)
        self.left_out: dict[str, str] = {}

    def rows(self) -> list[LayerGeometry]:
        values = self.values
        for number, name in enumerate(self.graph.inputs, start=1):
            rows = frozenset({-number})
            axes = [whole(Source(size, rows)) for size in values.shapes.get(name, ())]
            values.keep(name, tuple(axes) if name in values.shapes else None)
        self.run(self.graph)
        for output in self.graph.outputs:
            self.network.leave(values.axes.get(output) or ())
        return self.network.rows()

    def run(self, graph: Graph) -> None:
        self.values.store(graph)
        for node in graph.nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        inner = [name for graph in node.graphs for name in _reads(graph)]
        if not any(name in self.values.depends for name in (*node.inputs, *inner)):
            self.values.constant(node)
        elif node.layer is not None:
            self.convolution(node, node.layer)
        elif node.op in _POOLS:
            self.pool(node)
        elif node.op == "If":
            self.branches(node)
        elif node.op in ("Loop", "Scan"):
            self.loop(node)
        else:
            self.infer(node)
            why = onnx_values.misfit(self.values, node)
            if why is not None:
                self.left_out[node.name or node.outputs[0]] = why
            onnx_values.apply(self.values, node)

    def infer(self, node: Node) -> None:
        """Infers the shapes of outputs that depend on numbers which the graph computes."""
        import onnx

        values = self.values
        shapes = {name: values.shapes[name] for name in node.inputs if name in values.shapes}
        known = {name: values.consts[name] for name in shapes if name in values.consts}
        open_ones = set(node.outputs) - set(values.shapes) - {""}
        if not open_ones or "." in node.op or len(shapes) < len(set(node.inputs) - {""}):
            return
        values.evaluations += 1
        if values.evaluations <= MAX_EVALUATIONS:
            model = alone(node, shapes, known, values.opsets)
            for name, value in known.items():
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
            # What onnx cannot infer stays open.
            with contextlib.suppress(Exception):
                inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
                _collect_shapes(inferred.graph, values.shapes)

    def convolution(self, node: Node, layer: str) -> None:
        weight = node.inputs[KERNEL_INPUT[node.op]]
        if weight not in self.values.shapes:
            self.leave_out(node, layer, "the shape of its weights cannot be inferred")
            return
        outputs, inputs, *kernel = self.values.shapes[weight]
        if is_height_first(node, self.values.shapes[weight]):
            *kernel, inputs = inputs, *kernel
        found = self.input(node, layer, len(kernel))
        if found is None:
            return
        places, sizes, channels = found
        n, groups = len(kernel), node.integer("group", 1)
        stride, dilation = node.integers("strides", [1] * n), node.integers("dilations", [1] * n)
        window: dict[str, Any] = {"groups": groups, "upsampling": [1] * n}
        if node.op == "ConvTranspose":
            kind, features = "transposed", inputs * groups
            padding = _spread_padding(node, sizes, kernel, stride, dilation)
            window["upsampling"], stride = stride, [1] * n
        else:
            # Blocks of 8 or 16 channels may be filled up.
            filled = inputs == 1 and node.op.startswith("com.microsoft.nchwc.")
            single = groups > 1 and (filled or groups == channels)
            kind, features = "depthwise" if single else "conv", outputs
            padding = _padding(node, sizes, kernel, stride, dilation)
        made = self.network.window(
            layer,
            kind,
            places,
            sizes,
            Sliding(kernel, stride, dilation, padding, **window),
        )
        self.made(node, made, unknown(features, "feature"))

    def pool(self, node: Node) -> None:
        kind, kernel = _POOLS[node.op], node.integers("kernel_shape", [])
        if not kernel:
            raise ValueError(f"a damaged graph: {node.name or node.op} has no kernel_shape")
        found = self.input(node, node.name or kind, len(kernel))
        if found is None:
            return
        places, sizes, _ = found
        n = len(kernel)
        stride, dilation = node.integers("strides", [1] * n), node.integers("dilations", [1] * n)
        padding = _padding(node, sizes, kernel, stride, dilation)
        outputs = None
        if node.integer("ceil_mode", 0):
            outputs = list(map(_with_overhang, sizes, kernel, stride, padding, dilation))
        made = self.network.window(
            None,
            kind,
            places,
            sizes,
            Sliding(kernel, stride, dilation, padding, outputs=outputs),
        )
        self.made(node, made, None)

    def input(self, node: Node, layer: str, n: int) -> tuple[Axes, tuple[int, ...], int] | None:
        """Returns the spatial axes and sizes of the map that a layer reads, and its channels.

        ``None`` if they are not known, which leaves the layer out of the audit.
        """
        axes, shape = self.values.axes.get(node.inputs[0]), self.values.shapes.get(node.inputs[0])
        if axes is None or shape is None:
            self.leave_out(node, layer, "the size of its input cannot be inferred")
            return None
        if len(shape) != n + 2:
            raise ValueError(f"{layer}: a kernel of {n} axes on a map of shape {shape}")
        axes = self.network.settle(axes)
        self.values.axes[node.inputs[0]] = axes
        if is_channels_last(node):
            return axes[1:-1], shape[1:-1], shape[-1]
        return axes[2:], shape[2:], shape[1]

    def made(self, node: Node, places: Axes | list[Any], features: Any) -> None:
        """Records a layer's output; without ``features`` it has the channels of the input."""
        axes = self.values.axes[node.inputs[0]] or ()
        batch, channels = axes[0], axes[-1] if is_channels_last(node) else axes[1]
        batch = batch or unknown(self.values.shapes[node.inputs[0]][0])
        channels = features or channels
        around = (*places, channels) if is_channels_last(node) else (channels, *places)
        self.values.keep(node.outputs[0], (batch, *around))

    def leave_out(self, node: Node, layer: str, why: str) -> None:
        self.left_out[layer] = why
        for name in node.outputs:
            self.values.keep(name, None)

    def branches(self, node: Node) -> None:
        graphs = [node.graph("then_branch"), node.graph("else_branch")]
        condition = self.values.consts.get(node.input(0))
        if condition is not None and condition.size == 1:
            taken = graphs[0 if condition.item() else 1]
            self.run(taken)
            for name, result in zip(node.outputs, taken.outputs, strict=False):
                self.values.keep(name, self.values.axes.get(result))
            return
        with self.values.alternatives():
            self.network.branches([functools.partial(self.run, graph) for graph in graphs])
        for i, name in enumerate(node.outputs):
            results = [graph.outputs[i] for graph in graphs]
            known = [self.values.axes.get(result) for result in results]
            maps = [axes for axes in known if axes is not None]
            same = len({self.values.shapes.get(r) for r in results}) == 1
            self.values.keep(name, self.network.merge(maps) if maps and same else None)

    def loop(self, node: Node) -> None:
        body, turns = node.graph("body"), 1
        if node.op == "Loop":
            limit = self.values.consts.get(node.input(0))
            turns = 1 if limit is None else max(int(limit.item()), 1)
        for outside, inside in zip(node.inputs, body.inputs, strict=False):
            shape = self.values.shapes.get(outside)
            if node.op == "Loop" and shape is not None:
                same = self.values.shapes.setdefault(inside, shape) == shape
                self.values.keep(inside, self.values.axes.get(outside) if same else None)
            else:
                self.values.keep(inside, None)
        with self.network.loop(turns):
            self.run(body)
        carried = len(node.inputs) - 2 if node.op == "Loop" else 0
        for i, name in enumerate(node.outputs):
            inside = body.outputs[i + 1] if i < carried else ""
            self.values.keep(name, self.values.axes.get(inside))


def _padding(
    node: Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    rule, n = node.text("auto_pad", "NOTSET"), len(kernel)
    if rule in _RULES:
        axes = zip(sizes, kernel, stride, [_RULES[rule]] * n, dilation, strict=True)
        return [padding_amounts(*axis) for axis in axes]  # type: ignore[misc]  # one axis: a pair
    pads = node.integers("pads", [0] * (2 * n))
    return list(zip(pads[:n], pads[n:], strict=True))


def _spread_padding(
    node: Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Returns the padding that a transposed convolution's windows see around its spread input.

    Reference: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    n, rule = len(kernel), node.text("auto_pad", "NOTSET")
    more = node.integers("output_padding", [0] * n)
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    pads = node.integers("pads", [0] * (2 * n))
    cut = list(zip(pads[:n], pads[n:], strict=True))
    wanted = node.integers("output_shape", [])
    if not wanted and rule.startswith("SAME"):
        # A kernel smaller than its step leaves gaps, but the map is never padded to fill them.
        axes = zip(sizes, stride, spans, more, strict=True)
        wanted = [min(n * s, (n - 1) * s + span + 1 + extra) for n, s, span, extra in axes]
    if wanted:
        ends = zip(sizes, stride, spans, more, wanted[-n:], strict=True)
        totals = [(size - 1) * s + span + 1 + extra - out for size, s, span, extra, out in ends]
        near = [-(-t // 2) if rule == "SAME_UPPER" else t // 2 for t in totals]
        cut = [(lo, t - lo) for lo, t in zip(near, totals, strict=True)]
    around = zip(spans, cut, more, strict=True)
    return [(span - lo, span - hi + extra) for span, (lo, hi), extra in around]


def _with_overhang(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> int:
    """Returns the output size under ``ceil_mode``: the last window may reach beyond the map.

    Reference: https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    axis = Windows(size, kernel, stride, *padding, dilation)
    begins = axis.output_size * stride < size + padding[0]
    return axis.output_size + (1 if axis.uneven and begins else 0)


def _reads(graph: Graph) -> list[str]:
    """Returns every name that the nodes of a graph read, also in graphs inside it."""
    names = [name for node in graph.nodes for name in node.inputs] + graph.outputs
    return names + [name for node in graph.nodes for g in node.graphs for name in _reads(g)]
