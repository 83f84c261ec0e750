"""Reads ONNX files: the onnx library parses the structure, the arrays stay in the mapped file.

The library copies every byte that it parses, and a small file can describe millions of messages.
So the fields of a model are counted first, and each large array is replaced by a reference to its
place in the file, in the form that ONNX has for arrays in external files. What the library then
parses is small, and reading a network costs no more memory than its file.

Reference: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and
https://protobuf.dev/programming-guides/encoding
"""

import functools
import math
import os
import pathlib
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, StoredArray, element_count, map_file, view

MAX_FIELDS = 2_000_000
MAX_NODES = 100_000
MAX_GRAPHS = 16
"""How deep graphs may be nested inside one another."""
_MAX_STRUCTURE = 64 << 20
_MAX_PACKED = 8 << 20
_MAX_DENSE = 1 << 26
_LARGE = 4096
# The location of arrays in the model itself: no file can have this name.
_THIS_FILE = b"\0"

_NO_MODEL = "not an ONNX model, or cut off"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

# Remarks, and shapes that hold only for the input size that the exporter saw.
_UNUSED = frozenset((
    "configuration", "device_configurations", "doc_string", "metadata_props",
    "quantization_annotation", "training_info", "value_info",
))  # fmt: skip
_GRAPH, _NODE, _TENSOR = "onnx.GraphProto", "onnx.NodeProto", "onnx.TensorProto"
_DATA_TYPE, _FLOATS, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 2, 4, 9, 10, 13, 14
# The fields of packed integers, whose bytes are not those of the array.
_PACKED = (5, 7, 11)

_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    24: "float8_e8m0fnu",
}
# Types whose values a field holds byte by byte as the array does.
_AS_STORED = {_FLOATS: ("float32", "complex64"), _DOUBLES: ("float64", "complex128")}


def read_structure(path: str | os.PathLike) -> tuple[Any, "Arrays"]:
    """Parses a model without its large arrays.

    Args:
      path: the model.

    Returns:
      The onnx.ModelProto, whose large arrays are references, and what reads them.

    Raises:
      ValueError: if the file is no ONNX model, is cut, or has more fields or a larger structure
        than any network needs.
      FileNotFoundError: if there is no such file.
    """
    import onnx

    try:
        data = map_file(path)
    except ValueError as error:
        raise ValueError(f"not an ONNX model: {error}") from None
    structure = _Fields(data).of_model()
    try:
        model = onnx.ModelProto.FromString(structure)
    except Exception as error:  # the error of the parser is protobuf's, whose class has moved
        raise ValueError(_NO_MODEL) from error
    if model.ir_version < 1 or not model.HasField("graph"):
        raise ValueError("not an ONNX model: it has no version or no graph")
    return model, Arrays(pathlib.Path(path), data)


def text(name: str | bytes) -> str:
    """Returns a string of a model; the library gives bytes for text that is not UTF-8."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


# Operators of ONNX Runtime -> those of ONNX that make maps of the same shapes, and their inputs.
_EQUIVALENT: dict[str, tuple[str, slice]] = {
    **{f"com.microsoft.{op}": ("Identity", slice(1)) for op in (
        "BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "QLinearLeakyRelu", "QLinearSigmoid",
        "QLinearSoftmax", "QuantizeLinear", "QuickGelu",
    )},
    **{f"com.microsoft.nchwc.{op}": (op, slice(1)) for op in (
        "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
    )},
    "com.microsoft.FusedConv": ("Conv", slice(3)),
    "com.microsoft.QLinearConv": ("QLinearConv", slice(9)),
    "com.microsoft.QLinearAdd": ("Add", slice(0, 4, 3)),
    "com.microsoft.QLinearMul": ("Mul", slice(0, 4, 3)),
    "com.microsoft.QLinearConcat": ("Concat", slice(2, None, 3)),
    "com.microsoft.QLinearAveragePool": ("AveragePool", slice(1)),
    "com.microsoft.QLinearGlobalAveragePool": ("GlobalAveragePool", slice(1)),
    "com.microsoft.NhwcMaxPool": ("MaxPool", slice(1)),
    "com.microsoft.nchwc.Conv": ("Conv", slice(2)),
    "com.microsoft.nchwc.ReorderInput": ("Identity", slice(1)),
    "com.microsoft.nchwc.ReorderOutput": ("Slice", slice(1)),
    "com.microsoft.nchwc.Upsample": ("Resize", slice(1)),
}  # fmt: skip
_WINDOW = frozenset((
    "auto_pad", "axis", "ceil_mode", "dilations", "group", "kernel_shape", "pads", "storage_order",
    "strides", "count_include_pad",
))  # fmt: skip


def use_plain_operators(graph: Any) -> None:
    """Replaces known operators of ONNX Runtime in a GraphProto, for the inference of shapes.

    ONNX infers no shape behind an operator of another domain. The nodes that replace one make a map
    of the same shape, with other values.
    """
    nodes: list[Any] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                use_plain_operators(attribute.g)
        nodes += _plain(node, graph.initializer) or [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _plain(node: Any, arrays: Any) -> list[Any]:
    """Returns the nodes that stand in for one of ONNX Runtime's; none for any other node."""
    from onnx import helper, numpy_helper

    domain, op = text(node.domain), text(node.op_type)
    plain, places = _EQUIVALENT.get(f"{domain}.{op}", ("", slice(0)))
    said = {text(each.name): each for each in node.attribute}
    wanted = {"Slice": "channels", "Resize": "scales"}.get(plain)
    inputs, outputs = list(node.input)[places], list(node.output)[:1]
    if not (plain and inputs and outputs) or (wanted is not None and wanted not in said):
        return []
    if wanted is not None:
        lists = [[0], [said[wanted].i], [1]] if plain == "Slice" else [list(said[wanted].ints)]
        dtype = np.int64 if plain == "Slice" else np.float32
        names = [f"plain {place} of {text(outputs[0])}" for place in range(len(lists))]
        arrays.extend(map(numpy_helper.from_array, [np.array(n, dtype) for n in lists], names))
        inputs += names if plain == "Slice" else ["", *names]
    last = op.startswith("Nhwc") or ("channels_last" in said and said["channels_last"].i == 1)
    last &= plain not in ("Add", "Mul", "Concat")
    before, after = last and op != "ReorderOutput", last and op != "ReorderInput"
    ins, outs = ([f"plain {side} of {text(outputs[0])}"] for side in ("input", "output"))
    read, made = [*(ins if before else inputs[:1]), *inputs[1:]], outs if after else outputs
    middle = helper.make_node(plain, read, made)
    middle.attribute.extend(each for name, each in said.items() if name in _WINDOW)
    first = [helper.make_node("Transpose", inputs[:1], ins, perm=[0, 3, 1, 2])] if before else []
    final = [helper.make_node("Transpose", outs, outputs, perm=[0, 2, 3, 1])] if after else []
    return [*first, middle, *final]


class Arrays:
    """Reads the arrays of a model: from its structure, its file, or files beside it.

    Args:
      path: the model; files outside its folder are refused.
      data: the mapped model, uint8 (bytes,).
    """

    def __init__(self, path: pathlib.Path, data: np.ndarray):
        self._folder = path.parent
        self._mapped = {_THIS_FILE.decode(): data}
        self._claimed: dict[str, int] = {}
        self._dense = 0

    def read(self, tensor: Any) -> StoredArray | None:
        """Reads an onnx.TensorProto; an external file is opened when its values are read.

        Args:
          tensor: the message.

        Returns:
          The array; None for an element type that is not a plain number, such as strings.

        Raises:
          ValueError: if there are not as many values as the shape says.
        """
        shape = tuple(tensor.dims)
        count = element_count(shape)
        name = _TYPES.get(tensor.data_type)
        if name not in DTYPES:
            return None
        dtype = DTYPES[name]
        if tensor.data_location == tensor.EXTERNAL:
            return self._external(tensor, shape, dtype)
        flat = _inline_values(tensor, dtype)
        if flat.size != count:
            raise ValueError(f"{text(tensor.name)!r} has {flat.size} values for the shape {shape}")
        return StoredArray.of(flat.reshape(shape))

    def read_sparse(self, sparse: Any) -> StoredArray | None:
        """Reads an onnx.SparseTensorProto as a dense array, made once when it is first read.

        Args:
          sparse: the message.

        Returns:
          The array; None if its values are no plain numbers, or the dense arrays of the model
          together are too large.

        Raises:
          ValueError: if the indices do not fit the values.
        """
        shape = tuple(sparse.dims)
        count = element_count(shape)
        values, indices = self.read(sparse.values), self.read(sparse.indices)
        self._dense += count
        if values is None or indices is None or self._dense > _MAX_DENSE:
            return None
        number = math.prod(values.shape)
        if indices.shape not in ((number,), (number, len(shape))):
            raise ValueError(f"indices of shape {indices.shape} for {number} sparse values")

        @functools.cache
        def dense() -> np.ndarray:
            places = indices.read()
            if places.ndim == 2:
                places = np.ravel_multi_index(tuple(places.T.astype(np.int64)), shape)
            if places.size and not 0 <= places.min() <= places.max() < count:
                raise ValueError(f"a sparse value outside its array of shape {shape}")
            flat = np.zeros(count, values.dtype)
            flat[places] = values.read().reshape(-1)
            return flat.reshape(shape)

        return StoredArray(shape, values.dtype, dense)

    def _external(self, tensor: Any, shape: tuple[int, ...], dtype: np.dtype) -> StoredArray:
        entries = {text(entry.key): text(entry.value) for entry in tensor.external_data}
        nbytes = math.prod(shape) * dtype.itemsize
        if _number(entries.get("length", str(nbytes))) != nbytes:
            length = entries["length"]
            raise ValueError(f"{text(tensor.name)!r} has {length} bytes instead of {nbytes}")
        location, offset = entries.get("location", ""), _number(entries.get("offset", "0"))
        self._claimed[location] = self._claimed.get(location, 0) + nbytes

        def read() -> np.ndarray:
            data = self._file(location)
            # Tied weights share bytes; thousands of arrays in one place are a bomb.
            if self._claimed[location] > 4 * data.size + (1 << 20):
                raise ValueError(f"arrays of {self._claimed[location]} bytes in {data.size} bytes")
            return view(data, offset, dtype, shape)

        return StoredArray(shape, dtype, read)

    def _file(self, location: str) -> np.ndarray:
        """Returns the bytes of a file in the folder of the model, uint8 (bytes,)."""
        if location not in self._mapped:
            try:
                folder = self._folder.resolve()
                file = (folder / location).resolve()
                inside = bool(location) and file.is_relative_to(folder) and file.is_file()
            except (OSError, RuntimeError, ValueError):  # a link to itself, or a NUL
                inside = False
            if not inside:
                raise ValueError(f"values in {location[:80]!r}, which is no file beside the model")
            self._mapped[location] = map_file(file)
        return self._mapped[location]


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        raise ValueError(f"{digits[:40]!r} where a number of bytes belongs")
    return int(digits)


def _inline_values(tensor: Any, dtype: np.dtype) -> np.ndarray:
    if tensor.HasField("raw_data"):
        raw = np.frombuffer(tensor.raw_data, np.uint8)
        return raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype)
    if dtype.name in _AS_STORED[_FLOATS]:
        return np.array(tensor.float_data, np.float32).view(dtype)
    if dtype.name in _AS_STORED[_DOUBLES]:
        return np.array(tensor.double_data, np.float64).view(dtype)
    if dtype.name == "int64":
        return np.array(tensor.int64_data, np.int64)
    if dtype.name in ("uint64", "uint32"):
        return np.array(tensor.uint64_data, np.uint64).astype(dtype)
    integers = np.array(tensor.int32_data, np.int32)
    if dtype.kind in "iub":
        return integers.astype(dtype)
    # Half-precision and 8-bit floats are kept as the integers that their bits spell.
    return integers.astype(f"u{dtype.itemsize}").view(dtype)


@functools.cache
def _schema() -> dict[str, dict[int, str | None]]:
    """Returns message -> field -> the message in the field, or None if it is not read."""
    import onnx

    schema: dict[str, dict[int, str | None]] = {}
    open_ones = [onnx.ModelProto.DESCRIPTOR]
    while open_ones:
        message = open_ones.pop()
        fields = schema.setdefault(message.full_name, {})
        for field in message.fields:
            if field.name in _UNUSED:
                fields[field.number] = None
            elif field.message_type is not None:
                fields[field.number] = field.message_type.full_name
                if field.message_type.full_name not in schema:
                    open_ones.append(field.message_type)
    return schema


class _Fields:
    """A pass over the fields of a model that leaves its large arrays out.

    Args:
      data: the mapped model, uint8 (bytes,).
    """

    def __init__(self, data: np.ndarray):
        self._raw = data.data
        self._schema = _schema()
        self._fields = self._nodes = self._size = 0

    def of_model(self) -> bytes:
        """Returns the model without its large arrays."""
        light = self._message("onnx.ModelProto", 0, len(self._raw), 0)
        return bytes(self._raw) if light is None else light

    def _message(self, kind: str, start: int, end: int, graphs: int) -> bytes | None:
        """Returns the message at a place without its large arrays; None if it has none."""
        if kind == _GRAPH:
            graphs += 1
        elif kind == _NODE:
            self._nodes += 1
        if graphs > MAX_GRAPHS:
            raise ValueError(f"graphs nested more than {MAX_GRAPHS} deep")
        if self._nodes > MAX_NODES:
            raise ValueError(f"a graph of more than {MAX_NODES} nodes")
        raw, inside, is_tensor = self._raw, self._schema[kind], kind == _TENSOR
        parts: list[Any] = []
        references: list[bytes] = []
        kept = position = start
        data_type = 0
        while position < end:
            begin = position
            tag, position = self._varint(position)
            number, wire = tag >> 3, tag & 7
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError(f"a model of more than {MAX_FIELDS} fields")
            if wire == _VARINT and number:
                value, position = self._varint(position)
                data_type = value if number == _DATA_TYPE else data_type
                continue
            size, position = self._size_of(wire, position)
            content, position = position, position + size
            if position > end or not number:
                raise ValueError(_NO_MODEL)
            if number in inside:
                child = inside[number]
                light = self._message(child, content, position, graphs) if child else b""
                instead = _field(number, light) if light else light
            elif is_tensor and size >= _LARGE:
                instead = self._array(number, data_type, content, size)
                # It comes last: behind the values, a file may say that they are inside it.
                references.append(instead or b"")
                instead = None if instead is None else b""
            else:
                instead = None
                self._size += size
            if instead is not None:
                parts += [raw[kept:begin], instead]
                kept = position
        if position > end:
            raise ValueError(_NO_MODEL)
        if self._size > _MAX_STRUCTURE:
            limit = _MAX_STRUCTURE >> 20
            raise ValueError(f"a structure of more than {limit} MB beside the arrays")
        return b"".join([*parts, raw[kept:end], *references]) if parts else None

    def _array(self, number: int, data_type: int, offset: int, size: int) -> bytes | None:
        """Returns the reference that replaces a large array; None if the array must be parsed."""
        if number == _RAW or _TYPES.get(data_type) in _AS_STORED.get(number, ()):
            entries = {b"location": _THIS_FILE, b"offset": b"%d" % offset, b"length": b"%d" % size}
            fields = [_field(_EXTERNAL, _field(1, k) + _field(2, v)) for k, v in entries.items()]
            return b"".join(fields) + bytes([_LOCATION << 3, 1])
        if number in _PACKED and size > _MAX_PACKED:
            raise ValueError(f"{size} bytes of packed integers")
        self._size += size
        return None

    def _size_of(self, wire: int, position: int) -> tuple[int, int]:
        """Returns the size of a field that is no integer, and the place where its bytes begin."""
        if wire == _BYTES:
            return self._varint(position)
        if wire not in _WIDTHS:
            raise ValueError(_NO_MODEL)
        return _WIDTHS[wire], position

    def _varint(self, position: int) -> tuple[int, int]:
        raw = self._raw
        byte = raw[position] if position < len(raw) else 0x80
        if byte < 0x80:
            return byte, position + 1
        value = shift = 0
        while position < len(raw) and shift < 64:
            byte = raw[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise ValueError(_NO_MODEL)


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of bytes as a protocol buffer has it."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(content)) + content


def _as_varint(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
