"""Reads zip archives: views of uncompressed members, and a limit on what may be inflated."""

import io
import os
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import map_file

FREE_INFLATION = 256 << 20
"""Bytes that any archive may inflate to; a larger one may inflate to eight times its own size."""

MAX_DIRECTORY = 32 << 20
"""Bytes of an archive's directory, which takes about a hundred for each member."""

_LOCAL_HEADER = 30


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
            raise ValueError("a place before the beginning of an archive")
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
            raise ValueError("refused: an archive of more members than any network has arrays")
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
            raise ValueError("refused: an archive with several members in one place")
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
