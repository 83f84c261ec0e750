"""Reads what TensorFlow's files are made of: sorted tables, protocol buffers and graphs.

A sorted table is one as LevelDB writes it. The graph of a SavedModel tells which convolutions read
its variables.
"""

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_INDEX = 64 << 20
"""Bytes of a table, and of all its blocks together once they are unpacked."""

MAX_ENTRIES = 200_000
MAX_NAME = 1000

MAX_GRAPH = 256 << 20
"""Bytes of a SavedModel's graph; a larger one is not read."""

# Convolutions, whose second input is the kernel, and operations that pass a kernel on.
_CONVOLUTIONS = {
    "Conv2D": "conv",
    "DepthwiseConv2dNative": "depthwise",
    "Conv2DBackpropInput": "transposed",
}
_PASSING = ("Identity", "ReadVariableOp", "Cast", "StopGradient", "EnsureShape")
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_PADS = ("Pad", "PadV2", "MirrorPad")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_MOST_CALLS = 32
_MOST_STEPS = 3_000_000
_LARGEST = 1 << 16

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_PLAIN, _SNAPPY = 0, 1


def read_table(data: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yields the (key, value) pairs of a sorted table."""
    if data.size > MAX_INDEX or data.size < _FOOTER or data[-8:].tobytes() != _MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint, or cut")
    content = data.tobytes()
    footer = content[-_FOOTER:]
    _, place = varint(footer, 0)
    _, place = varint(footer, place)
    room = [MAX_INDEX]
    count = 0
    for _, handle in _block(content, footer[place:], room):
        for pair in _block(content, handle, room):
            count += 1
            if count > MAX_ENTRIES:
                raise ValueError(f"a checkpoint of more than {MAX_ENTRIES} variables")
            yield pair


def _block(content: bytes, handle: bytes, room: list[int]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pairs of the block at a place.

    Args:
      content: of the file.
      handle: the block's offset and size.
      room: the bytes that all blocks together may still unpack to.
    """
    offset, place = varint(handle, 0)
    size, _ = varint(handle, place)
    # A byte for the compression and four for a checksum follow.
    if offset + size + 5 > len(content):
        raise ValueError("a block of the index that reaches beyond its end")
    block, kind = content[offset : offset + size], content[offset + size]
    if kind not in (_PLAIN, _SNAPPY):
        raise ValueError(f"a block of the index with compression {kind}")
    if kind == _SNAPPY:
        block = unpack_snappy(block, room[0])
    room[0] -= len(block)
    if room[0] < 0 or len(block) < 4:
        raise ValueError("blocks of the index of no sensible size")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        length, place = varint(block, place)
        if shared > len(key) or shared + own > MAX_NAME or place + own + length > end:
            raise ValueError("an entry of the index that reaches beyond its block")
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def unpack_snappy(data: bytes, limit: int) -> bytes:
    """Returns what Snappy has compressed, of at most `limit` bytes."""
    size, place = varint(data, 0)
    if size > limit:
        raise ValueError(f"refused: a block that unpacks to {size} bytes")
    made = bytearray()
    while place < len(data):
        tag = data[place]
        place += 1
        if tag & 3 == 0:
            length = (tag >> 2) + 1
            if length > 60:
                width = length - 60
                length = int.from_bytes(data[place : place + width], "little") + 1
                place += width
            if place + length > len(data) or len(made) + length > size:
                raise ValueError("a block that is cut")
            made += data[place : place + length]
            place += length
        else:
            width = (1, 2, 4)[(tag & 3) - 1]
            length = (tag >> 2) + 1 if tag & 3 > 1 else (tag >> 2 & 7) + 4
            high = tag >> 5 << 8 if tag & 3 == 1 else 0
            back = high | int.from_bytes(data[place : place + width], "little")
            place += width
            if not 0 < back <= len(made) or len(made) + length > size:
                raise ValueError("a block with a copy from outside itself")
            part = bytes(made[-back:][:length])
            made += (part * (length // len(part) + 1))[:length]
    if len(made) != size:
        raise ValueError(f"a block of {size} bytes that unpacks to {len(made)}")
    return bytes(made)


def fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of the fields of a protocol buffer: integers, or bytes."""
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = varint(data, place)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, place = varint(data, place)
        if length is None or place + length > len(data):
            raise ValueError("a protocol buffer that is cut or damaged")
        yield tag >> 3, data[place : place + length]
        place += length


def message(data: Any) -> dict[int, list[Any]]:
    """Returns the fields of a protocol buffer by number."""
    if not isinstance(data, bytes):
        raise ValueError("a number in place of a protocol buffer")
    fields: dict[int, list[Any]] = {}
    for number, value in fields_of(data):
        fields.setdefault(number, []).append(value)
    return fields


def value_of(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    """Returns a field, of the type that its default has."""
    value = fields.get(number, [default])[0]
    if not isinstance(value, type(default)):
        raise ValueError("a field of another type in a protocol buffer")
    return value


def string_of(fields: dict[int, list[Any]], number: int) -> str:
    """Returns a field that is text."""
    text = value_of(fields, number, b"").decode("utf-8", "replace")
    if len(text) > MAX_NAME:
        raise ValueError(f"a name of {len(text)} characters: {text[:40]!r}…")
    return text


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and the place behind it."""
    number = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number that is cut or too large")
        number |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return number, place
        shift += 7


class Use(NamedTuple):
    """A convolution that reads a variable.

    Attributes:
      kind: ``conv``, ``depthwise`` or ``transposed``.
      stride: (rows, columns).
      dilation: (rows, columns), or None if it is not known.
      padding: ``SAME``, the pixels at (top, bottom) and (left, right), or None.
    """

    kind: str
    stride: tuple[int, int]
    dilation: tuple[int, int] | None
    padding: str | tuple[tuple[int, int], tuple[int, int]] | None


class _Node(NamedTuple):
    """A node of a graph: its operation, the nodes or arguments that it reads, its attributes."""

    name: str
    operation: str
    reads: tuple[str, ...]
    attributes: tuple[bytes, ...]

    def attribute(self, name: str) -> dict[int, list[Any]]:
        """Returns the fields of an attribute; none if the node lacks it."""
        for entry in self.attributes:
            fields = message(entry)
            if string_of(fields, 1) == name:
                return message(value_of(fields, 2, b""))
        return {}

    def numbers(self, name: str) -> list[int]:
        """Returns an attribute that is a list of integers."""
        return _integers(message(value_of(self.attribute(name), 1, b"")).get(3, []))


Variable = int | str
"""The number of an object of a SavedModel, or the name of a variable of TensorFlow 1."""


@dataclasses.dataclass(frozen=True)
class SavedGraph:
    """What the graph of a SavedModel says of its variables.

    Attributes:
      children: of each object: name -> number of the object there.
      uses: variable -> the convolution that reads it, in the order of the graph.
    """

    children: Sequence[Mapping[str, int]]
    uses: Mapping[Variable, Use]

    def use_of(self, path: Iterable[str], name: str) -> Use | None:
        """Returns the convolution that reads a variable.

        Args:
          path: the names on the way to the variable in the tree of objects.
          name: of the variable in a file of TensorFlow 1, which has no such tree.
        """
        if not self.children:
            return self.uses.get(name)
        place = 0
        for step in path:
            inside = 0 <= place < len(self.children)
            place = self.children[place].get(step, -1) if inside else -1
        return self.uses.get(place)


def read_graph(data: bytes) -> SavedGraph:
    """Reads ``saved_model.pb``; says nothing of a graph that takes too many steps to follow.

    Raises:
      ValueError: if it is damaged.

    Reference: tensorflow/core/protobuf/saved_model.proto, saved_object_graph.proto
    """
    found: dict[Variable, list[Use]] = {}
    children: list[Mapping[str, int]] = []
    for value in message(data).get(2, []):
        fields = message(value)
        graph, objects = message(value_of(fields, 2, b"")), message(value_of(fields, 7, b""))
        trace = _Trace(message(value_of(graph, 2, b"")).get(1, []))
        if objects:
            children = children or [_children_of(node) for node in objects.get(1, [])]
            runs = [trace.of_function(message(entry)) for entry in objects.get(2, [])]
        else:
            runs = [trace.of_graph(graph.get(1, []))]
        if trace.room < 0:
            return SavedGraph((), {})
        for run in sorted(runs, key=len, reverse=True):
            for variable, uses in run.items():
                # Where gradients are computed too, another kind of convolution reads a kernel.
                alone = len({use.kind for use in uses}) == 1
                found.setdefault(variable, []).extend(uses[:1] if alone else ())
    plain = {variable: uses for variable, uses in found.items() if len({u.kind for u in uses}) == 1}
    return SavedGraph(children, {variable: uses[0] for variable, uses in plain.items()})


def _children_of(node: Any) -> dict[str, int]:
    children = [message(child) for child in message(node).get(1, [])]
    return {string_of(child, 2): value_of(child, 1, 0) for child in children}


def _integers(values: Iterable[Any]) -> list[int]:
    """Returns a repeated field of integers, which may be packed into one field."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value):
            number, place = varint(value, place)
            found.append(number)
    return found


def _node(data: Any) -> _Node:
    fields = message(data)
    reads = [each.decode("utf-8", "replace") for each in fields.get(3, []) if type(each) is bytes]
    sources = tuple(name.partition(":")[0] for name in reads if not name.startswith("^"))
    return _Node(string_of(fields, 1), string_of(fields, 2), sources, tuple(fields.get(5, [])))


class _Trace:
    """Follows variables through the functions of a graph to the convolutions that read them.

    Attributes:
      room: the steps that may still be taken; below 0 if they were too few.
    """

    def __init__(self, functions: Sequence[Any]):
        self.room = _MOST_STEPS
        self._functions: dict[str, tuple[list[str], list[Any]]] = {}
        self._nodes: dict[str, dict[str, _Node]] = {}
        for each in functions:
            function = message(each)
            signature = message(value_of(function, 1, b""))
            arguments = [string_of(message(argument), 1) for argument in signature.get(2, [])]
            self._functions[string_of(signature, 1)] = arguments, function.get(3, [])

    def of_function(self, entry: dict[int, list[Any]]) -> dict[Variable, list[Use]]:
        """Returns the convolutions that read the variables to which a function is bound."""
        name, bound = string_of(entry, 1), _integers(message(value_of(entry, 2, b"")).get(2, []))
        found: dict[Variable, list[Use]] = {}
        arguments, _ = self._functions.get(name, ((), ()))
        if 0 < len(bound) <= len(arguments):
            known = dict(zip(arguments[-len(bound) :], bound, strict=True))
            self._follow(self._inside(name), known, arguments, found)
        return found

    def of_graph(self, nodes: Sequence[Any]) -> dict[Variable, list[Use]]:
        """Returns the convolutions that read the variables of a graph of TensorFlow 1."""
        found: dict[Variable, list[Use]] = {}
        inside = self._parsed(nodes)
        known: dict[str, Variable] = {
            node.name: string_of(node.attribute("shared_name"), 2) or node.name
            for node in inside.values()
            if node.operation in _VARIABLES
        }
        self._follow(inside, known, (), found)
        return found

    def _inside(self, name: str) -> dict[str, _Node]:
        if name not in self._nodes:
            self._nodes[name] = self._parsed(self._functions[name][1])
        return self._nodes[name]

    def _parsed(self, nodes: Sequence[Any]) -> dict[str, _Node]:
        # Reading a node takes as long as several steps.
        self.room -= 10 * len(nodes)
        if self.room < 0:
            return {}
        return {node.name: node for node in map(_node, nodes)}

    def _follow(
        self,
        nodes: Mapping[str, _Node],
        known: Mapping[str, Variable],
        plain: Container[str],
        found: dict[Variable, list[Use]],
        depth: int = 0,
    ) -> None:
        """Notes the convolutions that read `known` arguments or nodes, also in functions called.

        The arguments that are `plain` are known not to be padded.
        """
        self.room -= len(nodes)
        if not known or self.room < 0 or depth > _MOST_CALLS:
            return
        for node in nodes.values():
            kind = _CONVOLUTIONS.get(node.operation)
            if kind is not None and len(node.reads) > 1:
                variable = known.get(_source(node.reads[1], nodes))
                if variable is not None:
                    found.setdefault(variable, []).append(_use(kind, node, nodes, plain))
            called = self._called(node) if kind is None else None
            if called is not None:
                pairs = list(zip(self._functions[called][0], node.reads, strict=False))
                sources = {name: _source(read, nodes) for name, read in pairs}
                passed = {name: known[each] for name, each in sources.items() if each in known}
                inner = {name for name, each in sources.items() if _is_plain(each, nodes, plain)}
                self._follow(self._inside(called), passed, inner, found, depth + 1)

    def _called(self, node: _Node) -> str | None:
        """Returns the function that a node calls."""
        name = node.operation
        if name in _CALLS:
            name = string_of(message(value_of(node.attribute("f"), 10, b"")), 1)
        return name if name in self._functions else None


def _source(name: str, nodes: Mapping[str, _Node]) -> str:
    """Returns the node or argument whose values a node passes on."""
    for _ in range(_MOST_CALLS):
        node = nodes.get(name)
        if node is None or node.operation not in _PASSING or not node.reads:
            break
        name = node.reads[0]
    return name


def _is_plain(name: str, nodes: Mapping[str, _Node], plain: Container[str]) -> bool:
    """Returns whether a node or an argument is known not to be padded."""
    node = nodes.get(name)
    return name in plain if node is None else node.operation not in (*_PADS, *_CALLS)


def _constant(node: _Node, nodes: Mapping[str, _Node]) -> list[int]:
    """Returns the constant integers that a node reads behind its input; none if it reads others."""
    read = nodes.get(node.reads[1]) if len(node.reads) > 1 else None
    tensor = message(value_of(read.attribute("value"), 8, b"")) if read is not None else {}
    dtype = np.dtype({3: "<i4", 9: "<i8"}.get(value_of(tensor, 1, 0), "V1"))
    content = value_of(tensor, 4, b"")
    if dtype.kind != "i" or len(content) % dtype.itemsize:
        return []
    return [int(number) for number in np.frombuffer(content, dtype)]


def _use(kind: str, node: _Node, nodes: Mapping[str, _Node], plain: Container[str]) -> Use:
    """Describes a convolution; `plain` are the arguments that nothing has padded."""
    rows, columns = (2, 3) if string_of(node.attribute("data_format"), 2) == "NCHW" else (1, 2)
    strides, dilations = node.numbers("strides"), node.numbers("dilations") or [1] * 4
    sizes = (*strides, *dilations)
    if len(strides) != 4 or len(dilations) != 4 or not all(0 < n <= _LARGEST for n in sizes):
        raise ValueError(f"a convolution with the strides {strides} and dilations {dilations}")
    source = _source(node.reads[0], nodes)
    before = nodes.get(source)
    stride, dilation = (strides[rows], strides[columns]), (dilations[rows], dilations[columns])
    # What dilates a convolution may stand around it, and pads too.
    if before is not None and before.operation == "SpaceToBatchND":
        block = _constant(before, nodes)
        return Use(kind, stride, (block[0], block[1]) if len(block) == 2 else None, None)
    rule, pads = string_of(node.attribute("padding"), 2), node.numbers("explicit_paddings")
    if rule == "SAME":
        return Use(kind, stride, dilation, "SAME")
    if rule == "VALID" and (kind == "transposed" or _is_plain(source, nodes, plain)):
        pads = [0] * 8
    elif rule == "VALID" and before is not None and before.operation in ("Pad", "PadV2"):
        pads = _constant(before, nodes)
    if len(pads) != 8 or not all(0 <= n <= _LARGEST for n in pads):
        return Use(kind, stride, dilation, None)
    sides = [(pads[2 * axis], pads[2 * axis + 1]) for axis in (rows, columns)]
    return Use(kind, stride, dilation, (sides[0], sides[1]))
