"""Reads tar files from any source, with bounded memory and without writing to disk."""

import bz2
import contextlib
import functools
import gzip
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from kernsym_jax.cli import printable
from kernsym_jax.data.decode import BrokenImage

MOST_BYTES = 2**28
"""Size of the largest image file that is read."""

_BLOCK = 512
_CHUNK = 2**20
# Linux cannot open a longer path.
_MOST_NAME = 4096
# The most bytes of a header that holds a long name or, in pax archives, attributes.
_MOST_HEADER_BYTES, _MOST_HEADER_FIELDS = 2**20, 1000
# A compressed archive is read from the front and held in memory. Image files hardly shrink when
# they are compressed, so an archive that grows beyond this holds something else.
_MOST_GROWTH, _GROWS_TO = 4, 2**28
# Many members in few bytes are no images either, and each takes time.
_LEAST_BYTES_PER_HEADER, _HEADERS_IN_ANY = 32, 30_000
# Folders are listed to this depth: a common folder, a split, and a class or a kind.
_FOLDER_DEPTH = 3

_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"X", b"g", b"L", b"K"
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00\x80": lzma.open,
}

Path = pathlib.PurePosixPath
# Returns the bytes of a file, or raises `BrokenImage`; None stands for a folder.
Read = Callable[[], bytes] | None


def members(path: pathlib.Path) -> dict[Path, Read]:
    """Lists the files and folders in a tar file.

    A plain tar file stays on disk and is read member by member. The files of a compressed one are
    held in memory, each as it is encoded.

    Args:
      path: the tar file, plain or compressed by gzip, bzip2 or xz.

    Returns:
      A function that returns the bytes for every file, and None for every folder of the first three
      levels, also for folders that only occur in the names of files. Files and folders whose names
      start with a dot are left out.

    Raises:
      ValueError: if the file is no tar file or damaged, if a member leads out of the archive, is
        neither a file nor a folder or has too long a header, and if a compressed archive grows to
        more than four times its size and 256 MiB.
    """
    found: dict[Path, Read] = {}
    try:
        with _open(path) as archive:
            for member in _members(archive):
                _add(archive, member, found)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: not a readable tar file ({error})") from error
    return found


def state(path: pathlib.Path) -> tuple[int, int]:
    """Returns size and time of change of an archive."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def name_in_words(name: object, most: int = 200) -> str:
    """Returns a name from an archive for a message: printable, short and in one line."""
    text = printable(str(name))
    return text if len(text) <= most else f"{text[:most]}…"


class _Member(NamedTuple):
    """The member that a header describes."""

    name: str
    kind: bytes
    size: int
    sparse: bool


class _Archive:
    """Reads a tar file from front to end, up to the limits on size and growth.

    Attributes:
      path: the tar file.
      size: its size in bytes, as it lies on disk.
      compressed: whether the bytes cannot be read again.
      offset: bytes that have been read or skipped.
    """

    def __init__(self, path: pathlib.Path, file: IO[bytes], *, compressed: bool) -> None:
        self.path, self.size, self.compressed = path, path.stat().st_size, compressed
        self.offset = 0
        self._file = file
        self._most = _MOST_GROWTH * self.size + _GROWS_TO

    def read(self, size: int, what: str) -> bytes:
        """Returns the next bytes, fewer at the end of the file; ``what`` names them in errors."""
        self._require(size, what)
        content = self._file.read(size)
        self.offset += len(content)
        return content

    def skip(self, size: int, what: str) -> None:
        """Skips the next bytes."""
        self._require(size, what)
        if not self.compressed:
            if self.offset + size > self.size:
                raise tarfile.ReadError("unexpected end of data")
            self._file.seek(size, 1)
            self.offset += size
            return
        end = self.offset + size
        while self.offset < end:
            if not self.read(min(end - self.offset, _CHUNK), what):
                raise tarfile.ReadError("unexpected end of data")

    def _require(self, size: int, what: str) -> None:
        if self.compressed and self.offset + size > self._most:
            raise ValueError(
                f"{self.path}: {what} makes it grow to more than {_MOST_GROWTH} times its size and "
                f"{_GROWS_TO >> 20} MiB; a compressed archive is held in memory, decompress it to "
                "a plain .tar first"
            )


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[_Archive]:
    with path.open("rb") as file:
        start = file.read(_BLOCK)
        file.seek(0)
        opener = next(
            (opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None
        )
        if opener is None:
            yield _Archive(path, file, compressed=False)
            return
    with opener(path) as file:
        yield _Archive(path, file, compressed=True)


def _members(archive: _Archive) -> Iterator[_Member]:
    """Yields the members in their order; the caller reads or skips the content of each."""
    most = _HEADERS_IN_ANY + archive.size // _LEAST_BYTES_PER_HEADER
    extra: dict[str, str] = {}
    name = "its start"
    for count in range(most):
        block = archive.read(_BLOCK, f"the header behind {name}")
        # Two empty blocks end an archive; some programs write one or none.
        if not block.strip(b"\0"):
            if not count and len(block) < _BLOCK:
                raise tarfile.ReadError("empty file")
            return
        # Raises `tarfile.HeaderError` for a block that is no header.
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        name = _shown(extra.get("path", header.name))
        if header.type in (_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            extra |= _extra_header(archive, header, name)
            continue
        yield _Member(
            extra.get("path", header.name),
            header.type,
            _size(extra.get("size", str(header.size)), name),
            header.issparse() or any(key.startswith("GNU.sparse.") for key in extra),
        )
        extra = {}
    raise ValueError(f"{archive.path}: more than {most} members in {archive.size} bytes: no images")


def _extra_header(archive: _Archive, header: tarfile.TarInfo, name: str) -> dict[str, str]:
    """Reads an additional header, for what does not fit into the next member's own header."""
    if not 0 <= header.size <= _MOST_HEADER_BYTES:
        raise tarfile.ReadError(
            f"the header of the member {name} has {header.size} bytes, more than "
            f"{_MOST_HEADER_BYTES}"
        )
    content = archive.read(header.size, f"the header of the member {name}")
    if len(content) < header.size:
        raise tarfile.ReadError("unexpected end of data")
    archive.skip(-header.size % _BLOCK, f"the header of the member {name}")
    if header.type == _LONG_LINK:
        return {}
    if header.type == _LONG_NAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    fields = _pax_fields(content, name)
    if header.type != _PAX_GLOBAL:
        return fields
    if fields.keys() & {"path", "size"}:
        raise tarfile.ReadError(f"{name} gives all members one name or size")
    return {}


def _pax_fields(content: bytes, name: str) -> dict[str, str]:
    """Reads the fields of a pax header, each ``<length> <key>=<value>`` and a line break."""
    fields: dict[str, str] = {}
    content = content.rstrip(b"\0")
    start = 0
    for _ in range(_MOST_HEADER_FIELDS):
        if start == len(content):
            return fields
        length = content[start : start + 8].split(b" ")[0]
        end = start + int(length) if length.isdigit() else 0
        field = content[start + len(length) + 1 : end - 1]
        if not start < end <= len(content) or content[end - 1 : end] != b"\n" or b"=" not in field:
            raise tarfile.ReadError(f"the header of the member {name} is damaged")
        key, _, value = field.partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start = end
    raise tarfile.ReadError(
        f"the header of the member {name} has more than {_MOST_HEADER_FIELDS} fields"
    )


def _add(archive: _Archive, member: _Member, found: dict[Path, Read]) -> None:
    """Adds a member and the folders above it, and skips its content."""
    path, shown = archive.path, _shown(member.name)
    if len(member.name) > _MOST_NAME:
        raise ValueError(f"{path}: the member {shown} has a name of {len(member.name)} characters")
    name = Path(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{path}: the member {shown} leads out of the archive")
    if member.sparse or member.kind not in (*_FILES, _FOLDER):
        raise ValueError(f"{path}: the member {shown} is no plain file or folder")
    is_folder = member.kind == _FOLDER
    if not name.parts and not is_folder:
        raise ValueError(f"{path}: the member {shown} is a file without a name")
    hidden = any(part.startswith(".") for part in name.parts)
    if not hidden:
        folders = name.parts if is_folder else name.parts[:-1]
        for depth in range(1, min(len(folders), _FOLDER_DEPTH) + 1):
            above = Path(*folders[:depth])
            if found.setdefault(above, None) is not None:
                raise ValueError(f"{path}: {_shown(str(above))} is a file and a folder")
        if not is_folder and name in found and found[name] is None:
            raise ValueError(f"{path}: {shown} is a file and a folder")
    if is_folder:
        return
    padded, what = member.size + -member.size % _BLOCK, f"the member {shown}"
    if hidden or not archive.compressed or member.size > MOST_BYTES:
        if not hidden:
            found[name] = functools.partial(_read_at, path, shown, archive.offset, member.size)
        archive.skip(padded, what)
        return
    # The archive can only be read from the front, so the content is kept.
    content = archive.read(member.size, what)
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    archive.skip(padded - member.size, what)
    found[name] = functools.partial(bytes, content)


def _read_at(path: pathlib.Path, name: str, offset: int, size: int) -> bytes:
    if size > MOST_BYTES:
        raise BrokenImage(f"{path}: the member {name} has {size} bytes, more than {MOST_BYTES}")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _size(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise tarfile.ReadError(f"the member {name} has the size {text[:20]}")
    return int(text)


def _shown(name: str) -> str:
    return f"'{name_in_words(name, 100)}'"
