"""Reads archives of arrays, zip and HDF5: views of their members, and a limit on what may inflate.

The HDF5 library can crash or never return on a damaged file. `kernsym_jax.formats.guard` keeps that
away from the process of the user. pyfive, a reader in pure Python, cannot crash. But it takes
0.05 s instead of 0.09 s for a model of 320 arrays, a small part of starting the guarded process,
and it needs numcodecs, another compiled library. So the reader stays with h5py.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, map_file, natural_order, view

FREE_INFLATION = 256 << 20
"""Bytes that any archive may inflate to; a larger one may inflate to eight times its own size."""

MAX_DIRECTORY = 32 << 20
"""Bytes of an archive's directory, which takes about a hundred for each member."""

_LOCAL_HEADER = 30

MAX_OBJECTS = 200_000
"""Groups and arrays of an HDF5 file."""


class _Content(io.RawIOBase):
    """Bytes as a file, without a copy of them."""

    def __init__(self, data: np.ndarray):
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._data.size}[whence]
        if base + offset < 0:
            raise ValueError("the archive names a place before its beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: part.size] = part.data
        self._position += part.size
        return part.size


class ZipMembers:
    """A zip archive of arrays, read member by member.

    Attributes:
      names: the members' names in the archive's order, without directories.
    """

    def __init__(self, source: str | os.PathLike | np.ndarray):
        """Reads the archive's directory.

        Args:
          source: the file, or its bytes: uint8 (bytes,).

        Raises:
          ValueError: if it is not a zip archive, would inflate beyond `FREE_INFLATION` and eight
            times its own size, or names the same bytes several times.
        """
        self._data = source if isinstance(source, np.ndarray) else map_file(source)
        if _directory_size(self._data) > MAX_DIRECTORY:
            raise ValueError("refused: the archive has more members than any network has arrays")
        try:
            with zipfile.ZipFile(_Content(self._data)) as archive:
                items = [item for item in archive.infolist() if not item.is_dir()]
        except (
            zipfile.BadZipFile,
            struct.error,
            NotImplementedError,
            ValueError,
            OSError,
        ) as error:
            raise ValueError(f"a damaged zip archive ({error})") from error
        if len({item.header_offset for item in items}) != len(items):
            raise ValueError("refused: the archive has several members in one place")
        self._items = {item.filename: item for item in items}
        self.names = list(self._items)
        inflated = sum(item.file_size for item in items if item.compress_type != zipfile.ZIP_STORED)
        if inflated > max(FREE_INFLATION, 8 * self._data.size):
            raise ValueError(
                f"refused: an archive of {self._data.size} bytes that inflates to {inflated}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def size(self, name: str) -> int:
        """Returns the size in bytes that the directory states for a member."""
        return self._items[name].file_size

    def place(self, name: str) -> tuple[int, int] | None:
        """Returns (start, size) of a member's bytes in the file; None if it is compressed."""
        item = self._items[name]
        if item.compress_type != zipfile.ZIP_STORED:
            return None
        return self._start(item), item.file_size

    def head(self, name: str, size: int) -> bytes:
        """Returns the first bytes of a member without checking its checksum."""
        item = self._items[name]
        if item.compress_type == zipfile.ZIP_STORED:
            return self._content(item)[:size].tobytes()
        return self._inflate(item, size)

    def read(self, name: str) -> np.ndarray:
        """Returns a member's bytes, uint8 (size,): a view of the file if it is uncompressed.

        Raises:
          ValueError: if the archive is damaged at this member.
        """
        item = self._items[name]
        if item.compress_type == zipfile.ZIP_STORED:
            content = self._content(item)
        else:
            content = np.frombuffer(self._inflate(item, item.file_size + 1), np.uint8)
        if content.size != item.file_size:
            raise ValueError(f"{name} holds {content.size} bytes instead of {item.file_size}")
        # The checksum is zero if PyTorch was told to write none.
        if item.CRC and zlib.crc32(content.data) != item.CRC:
            raise ValueError(f"{name} is damaged: its checksum is wrong")
        return content

    def _inflate(self, item: zipfile.ZipInfo, size: int) -> bytes:
        if item.compress_type != zipfile.ZIP_DEFLATED:
            raise ValueError(f"{item.filename} is compressed, but not by deflate")
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._content(item).data, size)
        except zlib.error as error:
            raise ValueError(f"{item.filename} is damaged ({error})") from error

    def _content(self, item: zipfile.ZipInfo) -> np.ndarray:
        start = self._start(item)
        return self._data[start : start + item.compress_size]

    def _start(self, item: zipfile.ZipInfo) -> int:
        header = self._data[item.header_offset : item.header_offset + _LOCAL_HEADER].tobytes()
        if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{item.filename} is not where the archive's directory says")
        if item.flag_bits & 0x1:
            raise ValueError(f"{item.filename} is encrypted")
        name_length, extra_length = struct.unpack("<HH", header[26:])
        start = item.header_offset + _LOCAL_HEADER + name_length + extra_length
        if start + item.compress_size > self._data.size:
            raise ValueError(f"{item.filename} reaches beyond the end of the file")
        return start


def _directory_size(data: np.ndarray) -> int:
    """Returns the size of the directory that the end of an archive states; 0 if it states none."""
    tail = data[-(1 << 17) :].tobytes()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 16 > len(tail):
        return 0
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\x06\x06", 0, end)
    if size == 0xFFFF_FFFF and large >= 0:
        size = int.from_bytes(tail[large + 40 : large + 48], "little")
    return size


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

    def given_name(self, group: str) -> str:
        """Returns the name that Keras notes for a layer, after those of the models around it."""
        parts = group.split("/")
        names = []
        for index, part in enumerate(parts):
            if part != "layers":
                noted = self.groups.get("/".join([*parts[: index + 1], "vars"]), {}).get("name")
                names.append(noted or part)
        return "/".join(names)


def read_hdf5(path: str | os.PathLike) -> Hdf5:
    """Reads an HDF5 file.

    Args:
      path: the file.

    Returns:
      Its groups and arrays; uncompressed arrays are views of the file.

    Raises:
      ValueError: if the file is damaged or lacks values of an array, or its arrays claim more than
        256 MiB and eight times its own size.
    """
    return read_hdf5_bytes(map_file(path))


def read_hdf5_bytes(data: np.ndarray) -> Hdf5:
    """Reads HDF5 content in memory, uint8 (bytes,), as `read_hdf5` reads a file."""
    with _opened(data) as file:
        return _Listing(data).of(file)


def read_hdf5_attributes(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the text attributes of an HDF5 file itself, without reading its arrays."""
    with _opened(map_file(path)) as file:
        return _texts(file)


@contextlib.contextmanager
def _opened(data: np.ndarray) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(_Content(data), "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # the library's own errors
        raise ValueError(f"a damaged HDF5 file ({error})") from error


class _Listing:
    """Collects the groups and arrays of a file.

    Args:
      data: the bytes of the file.
    """

    def __init__(self, data: np.ndarray):
        self._data = data
        self._limit = max(FREE_INFLATION, 8 * data.size)
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
        """Returns the values of an array: a view of the file if they lie in it as they are."""
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
