"""Tar files of class folders, read without writing anything to disk."""

import functools
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator

from kernsym_jax.data import folder
from kernsym_jax.data.encoded_set import EncodedSet, Files

_BLOCK = 512
_MOST_BYTES = 2**28
_MOST_HELD = 8 * 2**30

Path = pathlib.PurePosixPath
# Gives a file's bytes; None stands for a folder.
Read = Callable[[], bytes] | None


def load(place: str, split: str) -> EncodedSet:
    """Lists ``<split>/<class>/<image>`` in a tar file, perhaps below one common folder.

    An uncompressed file is read image by image where it lies; of a compressed one the split's
    images are held in memory, encoded as they are.

    Args:
      place: the tar file, plain or compressed by gzip, bzip2 or xz.
      split: ``train`` or ``test``.

    Returns:
      The images in the order of their paths; what is wrong is found when they are listed.

    Raises (when listed):
      FileNotFoundError: if the split or its images are not there.
      ValueError: if the file is no tar file or damaged, a member's name leads out of the archive,
        a member is neither a file nor a folder, or the splits do not have the same classes.
    """
    path = pathlib.Path(place)
    identity = state(path)
    return EncodedSet(
        place=f"{path.resolve()}, {split} split",
        identity=lambda: identity,
        list=lambda: _files(path, split),
    )


def members(path: pathlib.Path) -> dict[Path, Read]:
    """What is in a tar file, below a folder that all have in common.

    Args:
      path: the tar file, plain or compressed.

    Returns:
      Every file with what gives its bytes, and every folder with ``None``.

    Raises:
      ValueError: as `load` does.
    """
    try:
        found = dict(_members(path))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: not a readable tar file ({error})") from error
    return _without_common_folder(found)


def state(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of change of an archive: other ones if it has changed."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _files(path: pathlib.Path, split: str) -> Files:
    found = members(path)
    folders = {member.parts[0] for member, read in found.items() if read is None}
    name = folder.split_folder(str(path), folders, split)
    classes = _class_names(found, name)
    for other in folder.split_folders(folders) if name else ():
        folder.require_same_classes(str(path), classes, _class_names(found, other))
    depth = 1 if name else 0
    images = [
        (member, read, classes.index(member.parts[depth]))
        for member, read in sorted(found.items(), key=lambda item: item[0].parts)
        if read is not None and len(member.parts) > depth + 1 and _inside(member, name)
    ]
    if not images:
        raise FileNotFoundError(f"{path}: no images in the class folders of {name or 'it'}")
    return Files(
        size=len(images),
        classes=classes,
        record=lambda index: (images[index][1](), images[index][2]),
        name=lambda index: f"{path}/{images[index][0]}",
    )


def _members(path: pathlib.Path) -> Iterator[tuple[Path, Read]]:
    """Every folder, also those that only a file's name tells of, and every file that shows."""
    held, compressed = 0, not _is_plain(path)
    with tarfile.open(path, "r|*" if compressed else "r:") as archive:
        if not compressed and path.stat().st_size % _BLOCK:
            raise tarfile.ReadError("unexpected end of data")
        for member in archive:
            name = Path(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{path}: the member {member.name!r} leads out of the archive")
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise ValueError(f"{path}: the member {member.name!r} is no plain file or folder")
            if any(part.startswith(".") for part in name.parts):
                continue
            for above in (name, *name.parents)[0 if member.isdir() else 1 : -1]:
                yield above, None
            if member.isreg():
                if member.size > _MOST_BYTES:
                    raise ValueError(f"{path}: {member.name!r} has {member.size} bytes: no image")
                if not compressed:
                    yield name, functools.partial(_read_at, path, member.offset_data, member.size)
                    continue
                # It can only be read from the front: what it holds is kept.
                held += member.size
                if held > _MOST_HELD:
                    raise ValueError(
                        f"{path}: more than {_MOST_HELD >> 30} GiB; a compressed archive is held "
                        "in memory, decompress it to a plain .tar first"
                    )
                content = archive.extractfile(member)
                assert content is not None, "only members that are no files have no content"
                yield name, functools.partial(bytes, content.read())


def _is_plain(path: pathlib.Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _read_at(path: pathlib.Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _without_common_folder(members: dict[Path, Read]) -> dict[Path, Read]:
    """The members with their common first folder taken off, unless that is itself a split."""
    first = {member.parts[0] for member in members}
    if len(first) != 1 or first & folder.SPLIT_NAMES:
        return members
    return {
        Path(*member.parts[1:]): read for member, read in members.items() if len(member.parts) > 1
    }


def _class_names(members: dict[Path, Read], split: str) -> tuple[str, ...]:
    depth = 1 if split else 0
    return tuple(
        sorted(
            member.parts[depth]
            for member, read in members.items()
            if read is None and len(member.parts) == depth + 1 and _inside(member, split)
        )
    )


def _inside(member: Path, split: str) -> bool:
    return not split or member.parts[0] == split
