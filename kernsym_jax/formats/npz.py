"""Reads NumPy's ``.npz`` and ``.npy`` files, and Equinox's ``.eqx``, without running pickles."""

import ast
import os
import pathlib
import re

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_JSON,
    StoredArray,
    element_count,
    map_file,
    parse_json,
    view,
)
from kernsym_jax.formats.zip_archive import ZipMembers

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000
_MOST_RECORDS = 200_000
_NUMBERS = re.compile(r"[<>|=]?([biufcV][1-9][0-9]?)")


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
            start, dtype, shape, fortran = _header(members.head(member, _LARGEST_HEADER), name)
        except NotNumbersError:
            skipped[name] = "an array of something other than numbers: not read"
            continue
        if members.size(member) != start + element_count(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {members.size(member)} bytes for {shape} of {dtype}")
        arrays[name] = _array(members, member, start, dtype, shape, fortran)
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
    start, dtype, shape, fortran = _header(data[:_LARGEST_HEADER].tobytes(), name)
    if data.size != start + element_count(shape) * dtype.itemsize:
        raise ValueError(f"{data.size} bytes for an array {shape} of {dtype}")
    flat = view(data, start, dtype, (element_count(shape),))
    return {name: StoredArray.of(flat.reshape(shape, order="F" if fortran else "C"))}


def has_records(path: str | os.PathLike) -> bool:
    """Returns whether a file holds more than one ``.npy`` array, or one behind a line of JSON."""
    data = map_file(path)
    if data[:1].tobytes() == b"{":
        start = _line_end(data)
        return data[start : start + 6].tobytes() == _MAGIC
    if data[:6].tobytes() != _MAGIC:
        return False
    try:
        start, dtype, shape, _ = _header(data[:_LARGEST_HEADER].tobytes(), "the first array")
    except ValueError:
        return False
    end = start + element_count(shape) * dtype.itemsize
    return data[end : end + 6].tobytes() == _MAGIC


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
        start, dtype, shape, fortran = _header(head, f"array {name}")
        flat = view(data, place + start, dtype, (element_count(shape),))
        arrays[name] = StoredArray.of(flat.reshape(shape, order="F" if fortran else "C"))
        place += start + flat.nbytes
    return arrays


def _line_end(data: np.ndarray) -> int:
    """Returns where the first line ends; 0 if it is longer than any listing."""
    return data[:MAX_JSON].tobytes().find(b"\n") + 1


def _array(
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


def _header(head: bytes, name: str) -> tuple[int, np.dtype, tuple[int, ...], bool]:
    """Returns where the values start, their type, the shape, and whether the order is Fortran's."""
    if head[:6] != _MAGIC or head[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
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
    return start, _dtype(descr, name), shape, bool(fortran)


def _dtype(descr: object, name: str) -> np.dtype:
    match = _NUMBERS.fullmatch(descr) if isinstance(descr, str) else None
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
