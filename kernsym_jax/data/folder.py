"""Trees of image files, in a folder or a tar file: a folder per class, or images with masks."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from kernsym_jax.data import archive
from kernsym_jax.data.archive import Path, Read, name_in_words
from kernsym_jax.data.decode import BrokenImage
from kernsym_jax.data.image_set import EncodedSet, Files, MaskCoding, Masks

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
_SPLIT_NAMES = {name for names in _SPLIT_FOLDERS.values() for name in names}

Tree = Mapping[Path, Read]


def load(place: str, split: str) -> EncodedSet:
    """Lists ``<split>/<class>/<image>`` in a folder or a tar file.

    A place without folders of splits, but with folders of classes, is itself a test split.

    Args:
      place: the folder that holds ``train`` and ``test`` (or ``val``, ``validation``), or a tar
        file of it, perhaps below one common folder.
      split: ``train`` or ``test``.

    Returns:
      The images in the order of their paths. The classes are the folders' names, sorted. Files
      whose names start with a dot are left out; every other file is taken for an image.

    Raises:
      FileNotFoundError: if the place, the split or its images are not there.
      ValueError: if the splits do not have the same classes, or a tar file cannot be read; for a
        tar file these errors are raised when its images are listed.
    """
    path = pathlib.Path(place)
    if not path.is_file():
        return _load_folder(path, split)
    identity = archive.state(path)
    return EncodedSet(
        place=f"{path.resolve()}, {split} split",
        identity=lambda: identity,
        list=lambda: _files_of_archive(path, split),
    )


def load_masks(place: str, split: str, coding: MaskCoding) -> EncodedSet:
    """Lists ``<split>/images/<name>.<suffix>`` with ``<split>/masks/<name>.<suffix>``.

    A place without folders of splits, but with folders of images and masks, is itself a test split.

    Args:
      place: the folder, or a tar file of it, that holds ``train`` and ``test`` (or ``val``,
        ``validation``).
      split: ``train`` or ``test``.
      coding: the meaning of the masks' values.

    Returns:
      The images in the order of their names; errors are raised when they are listed. Files whose
      names start with a dot are left out.

    Raises:
      FileNotFoundError: if the place is not there; when listed, if the split, its folders or its
        images are not there.
      ValueError: when listed, if an image has no mask or a mask no image, or a tar file cannot be
        read.
    """
    path = pathlib.Path(place)
    packed = path.is_file()
    if not packed and not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or archive")

    def listed() -> Files:
        tree = _unpacked(path) if packed else _tree(path)
        return _files_with_masks(str(path), tree, split, coding)

    return EncodedSet(
        place=f"{path.resolve()}, {split} split with masks",
        identity=lambda: archive.state(path) if packed else _states(path),
        list=listed,
        coding=coding,
    )


def _load_folder(root: pathlib.Path, split: str) -> EncodedSet:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    present = {entry.name for entry in root.iterdir() if entry.is_dir()}
    name = _split_folder(str(root), present, split)
    folder = root / name
    classes = _class_names(folder)
    for other in _split_folders(present) if name else ():
        _require_same_classes(str(root), classes, _class_names(root / other))
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = sorted(_visible_files(folder / class_name), key=lambda file: file.split(os.sep))
        files += found
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(f"{folder}: no images in its folders")
    listed = Files(
        size=len(files),
        classes=classes,
        record=lambda index: (_read(files[index]), labels[index]),
        name=lambda index: files[index],
    )
    return EncodedSet(
        place=str(folder.resolve()),
        identity=lambda: tuple(_state(file) for file in files),
        list=lambda: listed,
    )


def _files_of_archive(path: pathlib.Path, split: str) -> Files:
    tree = _unpacked(path)
    folders = {member.parts[0] for member, read in tree.items() if read is None}
    name = _split_folder(str(path), folders, split)
    classes = _classes_in(tree, name)
    for other in _split_folders(folders) if name else ():
        _require_same_classes(str(path), classes, _classes_in(tree, other))
    below = Path(name)
    depth = len(below.parts)
    numbers = {name: number for number, name in enumerate(classes)}
    images = [
        (member, read, numbers[member.parts[depth]])
        for member, read in sorted(tree.items(), key=lambda item: item[0].parts)
        if read is not None and len(member.parts) > depth + 1 and member.is_relative_to(below)
    ]
    if not images:
        raise FileNotFoundError(f"{path}: no images in the class folders of {name or 'it'}")
    return Files(
        size=len(images),
        classes=classes,
        record=lambda index: (images[index][1](), images[index][2]),
        name=lambda index: f"{path}/{name_in_words(images[index][0])}",
    )


class _Member(NamedTuple):
    name: Path
    read: Callable[[], bytes]


def _files_with_masks(place: str, tree: Tree, split: str, coding: MaskCoding) -> Files:
    folders = {path.parts[0] for path, read in tree.items() if path.parts and read is None}
    name = _split_folder(place, folders, split)
    pairs = _pairs(place, tree, name)
    # All splits have the classes of the training masks, if there are any.
    train = next(iter(_split_folders(folders, ["train"])), name)
    known = pairs if train == name else _pairs(place, tree, train)
    coding = coding.completed(
        place,
        len(known),
        lambda index: (known[index][1].read(), f"{place}/{name_in_words(known[index][1].name)}"),
    )
    return Files(
        size=len(pairs),
        classes=coding.classes,
        record=lambda index: (pairs[index][0].read(), pairs[index][1].read()),
        name=lambda index: f"{place}/{name_in_words(pairs[index][0].name)}",
        masks=Masks(coding, lambda index: f"{place}/{name_in_words(pairs[index][1].name)}"),
    )


def _pairs(place: str, tree: Tree, split: str) -> list[tuple[_Member, _Member]]:
    images, masks = (_by_name(place, tree, Path(split) / kind) for kind in ("images", "masks"))
    for these, others, kind, other in (
        (images, masks, "mask", "image"),
        (masks, images, "image", "mask"),
    ):
        alone = sorted(these.keys() - others.keys())
        if alone:
            more = f", and {len(alone) - 1} more like it" if len(alone) > 1 else ""
            name = name_in_words(these[alone[0]].name)
            raise ValueError(f"{place}/{name}: no {kind} of that name for this {other}{more}")
    return [(images[key], masks[key]) for key in sorted(images, key=lambda key: key.parts)]


def _by_name(place: str, tree: Tree, below: Path) -> dict[Path, _Member]:
    """Returns the files below a folder by their names without suffix."""
    if below not in tree:
        raise FileNotFoundError(f"{place}: no folder {below} in it")
    found: dict[Path, _Member] = {}
    for path, read in tree.items():
        if read is None or not path.is_relative_to(below):
            continue
        key = path.relative_to(below).with_suffix("")
        if key in found:
            raise ValueError(
                f"{place}: {name_in_words(found[key].name)} and {name_in_words(path)} have one name"
            )
        found[key] = _Member(path, read)
    if not found:
        raise FileNotFoundError(f"{place}: no files in its folder {below}")
    return found


def _split_folders(present: set[str], splits: Iterable[str] = _SPLIT_FOLDERS) -> list[str]:
    """Returns the folders of the splits that are present."""
    found = ([name for name in _SPLIT_FOLDERS[split] if name in present] for split in splits)
    return [names[0] for names in found if names]


def _split_folder(place: str, present: set[str], split: str) -> str:
    """Returns the folder of a split; empty if the place itself is the split."""
    for name in _split_folders(present, [split]):
        return name
    if split == "test" and present and not present & _SPLIT_NAMES:
        return ""
    raise FileNotFoundError(f"{place}: no folder {' or '.join(_SPLIT_FOLDERS[split])} in it")


def _require_same_classes(place: str, classes: tuple[str, ...], other: tuple[str, ...]) -> None:
    if classes != other:
        odd = sorted(set(classes) ^ set(other))
        named = ", ".join(name_in_words(name, 50) for name in odd[:5])
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise ValueError(f"{place}: the splits differ in the classes {named}{more}")


def _unpacked(path: pathlib.Path) -> Tree:
    """Returns the members of a tar file, below their common folder if they have one."""
    members = archive.members(path)
    first = {member.parts[0] for member in members}
    if len(first) != 1 or first & _SPLIT_NAMES:
        return members
    return {
        Path(*member.parts[1:]): read for member, read in members.items() if len(member.parts) > 1
    }


def _classes_in(tree: Tree, split: str) -> tuple[str, ...]:
    below = Path(split)
    depth = len(below.parts)
    return tuple(
        sorted(
            member.parts[depth]
            for member, read in tree.items()
            if read is None and len(member.parts) == depth + 1 and member.is_relative_to(below)
        )
    )


def _tree(root: pathlib.Path) -> Tree:
    """Returns the files and folders below a folder as `archive.members` does."""
    found: dict[Path, Read] = {}
    for path, below, files in _walk(root):
        found.update((path / name, None) for name in below)
        for name in files:
            found[path / name] = functools.partial(_read, str(root / path / name))
    return found


def _states(root: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
    """Returns names, sizes and times of change of all files below a folder."""
    walked = _walk(root)
    return tuple(sorted(_state(str(root / at / name)) for at, _, files in walked for name in files))


def _walk(root: pathlib.Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields every folder with its folders and files, except those that start with a dot."""
    for folder, below, files in os.walk(root, followlinks=True):
        path = Path(os.path.relpath(folder, root))
        # Splits and their folders may be links to elsewhere; further down, a link that leads back
        # up would have no end.
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            and (len(path.parts) < 2 or not os.path.islink(os.path.join(folder, name)))
        ]
        yield path, list(below), [name for name in files if not name.startswith(".")]


def _visible_files(folder: str | os.PathLike[str]) -> Iterator[str]:
    # Unlike `rglob`, this asks the disk once per folder instead of once per file.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield entry.path
            elif not entry.is_symlink():
                yield from _visible_files(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself; reading it reports what is wrong.
        return False


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    entries = (entry for entry in folder.iterdir() if entry.is_dir())
    return tuple(sorted(entry.name for entry in entries if not entry.name.startswith(".")))


def _read(file: str) -> bytes:
    # Reading a pipe would never end.
    if not os.path.isfile(file):
        raise BrokenImage(f"{file}: not a readable file")
    try:
        size = os.path.getsize(file)
        if size > archive.MOST_BYTES:
            raise BrokenImage(f"{file}: {size} bytes, more than {archive.MOST_BYTES}")
        return pathlib.Path(file).read_bytes()
    except OSError as error:
        raise BrokenImage(f"{file}: not a readable file ({error.strerror})") from error


def _state(file: str) -> tuple[str, int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return file, -1, -1
    return file, found.st_size, found.st_mtime_ns
