"""Reads the checkpoints of TensorFlow, and the variables of a SavedModel, without TensorFlow.

A checkpoint is an index (``net-1.index``), which is a sorted table as LevelDB writes it, and files
of values (``net-1.data-00000-of-00001``).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, StoredArray, element_count, map_file, view
from kernsym_jax.formats.tensorflow_file import (
    MAX_ENTRIES,
    MAX_GRAPH,
    SavedGraph,
    Use,
    fields_of,
    message,
    read_graph,
    read_table,
    string_of,
    value_of,
    varint,
)

SAVED_MODEL = "variables/variables.index"
"""The index of a SavedModel's variables, in its folder."""

_SAVED = "saved_model.pb"
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
      plain: names of the kernels that Keras 3 keeps as ``_kernel``, which it does in ordinary
        convolutions, but in neither transposed nor depthwise ones.
      uses: name -> the convolution that reads the variable, in the order of a SavedModel's graph.
    """

    arrays: dict[str, StoredArray]
    skipped: dict[str, str]
    ordered: bool
    plain: frozenset[str] = frozenset()
    uses: Mapping[str, Use] = dataclasses.field(default_factory=dict)


Part = tuple[tuple[int, int], ...]
"""Start and length of a part of a variable along each axis; a length of -1 is all of it."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What the index says of a variable: number of its type, its shape, its place, its parts."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[Part, ...]


def index_of(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the index of the checkpoint at a path, or None if it is none.

    Args:
      path: the index; one of the files of values; the prefix that TensorFlow names a checkpoint by
        (``net-1``); the file ``checkpoint`` that names the newest; or a folder with this file, with
        one checkpoint, or of a SavedModel.
    """
    location = pathlib.Path(path)
    if location.name == "checkpoint" and _newest(location.parent) is not None:
        location = location.parent
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
    parts: dict[bytes, _Entry] = {}
    shards = 1
    for key, value in read_table(map_file(index)):
        if not key:
            shards = value_of(message(value), 1, 0)
            if value_of(message(value), 2, 0):
                raise ValueError("a checkpoint of a machine with big-endian numbers")
        # Parts of a variable have binary names; the whole is an entry too.
        elif key.startswith(b"\0"):
            parts[key] = _entry(value)
        else:
            entries[key.decode("utf-8", "replace")] = _entry(value)
    reader = _Values(index, shards, parts)
    names, others, plain, places = _names(entries, reader)
    arrays: dict[str, StoredArray] = {}
    skipped: dict[str, str] = {}
    for stored, name in names.items():
        entry = entries[stored]
        if entry.dtype == _STRING:
            skipped[name] = "text, not numbers"
        elif entry.dtype not in _TYPES:
            skipped[name] = f"numbers of TensorFlow's type {entry.dtype}: not read"
        else:
            arrays[name] = reader.array(stored, entry)
    uses = _uses(_saved_graph(index), {names[key]: (places.get(key, ()), key) for key in names})
    return Bundle(arrays, skipped | others, _GRAPH in entries, plain, uses)


def _saved_graph(index: pathlib.Path) -> SavedGraph | None:
    """Returns the graph of the SavedModel that an index belongs to, if it is not too large."""
    path = index.parents[1] / _SAVED
    if index != path.parent / SAVED_MODEL or not path.is_file():
        return None
    data = map_file(path)
    return read_graph(data.tobytes()) if data.size <= MAX_GRAPH else None


def _uses(
    graph: SavedGraph | None, places: Mapping[str, tuple[tuple[str, ...], str]]
) -> dict[str, Use]:
    """Returns the convolutions that read variables, by the variables' names."""
    if graph is None:
        return {}
    found = {name: graph.use_of(*place) for name, place in places.items()}
    rank = {id(use): number for number, use in enumerate(graph.uses.values())}
    known = {name: use for name, use in found.items() if use is not None}
    return {name: known[name] for name in sorted(known, key=lambda name: rank[id(known[name])])}


class _Values:
    """The files of values of a checkpoint."""

    def __init__(self, index: pathlib.Path, shards: int, parts: dict[bytes, _Entry]):
        if not 1 <= shards <= MAX_ENTRIES:
            raise ValueError(f"a checkpoint of {shards} files, wanted 1 to {MAX_ENTRIES}")
        self._stem = index.name.removesuffix(".index")
        self._folder = index.parent
        self._shards = shards
        self._parts = parts
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
        """Returns the values of a variable, put together from its parts when they are read."""
        dtype = DTYPES[_TYPES[entry.dtype]]
        if entry.slices:
            return self.joined(name, entry, dtype)
        if entry.size != element_count(entry.shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {entry.size} bytes for {entry.shape} of {dtype}")
        if not entry.size:
            return StoredArray.of(np.empty(entry.shape, dtype))
        return StoredArray.of(self.content(entry).view(dtype).reshape(entry.shape))

    def joined(self, name: str, entry: _Entry, dtype: np.dtype) -> StoredArray:
        """Does so for a variable that is cut into parts."""
        places: list[tuple[tuple[slice, ...], StoredArray]] = []
        for part in entry.slices:
            ends = [
                (0, n) if length < 0 else (start, start + length)
                for (start, length), n in zip(part, entry.shape, strict=True)
            ]
            inside = all(
                0 <= start <= end <= n for (start, end), n in zip(ends, entry.shape, strict=True)
            )
            stored = self._parts.get(part_key(name, part))
            if stored is None or not inside or stored.slices or stored.dtype != entry.dtype:
                raise ValueError(f"a part of {name!r} that the index lacks, or that does not fit")
            if stored.shape != tuple(end - start for start, end in ends):
                raise ValueError(f"a part of {name!r} of another shape: {stored.shape}")
            places.append((tuple(slice(*end) for end in ends), self.array(name, stored)))
        if sum(element_count(values.shape) for _, values in places) != element_count(entry.shape):
            raise ValueError(f"the parts of {name!r} do not fill its shape {entry.shape}")

        def read() -> np.ndarray:
            whole, known = np.zeros(entry.shape, dtype), np.zeros(entry.shape, bool)
            for place, values in places:
                whole[place], known[place] = values.read(), True
            if not known.all():
                raise ValueError(f"the parts of {name!r} do not fill its shape {entry.shape}")
            return whole

        return StoredArray(entry.shape, dtype, read)


def part_key(name: str, part: Part) -> bytes:
    """Returns the key of a part of a variable.

    Args:
      name: of the variable.
      part: start and length along each axis.

    Reference: ``EncodeTensorNameSlice``, tensorflow/core/util/saved_tensor_slice_util.cc, and
      tensorflow/core/lib/strings/ordered_code.cc
    """
    text = name.encode().replace(b"\0", b"\0\xff")
    numbers = b"".join(_ordered(number) for place in part for number in place)
    return b"\0" + text + b"\0\1" + bytes([1, len(part)]) + numbers


def _ordered(number: int) -> bytes:
    """Returns a number as bytes in sortable form: as many leading ones as there are bytes."""
    size = 1
    while not -(1 << 7 * size - 1) <= number < 1 << 7 * size - 1:
        size += 1
    header = (1 << 8 * size) - (1 << 7 * size)
    return ((number & (1 << 8 * size) - 1) ^ header).to_bytes(size, "big")


def _names(
    entries: dict[str, _Entry], values: _Values
) -> tuple[dict[str, str], dict[str, str], frozenset[str], dict[str, tuple[str, ...]]]:
    """Names the network's variables.

    Returns:
      key -> name; name -> why it is not one, for the others; `Bundle.plain`; and key -> the way to
      the variable in the tree of objects.
    """
    if _GRAPH not in entries:
        return *_flat_names(entries), frozenset(), {}
    graph = values.content(entries[_GRAPH])
    places, given = _objects(_text(graph))
    paths = {key: "/".join(place) for key, place in places.items()}
    copies: dict[str, str] = {}
    labels: dict[tuple[str, int, int], str] = {}
    for key in paths:
        if key not in entries:
            raise ValueError(f"the tree of objects names {key!r}, which the index lacks")
        twin = (given[key], entries[key].size, entries[key].checksum)
        # Keras lists all variables again by number, in objects of their own.
        listed = paths[key].rpartition("/")[2].isdigit()
        if listed and "/" in given[key] and twin in labels:
            copies[key.removesuffix(_SUFFIX)] = f"a second copy of {given[key]}"
        else:
            labels.setdefault(twin, key)
    kept = [key for key in paths if key.removesuffix(_SUFFIX) not in copies]
    names = {key: given[key] if "/" in given[key] else paths[key] for key in kept}
    if len(set(names.values())) < len(names):
        names = _by_place({key: paths[key] for key in kept}, given)
    names = {key: re.sub(r"(^|/)_(kernel)$", r"\1\2", name) for key, name in names.items()}
    plain = frozenset(names[key] for key in kept if paths[key].rpartition("/")[2] == "_kernel")
    rest = [key for key in entries if key not in paths and key != _GRAPH]
    others = _counted({key.removesuffix(_SUFFIX): _OPTIMIZER for key in rest}) | copies
    return names, others, plain, places


def _by_place(paths: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Names variables by their paths; those of a plain list by layer, if it tells layers apart.

    The kernel, or else the first variable of a kind that the layer has already, begins a layer:
    ``variables/3/kernel`` and ``variables/3/bias``.
    """
    names: dict[str, str] = {}
    place, inside = "", set[str]()
    for key, path in paths.items():
        above, _, number = path.rpartition("/")
        leaf = given[key].rpartition("/")[2]
        if not number.isdigit() or not leaf or leaf.isdigit():
            names[key] = path
            continue
        if leaf in ("kernel", "depthwise_kernel") or leaf in inside or not place.startswith(above):
            place, inside = path, set()
        inside.add(leaf)
        names[key] = f"{place}/{leaf}"
    return names


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
    length, start = varint(data, 0)
    if start + 4 + length != len(data):
        raise ValueError("a tree of objects of another length than it claims")
    return data[start + 4 :]


def _objects(graph: bytes) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Follows the tree of objects from its root, past every optimizer.

    Args:
      graph: a ``TrackableObjectGraph``.

    Returns:
      key of a variable -> the way to it, in the order of the objects; key -> the name that the
      variable was given.
    """
    nodes = [message(value) for number, value in fields_of(graph) if number == 1]
    if len(nodes) > MAX_ENTRIES:
        raise ValueError(f"a tree of more than {MAX_ENTRIES} objects")
    paths: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    seen: set[int] = set()
    pending: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    while pending:
        number, path = pending.pop()
        if number in seen or not 0 <= number < len(nodes):
            continue
        seen.add(number)
        node = nodes[number]
        children = [message(value) for value in node.get(1, [])]
        named = [(string_of(child, 2), value_of(child, 1, 0)) for child in children]
        if node.get(3) or {"_iterations", "iter"} & {name for name, _ in named}:
            continue
        for value in node.get(2, []):
            attribute = message(value)
            key = string_of(attribute, 3)
            if key.endswith(_SUFFIX):
                paths[key] = path
                given[key] = string_of(attribute, 2)
        if len(path) < 64:
            pending += [
                (child, (*path, name))
                for name, child in reversed(named)
                if name not in ("optimizer", "_optimizer", "save_counter")
            ]
    return paths, given


def _entry(value: bytes) -> _Entry:
    fields = message(value)
    shape = message(value_of(fields, 2, b""))
    sizes = tuple(value_of(message(dim), 1, 0) for dim in shape.get(2, []))
    if any(not 0 <= size < 1 << 48 for size in sizes):
        raise ValueError(f"a variable of shape {sizes[:8]}")
    shard, offset, size = (value_of(fields, number, 0) for number in (3, 4, 5))
    checksum = int.from_bytes(value_of(fields, 6, b""), "little")
    dtype = value_of(fields, 1, 0)
    slices = tuple(_part(message(part)) for part in fields.get(7, []))
    if any(len(part) != len(sizes) for part in slices):
        raise ValueError(f"a part of a variable of shape {sizes[:8]} with other axes")
    return _Entry(dtype, sizes, shard, offset, size, checksum, slices)


def _part(fields: dict[int, list[Any]]) -> Part:
    """Reads a TensorSliceProto."""
    extents = [message(extent) for extent in fields.get(1, [])]
    return tuple((value_of(extent, 1, 0), value_of(extent, 2, -1)) for extent in extents)
