"""Reads the checkpoints of TensorFlow, and the variables of a SavedModel, without TensorFlow.

A checkpoint is an index (``net-1.index``), which is a sorted table as LevelDB writes it, and files
of values (``net-1.data-00000-of-00001``).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, StoredArray, element_count, map_file, view

MAX_INDEX = 64 << 20
"""Bytes of an index, and of all its blocks together once they are unpacked."""

MAX_ENTRIES = 200_000
MAX_NAME = 1000

SAVED_MODEL = "variables/variables.index"
"""The index of a SavedModel's variables, in its folder."""

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_PLAIN, _SNAPPY = 0, 1
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_STRING = 7
_TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}
_OPTIMIZER = "optimizer state"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """The variables of a checkpoint.

    Attributes:
      arrays: name -> array.
      skipped: name of a variable that does not belong to the network -> why.
      ordered: whether the variables come in the order of the objects that hold them.
    """

    arrays: dict[str, StoredArray]
    skipped: dict[str, str]
    ordered: bool


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What the index says of a variable: number of its type, its shape and its place."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


def index_of(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the index of the checkpoint at a path, or None if it is none.

    Args:
      path: the index; one of the files of values; the prefix that TensorFlow names a checkpoint by
        (``net-1``); or a folder with one checkpoint, or with the file ``checkpoint`` that names the
        newest, or of a SavedModel.
    """
    location = pathlib.Path(path)
    if location.is_dir():
        saved = location / SAVED_MODEL
        if saved.is_file():
            return saved
        indices = sorted(location.glob("*.index"))
        newest = _newest(location)
        chosen = [index for index in indices if index.name == f"{newest}.index"] or indices
        return chosen[0] if len(chosen) == 1 else None
    name = re.sub(r"\.data-\d{5}-of-\d{5}$", "", location.name)
    index = location.with_name(name if name.endswith(".index") else f"{name}.index")
    if not index.is_file() or (name == location.name and index != location and location.exists()):
        return None
    return index


def _newest(folder: pathlib.Path) -> str | None:
    """Returns the name of the checkpoint that the file ``checkpoint`` names."""
    listing = folder / "checkpoint"
    if not listing.is_file() or listing.stat().st_size > 1 << 20:
        return None
    found = re.search(rb'^model_checkpoint_path: "([^"\n]+)"', listing.read_bytes(), re.MULTILINE)
    return pathlib.PurePath(found[1].decode("utf-8", "replace")).name if found else None


def read_bundle(index: pathlib.Path) -> Bundle:
    """Reads the variables of a checkpoint.

    Variables have the names that the layers have given them (``block1/conv/kernel``) if these are
    distinct, or else the way to them in the tree of objects (``model/layer-1/kernel``).

    Args:
      index: the index; the values lie beside it.

    Raises:
      FileNotFoundError: if a file of values is missing.
      ValueError: if it is damaged.

    Reference: tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/format.cc
    """
    entries: dict[str, _Entry] = {}
    shards = 1
    for key, value in _table(map_file(index)):
        if not key:
            shards = _value(_message(value), 1, 0)
            if _value(_message(value), 2, 0):
                raise ValueError("a checkpoint of a machine with big-endian numbers")
        # Slices of a partitioned variable have binary names; the whole is an entry too.
        elif not key.startswith(b"\0"):
            entries[key.decode("utf-8", "replace")] = _entry(value)
    reader = _Values(index, shards)
    names, others = _names(entries, reader)
    arrays: dict[str, StoredArray] = {}
    skipped: dict[str, str] = {}
    for stored, name in names.items():
        entry = entries[stored]
        if entry.sliced:
            skipped[name] = "a variable cut into parts: not read"
        elif entry.dtype == _STRING:
            skipped[name] = "text, not numbers"
        elif entry.dtype not in _TYPES:
            skipped[name] = f"numbers of TensorFlow's type {entry.dtype}: not read"
        else:
            arrays[name] = reader.array(name, entry)
    return Bundle(arrays, skipped | others, ordered=_GRAPH in entries)


class _Values:
    """The files of values of a checkpoint."""

    def __init__(self, index: pathlib.Path, shards: int):
        if not 1 <= shards <= MAX_ENTRIES:
            raise ValueError(f"a checkpoint of {shards} files")
        self._stem = index.name.removesuffix(".index")
        self._folder = index.parent
        self._shards = shards
        self._open: dict[int, np.ndarray] = {}

    def content(self, entry: _Entry) -> np.ndarray:
        """Returns the bytes of an entry: uint8 (size,)."""
        if not 0 <= entry.shard < self._shards:
            raise ValueError(f"values in file {entry.shard} of {self._shards}")
        if entry.shard not in self._open:
            name = f"{self._stem}.data-{entry.shard:05d}-of-{self._shards:05d}"
            path = self._folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, which the index expects")
            self._open[entry.shard] = map_file(path)
        data = self._open[entry.shard]
        return view(data, entry.offset, np.dtype(np.uint8), (entry.size,))

    def array(self, name: str, entry: _Entry) -> StoredArray:
        dtype = DTYPES[_TYPES[entry.dtype]]
        if entry.size != element_count(entry.shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {entry.size} bytes for {entry.shape} of {dtype}")
        if not entry.size:
            return StoredArray.of(np.empty(entry.shape, dtype))
        return StoredArray.of(self.content(entry).view(dtype).reshape(entry.shape))


def _names(entries: dict[str, _Entry], values: _Values) -> tuple[dict[str, str], dict[str, str]]:
    """Names the network's variables: key -> name, and name -> why it is not one, for the others."""
    if _GRAPH not in entries:
        return _flat_names(entries)
    graph = values.content(entries[_GRAPH])
    paths, given = _objects(_text(graph))
    copies: dict[str, str] = {}
    labels: dict[tuple[str, int, int], str] = {}
    for key in paths:
        if key not in entries:
            raise ValueError(f"the tree of objects names {key!r}, which the index lacks")
        twin = (given[key], entries[key].size, entries[key].checksum)
        if "/" in given[key] and twin in labels:
            copies[key.removesuffix(_SUFFIX)] = f"a second copy of {given[key]}"
        else:
            labels.setdefault(twin, key)
    kept = [key for key in paths if key.removesuffix(_SUFFIX) not in copies]
    names = {key: given[key] if "/" in given[key] else paths[key] for key in kept}
    if len(set(names.values())) < len(names):
        names = {key: paths[key] for key in kept}
    names = {key: re.sub(r"(^|/)_(kernel)$", r"\1\2", name) for key, name in names.items()}
    rest = [key for key in entries if key not in paths and key != _GRAPH]
    return names, _counted({key.removesuffix(_SUFFIX): _OPTIMIZER for key in rest}) | copies


def _flat_names(entries: dict[str, _Entry]) -> tuple[dict[str, str], dict[str, str]]:
    """Does the same for a checkpoint of TensorFlow 1, which has slots named after variables."""
    names: dict[str, str] = {}
    others: dict[str, str] = {}
    for key, entry in entries.items():
        above, _, leaf = key.rpartition("/")
        variable = entries.get(above)
        if _SLOT in key:
            others[key] = _OPTIMIZER
        elif variable is not None and variable.shape == entry.shape:
            others[key] = "moving average" if leaf == "ExponentialMovingAverage" else _OPTIMIZER
        else:
            names[key] = key.removesuffix(_SUFFIX)
    return names, _counted(others)


def _counted(others: dict[str, str]) -> dict[str, str]:
    """Joins variables that are left out for one reason under the first part of their names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in others.items():
        groups.setdefault((name.split("/")[0], reason), []).append(name)
    return {
        (names[0] if len(names) == 1 else f"{head} ({reason})"): (
            f"{reason}: {len(names)} array{'s' if len(names) > 1 else ''}"
        )
        for (head, reason), names in groups.items()
    }


def _text(content: np.ndarray) -> bytes:
    """Returns the one string of a tensor of text: its length, a checksum and the characters."""
    data = content.tobytes()
    length, start = _varint(data, 0)
    if start + 4 + length != len(data):
        raise ValueError("a tree of objects of another length than it claims")
    return data[start + 4 :]


def _objects(graph: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Follows the tree of objects from its root, past every optimizer.

    Args:
      graph: a ``TrackableObjectGraph``.

    Returns:
      key of a variable -> the way to it, in the order of the objects; key -> the name that the
      variable was given.
    """
    nodes = [_message(value) for number, value in _fields(graph) if number == 1]
    if len(nodes) > MAX_ENTRIES:
        raise ValueError(f"a tree of more than {MAX_ENTRIES} objects")
    paths: dict[str, str] = {}
    given: dict[str, str] = {}
    seen: set[int] = set()
    pending: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    while pending:
        number, path = pending.pop()
        if number in seen or not 0 <= number < len(nodes):
            continue
        seen.add(number)
        node = nodes[number]
        children = [_message(value) for value in node.get(1, [])]
        named = [(_string(child, 2), _value(child, 1, 0)) for child in children]
        if node.get(3) or {"_iterations", "iter"} & {name for name, _ in named}:
            continue
        for value in node.get(2, []):
            attribute = _message(value)
            key = _string(attribute, 3)
            if key.endswith(_SUFFIX):
                paths[key] = "/".join(path)
                given[key] = _string(attribute, 2)
        if len(path) < 64:
            pending += [
                (child, (*path, name))
                for name, child in reversed(named)
                if name not in ("optimizer", "_optimizer", "save_counter")
            ]
    return paths, given


def _entry(value: bytes) -> _Entry:
    fields = _message(value)
    shape = _message(_value(fields, 2, b""))
    sizes = tuple(_value(_message(dim), 1, 0) for dim in shape.get(2, []))
    if any(not 0 <= size < 1 << 48 for size in sizes):
        raise ValueError(f"a variable of shape {sizes[:8]}")
    shard, offset, size = (_value(fields, number, 0) for number in (3, 4, 5))
    checksum = int.from_bytes(_value(fields, 6, b""), "little")
    dtype = _value(fields, 1, 0)
    return _Entry(dtype, sizes, shard, offset, size, checksum, bool(fields.get(7)))


def _table(data: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yields the (key, value) pairs of a sorted table."""
    if data.size > MAX_INDEX or data.size < _FOOTER or data[-8:].tobytes() != _MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint, or cut")
    content = data.tobytes()
    footer = content[-_FOOTER:]
    _, place = _varint(footer, 0)
    _, place = _varint(footer, place)
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
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
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
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or shared + own > MAX_NAME or place + own + length > end:
            raise ValueError("an entry of the index that reaches beyond its block")
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def unpack_snappy(data: bytes, limit: int) -> bytes:
    """Returns what Snappy has compressed, of at most `limit` bytes."""
    size, place = _varint(data, 0)
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


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of the fields of a protocol buffer: integers, or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, place = _varint(data, place)
        if length is None or place + length > len(data):
            raise ValueError("a protocol buffer that is cut or damaged")
        yield tag >> 3, data[place : place + length]
        place += length


def _message(data: Any) -> dict[int, list[Any]]:
    """Returns the fields of a protocol buffer by number."""
    if not isinstance(data, bytes):
        raise ValueError("a number in place of a protocol buffer")
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _value(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    """Returns a field, of the type that its default has."""
    value = fields.get(number, [default])[0]
    if not isinstance(value, type(default)):
        raise ValueError("a field of another type in a protocol buffer")
    return value


def _string(fields: dict[int, list[Any]], number: int) -> str:
    text = _value(fields, number, b"").decode("utf-8", "replace")
    if len(text) > MAX_NAME:
        raise ValueError(f"a name of {len(text)} characters: {text[:40]!r}…")
    return text


def _varint(data: bytes, place: int) -> tuple[int, int]:
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
