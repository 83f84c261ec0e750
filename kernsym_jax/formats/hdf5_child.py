"""Lists an HDF5 file for `hdf5.read`; a program of its own, since damaged files crash the library.

The arguments are the file, the offset and size in bytes of the HDF5 content in it, the number of
bytes that its arrays may take, and the limit of processor time in seconds. The program writes to
standard output the length of a JSON listing (8 bytes), the listing, and the values of the arrays
that the file does not hold as they are, such as compressed ones.
"""

import io
import json
import math
import os
import pathlib
import struct
import sys
from typing import Any, BinaryIO

import h5py
import numpy as np

MAX_OBJECTS = 200_000


class Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: str, start: int, size: int):
        self.file = open(path, "rb")  # noqa: SIM115 - closed with the process
        self.start, self.length, self.position = start, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        """The position within the part."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Reads what fits."""
        wanted = min(len(buffer), max(0, self.length - self.position))
        self.file.seek(self.start + self.position)
        content = self.file.read(wanted)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def listing(file: h5py.File, start: int, limit: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the text attributes of groups, the places of arrays, and arrays without a place."""
    groups: dict[str, dict[str, Any]] = {"": texts(file)}
    arrays: list[dict[str, Any]] = []
    inline: list[np.ndarray] = []
    total = 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        if len(groups) + len(arrays) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} groups and arrays")
        if isinstance(item, h5py.Group):
            groups[name] = texts(item)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.external or item.is_virtual:
                raise ValueError(f"refused: {name!r} has its values in other files")
            if item.dtype.kind not in "fiub" or item.dtype.hasobject:
                return
            total += item.size * item.dtype.itemsize
            if total > limit:
                raise ValueError(f"refused: a file whose arrays claim more than {limit} bytes")
            offset = item.id.get_offset() if item.chunks is None else None
            arrays.append(
                {
                    "name": name,
                    "shape": item.shape,
                    "dtype": item.dtype.str,
                    "offset": None if offset is None else start + offset,
                }
            )
            if offset is None:
                inline.append(np.ascontiguousarray(item[()]))

    file.visititems(visit)
    return {"groups": groups, "arrays": arrays}, inline


def texts(item: Any) -> dict[str, Any]:
    """Returns the attributes that are text or lists of text."""
    found: dict[str, Any] = {}
    for name in item.attrs:
        if math.prod(item.attrs.get_id(name).shape) > MAX_OBJECTS:
            raise ValueError(f"the attribute {name!r} has more than {MAX_OBJECTS} entries")
        value = item.attrs[name]
        if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
            found[name] = [text(part) for part in value.reshape(-1).tolist()]
        elif isinstance(value, str | bytes):
            found[name] = text(value)
    return found


def text(value: Any) -> str:
    """Returns bytes or text as text."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def main(path: str, start: int, size: int, limit: int, output: BinaryIO) -> None:
    """Writes the listing of a file."""
    with h5py.File(Part(path, start, size), "r") as file:
        described, inline = listing(file, start, limit)
        content = json.dumps(described).encode()
        output.write(struct.pack("<Q", len(content)) + content)
        for array in inline:
            output.write(array.data)


def bound_time(seconds: int) -> None:
    """Limits the processor time of this process, in seconds."""
    try:
        import resource
    except ImportError:  # on Windows, where only the caller's clock limits the time
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def bound_memory(limit: int) -> None:
    """Limits the memory in bytes by which this process can grow."""
    try:
        import resource

        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    try:
        start, size, limit, seconds = (int(argument) for argument in sys.argv[2:6])
        bound_time(seconds)
        bound_memory(3 * limit)
        main(sys.argv[1], start, size, limit, sys.stdout.buffer)
    except Exception as error:
        print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
        sys.exit(1)
