"""ONNX files: the graph, its small constants and the shape of every value at one input size."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_SMALL = 1024
"""Elements up to which an initializer is read: amounts of padding, indices and shapes."""

_SCALED = ("Resize", "Upsample")
_SAME_PLACES = ("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Clip", "QuantizeLinear")
_CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True)
class OnnxGraph:
    """A graph whose shapes are known.

    Attributes:
      proto: onnx.GraphProto.
      path: of the file.
      shapes: of every value for which they could be inferred.
      opsets: versions of the operators.
    """

    proto: Any
    path: str
    shapes: dict[str, tuple[int, ...]]
    opsets: Any


def read_graph(path: str | os.PathLike, input_size: int | Sequence[int] | None) -> OnnxGraph:
    """Reads a model and infers the shapes of its values.

    Weights are not needed for this: those in external files are not opened, those in the file are
    dropped before the shapes are inferred.

    Args:
      path: the model.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for those that the model is fixed to.

    Returns:
      The graph.

    Raises:
      ValueError: naming the file, if it is no ONNX model or is cut, or for images of dynamic size
        without an ``input_size``.
      FileNotFoundError: if there is no such file.
    """
    import onnx

    name = os.fspath(path)
    data = pathlib.Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # the parser's error class is protobuf's, and moves about
        raise ValueError(f"{name}: not an ONNX model, or cut off") from error
    if model.ir_version < 1 or not model.graph.node:
        raise ValueError(f"{name}: not an ONNX model, or one without any node")
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    _set_input_size(model.graph, name, input_size)
    # What the exporter noted holds for the size that it saw.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        _lighten(model.graph, pathlib.Path(path).parent)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # whatever the library finds wrong with the graph
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    return OnnxGraph(model.graph, name, _shapes(model.graph), model.opset_import)


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node as Python values, tensors as arrays."""
    import onnx

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, onnx.TensorProto):
            value = small_array(value)
        found[attribute.name] = value
    return found


def small_array(tensor: Any) -> np.ndarray | None:
    """The numbers of a tensor; ``None`` for a large one, or one whose numbers were not read."""
    import onnx

    size = math.prod(tensor.dims)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if size > _SMALL or external or tensor.data_type == onnx.TensorProto.STRING:
        return None
    return onnx.numpy_helper.to_array(tensor)


def stored_constant(given: Mapping[str, Any]) -> np.ndarray | None:
    """The numbers of a Constant node, from its attributes; ``None`` for large ones."""
    value = given.get("value")
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        value = np.asarray(given[name]) if name in given else value
    return value if isinstance(value, np.ndarray) and value.size <= _SMALL else None


def evaluated(graph: OnnxGraph, node: Any, known: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Works out the first output of a node with constant inputs, such as amounts of padding.

    Args:
      graph: that the node is of.
      node: onnx.NodeProto.
      known: numbers of every input.

    Returns:
      The numbers; ``None`` where they are many or cannot be worked out.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    shape = graph.shapes.get(node.output[0])
    if shape is None or math.prod(shape) > _SMALL or any(a.HasField("g") for a in node.attribute):
        return None
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in known.items()
    ]
    output = onnx.ValueInfoProto(name=node.output[0])
    alone = onnx.helper.make_graph([node], "constant", inputs, [output])
    model = onnx.helper.make_model(alone, opset_imports=graph.opsets)
    try:
        result: Any = ReferenceEvaluator(model).run([node.output[0]], dict(known))
        return np.asarray(result[0])
    except Exception:  # a node that the reference does not know is a constant that we do not
        return None


def _lighten(graph: Any, folder: pathlib.Path) -> None:
    """Drops the numbers of large tensors, and reads what shapes depend on from external files."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    shaping = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    scales = {name for node in graph.node if node.op_type in _SCALED for name in node.input}
    for tensor in graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if math.prod(tensor.dims) > _SMALL:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(field)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        elif external and (tensor.data_type in shaping or tensor.name in scales):
            load_external_data_for_tensor(tensor, os.fspath(folder))


def _set_input_size(graph: Any, path: str, input_size: int | Sequence[int] | None) -> None:
    """Fixes the shape of the images that go in."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inputs}
    images = [value for value in inputs if ranks[value.name] in (4, 5)]
    images = images or [value for value in inputs if ranks[value.name] == 3]
    first_sizes: list[int] | None = None
    for value in images:
        dims = value.type.tensor_type.shape.dim
        first = 1 if _channels_last(graph, value) else 2
        space = range(first, first + len(dims) - 2)
        sizes = [dims[d].dim_value for d in space]
        first_sizes = first_sizes or sizes
        if input_size is not None and (min(sizes) < 1 or sizes == first_sizes):
            sizes = (
                list(input_size) if isinstance(input_size, Sequence) else [input_size] * len(space)
            )
        if len(sizes) != len(space) or min(sizes) < 1:
            shape = ", ".join(str(d.dim_value or d.dim_param or "?") for d in dims)
            wanted = "an input size" if input_size is None else f"{len(space)} sizes above 0"
            raise ValueError(f"{path}: its input {value.name!r} has shape ({shape}); give {wanted}")
        for d, size in zip(space, sizes, strict=True):
            dims[d].dim_value = size
        if not dims[0].dim_value:
            dims[0].dim_value = 1


def _channels_last(graph: Any, image: Any) -> bool:
    """Whether an image's channels are its last dimension, as TensorFlow's exporter leaves them."""
    name = image.name
    for node in graph.node:
        if name in node.input and node.op_type == "Transpose":
            order = list(attributes(node).get("perm", ()))
            return order == [0, len(order) - 1, *range(1, len(order) - 1)]
        if name in node.input and node.op_type in _SAME_PLACES:
            name = node.output[0]
        elif name in node.input:
            break
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    return dims[-1] in _CHANNELS and dims[1] not in (0, *_CHANNELS)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in _typed_values(graph):
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape") and all(
            d.HasField("dim_value") for d in dims
        )
        if known:
            found.setdefault(value.name, tuple(d.dim_value for d in dims))
    return found


def _typed_values(graph: Any) -> Iterator[Any]:
    yield from (*graph.input, *graph.value_info, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _typed_values(attribute.g)
