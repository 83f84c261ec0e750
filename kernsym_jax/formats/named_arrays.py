"""Reads files that hold named arrays and little else: safetensors, NumPy, Equinox and Flax msgpack.

None of them runs what a file contains: no pickle, and no class but those of arrays.
"""

import ast
import math
import os
import pathlib
import re
from typing import Any

import msgpack
import numpy as np

from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_AXES,
    MAX_JSON,
    StoredArray,
    element_count,
    map_file,
    parse_json,
    shortened,
    view,
)

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}

_NPY_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000
_MOST_RECORDS = 200_000
_NPY_NUMBERS = re.compile(r"[<>|=]?([biufcV][1-9][0-9]?)")

MAX_MSGPACK_ITEMS = 200_000
"""Items of all containers of a file together."""

MAX_MSGPACK_ENTRIES = 20_000
"""Items of one container.

The library allocates a list before it reads its items, and nests up to 1,024 containers, so this
bounds what a small file can make it allocate.
"""

MAX_MSGPACK_TEXT = 1 << 20

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_LONGEST_DTYPE = 64


def read_safetensors(
    path: str | os.PathLike,
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Reads the header of a safetensors file.

    Args:
      path: the file.

    Returns:
      name -> array, in the order of the file; and name -> reason for arrays of element types that
      are not read, such as numbers of 4 bits.

    Raises:
      ValueError: if the header is damaged, or its arrays overlap, leave gaps or reach outside the
        file.

    Reference: https://github.com/huggingface/safetensors#format
    """
    data = map_file(path)
    length = int(view(data, 0, np.dtype("<u8"), ()))
    if not 2 <= length <= min(MAX_JSON, data.size - 8):
        raise ValueError(f"a safetensors header of {length} bytes in a file of {data.size}")
    header = parse_json(data[8 : 8 + length].tobytes(), _without_repeats)
    if not isinstance(header, dict):
        raise ValueError("a safetensors header that is not a JSON object")
    header.pop("__metadata__", None)
    content = data[8 + length :]
    arrays: dict[str, StoredArray] = {}
    skipped: dict[str, str] = {}
    position = 0
    for name, (begin, end), kind, shape in sorted(
        map(_safetensors_entry, header.items()), key=_place
    ):
        dtype = DTYPES.get(_SAFETENSORS_DTYPES.get(kind, ""))
        # How many bits an unknown type has is unknown too.
        size = end - begin if dtype is None else element_count(shape) * dtype.itemsize
        if begin != position or end - begin != size or size < 0:
            raise ValueError(f"{name!r} at bytes {begin} to {end} overlaps, or leaves a gap")
        if dtype is None:
            skipped[name] = f"numbers of the type {shortened(kind, 20)}: not read"
        else:
            arrays[name] = StoredArray.of(view(content, begin, dtype, shape))
        position = end
    if position != content.size:
        raise ValueError(f"the arrays take {position} bytes of {content.size}: the file is cut")
    return arrays, skipped


def read_weight_map(path: str | os.PathLike) -> dict[str, str]:
    """Reads the index of a checkpoint in several files.

    Args:
      path: ``….safetensors.index.json`` or ``….bin.index.json``.

    Returns:
      array name -> name of a file in the folder of the index.

    Raises:
      ValueError: if it is not such an index, or names a file in another folder.
    """
    index = parse_json(map_file(path).tobytes())
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("a JSON file, but not the index of a sharded checkpoint (no weight_map)")
    for name, file in files.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise ValueError(f"refused: the index places {name!r} outside its own folder: {file!r}")
    return files


_Entry = tuple[str, tuple[int, int], str, list[int]]
"""Name, first byte and the one behind the last, element type, shape."""


def _safetensors_entry(item: tuple[str, Any]) -> _Entry:
    name, entry = item
    known = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    if not known or not isinstance(entry["shape"], list):
        raise ValueError(f"{name!r} has no dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str):
        raise ValueError(f"{name!r} has a dtype that is no text")
    element_count(entry["shape"])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise ValueError(f"{name!r} has the data_offsets {offsets!r}")
    return name, (offsets[0], offsets[1]), entry["dtype"], entry["shape"]


def _place(entry: _Entry) -> tuple[int, int]:
    return entry[1]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a safetensors header that holds a name twice")
    return made


class NotNumbersError(ValueError):
    """The error for an array of text, records or Python objects."""


def read_npz(path: str | os.PathLike) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Reads the directory of an ``.npz`` archive and the headers of its arrays.

    Args:
      path: the file.

    Returns:
      name -> array, in the archive's order; and name -> reason for arrays that do not hold numbers
      and are not read.

    Raises:
      ValueError: if it is damaged, or an array has another size than it claims.
    """
    members = ZipMembers(path)
    arrays: dict[str, StoredArray] = {}
    skipped: dict[str, str] = {}
    for member in members.names:
        name = member.removesuffix(".npy")
        if name == member:
            raise ValueError(f"an archive with {member!r}, which is not a .npy array")
        try:
            start, dtype, shape, fortran = _npy_header(members.head(member, _LARGEST_HEADER), name)
        except NotNumbersError:
            skipped[name] = "an array of something other than numbers: not read"
            continue
        if members.size(member) != start + element_count(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {members.size(member)} bytes for {shape} of {dtype}")
        arrays[name] = _npy_array(members, member, start, dtype, shape, fortran)
    return arrays, skipped


def read_npy(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads a single ``.npy`` array and names it after the file.

    Args:
      path: the file.

    Raises:
      ValueError: if it is damaged, or has another size than it claims.
    """
    data = map_file(path)
    name = pathlib.Path(path).stem
    start, dtype, shape, fortran = _npy_header(data[:_LARGEST_HEADER].tobytes(), name)
    if data.size != start + element_count(shape) * dtype.itemsize:
        raise ValueError(f"{data.size} bytes for an array {shape} of {dtype}")
    flat = view(data, start, dtype, (element_count(shape),))
    return {name: StoredArray.of(flat.reshape(shape, order="F" if fortran else "C"))}


def has_records(path: str | os.PathLike) -> bool:
    """Returns whether a file holds more than one ``.npy`` array, or one behind a line of JSON."""
    data = map_file(path)
    if data[:1].tobytes() == b"{":
        start = _line_end(data)
        return data[start : start + 6].tobytes() == _NPY_MAGIC
    if data[:6].tobytes() != _NPY_MAGIC:
        return False
    try:
        start, dtype, shape, _ = _npy_header(data[:_LARGEST_HEADER].tobytes(), "the first array")
    except ValueError:
        return False
    end = start + element_count(shape) * dtype.itemsize
    return data[end : end + 6].tobytes() == _NPY_MAGIC


def read_records(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads arrays that follow one another, as ``equinox.tree_serialise_leaves`` writes them.

    Args:
      path: the file; a line of JSON may come before the arrays.

    Returns:
      number -> array: the file has no names, and the arrays come in the order of the tree.

    Raises:
      ValueError: if it is damaged.
    """
    data = map_file(path)
    place = 0
    if data[:1].tobytes() == b"{":
        place = _line_end(data)
        parse_json(data[:place].tobytes())
    arrays: dict[str, StoredArray] = {}
    while place < data.size:
        name = str(len(arrays))
        if len(arrays) >= _MOST_RECORDS:
            raise ValueError(f"more than {_MOST_RECORDS} arrays")
        head = data[place : place + _LARGEST_HEADER].tobytes()
        start, dtype, shape, fortran = _npy_header(head, f"array {name}")
        flat = view(data, place + start, dtype, (element_count(shape),))
        arrays[name] = StoredArray.of(flat.reshape(shape, order="F" if fortran else "C"))
        place += start + flat.nbytes
    return arrays


def _line_end(data: np.ndarray) -> int:
    """Returns where the first line ends; 0 if it is longer than any listing."""
    return data[:MAX_JSON].tobytes().find(b"\n") + 1


def _npy_array(
    members: ZipMembers,
    member: str,
    start: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    fortran: bool,
) -> StoredArray:
    def read() -> np.ndarray:
        flat = view(members.read(member), start, dtype, (element_count(shape),))
        return flat.reshape(shape, order="F" if fortran else "C")

    return StoredArray(shape, dtype, read)


def _npy_header(head: bytes, name: str) -> tuple[int, np.dtype, tuple[int, ...], bool]:
    """Returns where the values start, their type, the shape, and whether the order is Fortran's."""
    if head[:6] != _NPY_MAGIC or head[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError(f"{name!r} is not a .npy array")
    width = 2 if head[6] == 1 else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if start > len(head):
        raise ValueError(f"{name!r} has a header of {start} bytes, or is cut")
    try:
        header = ast.literal_eval(head[8 + width : start].decode("utf-8"))
        descr, shape = header["descr"], header["shape"]
        fortran = header["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name!r} has a header that cannot be read") from error
    if not isinstance(shape, tuple):
        raise ValueError(f"{name!r} has a shape that is not a tuple")
    element_count(shape)
    return start, _npy_dtype(descr, name), shape, bool(fortran)


def _npy_dtype(descr: object, name: str) -> np.dtype:
    match = _NPY_NUMBERS.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise NotNumbersError(
            f"refused: {name!r} is an array of {str(descr)[:40]!r}, not of numbers"
        )
    # NumPy loses the names of ml_dtypes; bfloat16 is the only one with two bytes.
    if match[1] == "V2":
        return DTYPES["bfloat16"]
    try:
        return np.dtype(match[0])
    except TypeError as error:
        raise ValueError(f"{name!r} has the unknown type {descr!r}") from error


def read_msgpack(path: str | os.PathLike) -> Any:
    """Reads a msgpack file of nested dictionaries.

    Args:
      path: the file.

    Returns:
      dicts, lists and scalars, with arrays as `StoredArray`.

    Raises:
      ValueError: if it is damaged, or holds something that Flax does not write.

    Reference: https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    data = map_file(path)
    count = _Count()
    try:
        return msgpack.unpackb(
            data.data,
            ext_hook=_extension,
            object_pairs_hook=count.mapping,
            list_hook=count.sequence,
            strict_map_key=False,
            max_str_len=MAX_MSGPACK_TEXT,
            max_bin_len=data.size,
            max_array_len=MAX_MSGPACK_ENTRIES,
            max_map_len=MAX_MSGPACK_ENTRIES,
            max_ext_len=data.size,
        )
    except (msgpack.UnpackException, msgpack.ExtraData, ValueError) as error:
        raise ValueError(f"msgpack data that is cut or damaged ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # The text of ExtraData would spell out every byte that it found.
    text = "more bytes behind the end" if isinstance(error, msgpack.ExtraData) else str(error)
    return text or type(error).__name__


class _Count:
    """Builds the containers of a file and counts what they hold."""

    def __init__(self) -> None:
        self.items = 0

    def add(self, more: int) -> None:
        self.items += 1 + more
        if self.items > MAX_MSGPACK_ITEMS:
            raise ValueError(f"more than {MAX_MSGPACK_ITEMS} items")

    def sequence(self, items: list[Any]) -> list[Any]:
        self.add(len(items))
        return items

    def mapping(self, pairs: list[tuple[Any, Any]]) -> Any:
        self.add(len(pairs))
        made: dict[str, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str | int):
                raise ValueError(f"a {type(key).__name__} as a key")
            made[str(key)] = value
        return _joined(made) if _CHUNKED in made else made


def _extension(kind: int, content: bytes) -> Any:
    """Decodes an array or a scalar, which Flax writes as (shape, dtype, bytes)."""
    parts = msgpack.unpackb(
        content,
        max_str_len=_LONGEST_DTYPE,
        max_bin_len=len(content),
        max_array_len=MAX_AXES,
        max_map_len=0,
        max_ext_len=0,
    )
    if kind == _COMPLEX:
        return parts
    if kind not in (_NDARRAY, _SCALAR) or not isinstance(parts, list) or len(parts) != 3:
        raise ValueError(f"an extension of the unknown kind {kind}")
    shape, name, data = parts
    if isinstance(name, bytes):
        name = name.decode("ascii")
    if name not in DTYPES or not isinstance(data, bytes) or not isinstance(shape, list):
        raise ValueError(f"an array of the unknown type {str(name)[:40]!r}")
    if len(data) != element_count(shape) * DTYPES[name].itemsize:
        raise ValueError(f"an array of shape {shape} and type {name} with {len(data)} bytes")
    return StoredArray.of(view(np.frombuffer(data, np.uint8), 0, DTYPES[name], shape))


def _joined(parts: dict[str, Any]) -> StoredArray:
    """Joins an array that Flax has written in pieces because it is large."""
    chunks, shape = parts.get("chunks"), parts.get("shape")
    if not isinstance(chunks, dict) or not isinstance(shape, dict):
        raise ValueError("a chunked array without chunks")
    pieces = list(chunks.values())
    sizes = tuple(shape.values())
    whole = element_count(sizes)
    if not pieces or not all(isinstance(piece, StoredArray) for piece in pieces):
        raise ValueError("a chunked array without values")
    if sum(math.prod(piece.shape) for piece in pieces) != whole:
        raise ValueError(f"the chunks of an array {sizes} do not add up to it")

    def read() -> np.ndarray:
        return np.concatenate([piece.read().reshape(-1) for piece in pieces]).reshape(sizes)

    return StoredArray(sizes, pieces[0].dtype, read)
