"""Reads HDF5 files, or those inside other files, as views of the mapped bytes.

The HDF5 library can crash or never return on a damaged file. `kernsym_jax.formats.guard` keeps that
away from the process of the user.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, map_file, natural_order, view

MAX_OBJECTS = 200_000
_FREE_SIZE = 256 << 20


@dataclasses.dataclass(frozen=True)
class Hdf5:
    """The content of an HDF5 file.

    Attributes:
      groups: path -> text attributes; the path of the root is empty.
      arrays: path -> array of numbers.
    """

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, StoredArray]

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """Returns a list of texts, which Keras writes into several attributes if it is long."""
        attributes = self.groups.get(group, {})
        if attribute in attributes:
            return attributes[attribute]
        parts = [name for name in attributes if re.fullmatch(rf"{attribute}\d{{1,9}}", name)]
        if not parts:
            return None
        return [text for part in sorted(parts, key=natural_order) for text in attributes[part]]


def read(path: str | os.PathLike) -> Hdf5:
    """Reads an HDF5 file.

    Args:
      path: the file.

    Returns:
      Its groups and arrays; uncompressed arrays are views of the file.

    Raises:
      ValueError: if the file is damaged or lacks values of an array, or its arrays claim more than
        256 MiB and eight times its own size.
    """
    return read_bytes(map_file(path))


def read_bytes(data: np.ndarray) -> Hdf5:
    """Reads HDF5 content in memory, uint8 (bytes,), as `read` does a file."""
    with _opened(data) as file:
        return _Listing(data).of(file)


def read_attributes(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the text attributes of an HDF5 file itself, without reading its arrays."""
    with _opened(map_file(path)) as file:
        return _texts(file)


@contextlib.contextmanager
def _opened(data: np.ndarray) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(_Bytes(data), "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # the library's own errors
        raise ValueError(f"a damaged HDF5 file ({error})") from error


class _Bytes(io.RawIOBase):
    """Bytes in memory as a file, without a copy of them."""

    def __init__(self, data: np.ndarray):
        self._data = data.data
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves within the bytes."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._data)}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads what fits."""
        content = self._data[self._position : self._position + len(buffer)]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Listing:
    """Collects the groups and arrays of a file.

    Args:
      data: the bytes of the file.
    """

    def __init__(self, data: np.ndarray):
        self._data = data
        self._limit = max(_FREE_SIZE, 8 * data.size)
        self._claimed = 0
        self._groups: dict[str, dict[str, Any]] = {}
        self._arrays: dict[str, StoredArray] = {}

    def of(self, file: Any) -> Hdf5:
        """Visits every group and array of an h5py.File."""
        self._groups[""] = _texts(file)
        file.visititems(self._visit)
        return Hdf5(self._groups, self._arrays)

    def _visit(self, name: str, item: Any) -> None:
        import h5py

        if len(self._groups) + len(self._arrays) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} groups and arrays")
        if isinstance(item, h5py.Group):
            self._groups[name] = _texts(item)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.external or item.is_virtual:
                raise ValueError(f"refused: {name!r} has its values in other files")
            if item.dtype.kind in "fiub" and not item.dtype.hasobject:
                self._arrays[name] = StoredArray.of(self._values(name, item))

    def _values(self, name: str, item: Any) -> np.ndarray:
        """The values of an array: a view of the file if they lie in it as they are."""
        self._claimed += item.size * item.dtype.itemsize
        if self._claimed > self._limit:
            raise ValueError(f"refused: a file whose arrays claim more than {self._limit} bytes")
        # The library would give zeros for values that were never written, or are lost.
        if item.size and not _is_complete(item):
            raise ValueError(f"{name!r} lacks values: the file was cut, or not written to its end")
        offset = item.id.get_offset() if item.chunks is None else None
        if offset is not None:
            return view(self._data, offset, item.dtype, item.shape)
        return np.ascontiguousarray(item[()])


def _is_complete(item: Any) -> bool:
    if item.chunks is None:
        return item.id.get_storage_size() > 0
    chunks = math.prod(-(-n // m) for n, m in zip(item.shape, item.chunks, strict=True))
    return item.id.get_num_chunks() == chunks


def _texts(item: Any) -> dict[str, Any]:
    """Returns the attributes that are text or lists of text."""
    found: dict[str, Any] = {}
    for name in item.attrs:
        if math.prod(item.attrs.get_id(name).shape) > MAX_OBJECTS:
            raise ValueError(f"the attribute {name!r} has more than {MAX_OBJECTS} entries")
        value = item.attrs[name]
        if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
            found[name] = [_text(part) for part in value.reshape(-1).tolist()]
        elif isinstance(value, str | bytes):
            found[name] = _text(value)
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
