"""A tree of image files with one folder per class."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from kernsym_jax.data.encoded_set import EncodedSet, Files
from kernsym_jax.data.picture import BrokenImage

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
SPLIT_NAMES = {name for names in _SPLIT_FOLDERS.values() for name in names}


def load(place: str, split: str) -> EncodedSet:
    """Lists ``<place>/<split>/<class>/<image>``.

    A place that has no folder of a split, but folders of classes, is itself a test split.

    Args:
      place: the folder that holds ``train`` and ``test`` (or ``val``, ``validation``).
      split: ``train`` or ``test``.

    Returns:
      The images in the order of their paths. The classes are the folders' names, sorted. Files
      whose names start with a dot are passed over; every other one is taken for an image.

    Raises:
      FileNotFoundError: if the folder, the split or its images are not there.
      ValueError: if the splits do not have the same classes.
    """
    root = pathlib.Path(place)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    present = {entry.name for entry in root.iterdir() if entry.is_dir()}
    name = split_folder(str(root), present, split)
    folder = root / name
    classes = _class_names(folder)
    for other in split_folders(present) if name else ():
        require_same_classes(str(root), classes, _class_names(root / other))
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        members = sorted(_visible_files(folder / class_name), key=lambda file: file.split(os.sep))
        files += members
        labels += [label] * len(members)
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


def members(root: pathlib.Path) -> dict[pathlib.PurePosixPath, Callable[[], bytes] | None]:
    """What is in a folder and in those below it, as `archive.members` gives it of an archive."""
    found: dict[pathlib.PurePosixPath, Callable[[], bytes] | None] = {}
    for path, below, files in _walk(root):
        found.update((path / name, None) for name in below)
        for name in files:
            found[path / name] = functools.partial(_read, str(root / path / name))
    return found


def states(root: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change of all files of `members`: other ones if one changes."""
    walked = _walk(root)
    return tuple(sorted(_state(str(root / at / name)) for at, _, files in walked for name in files))


def split_folders(present: set[str], splits: Iterable[str] = _SPLIT_FOLDERS) -> list[str]:
    """Which of the folders that are present are those of the splits."""
    found = ([name for name in _SPLIT_FOLDERS[split] if name in present] for split in splits)
    return [names[0] for names in found if names]


def split_folder(place: str, present: set[str], split: str) -> str:
    """Which of the folders that are present is a split; empty if the place itself is.

    Raises:
      FileNotFoundError: if none is.
    """
    for name in split_folders(present, [split]):
        return name
    if split == "test" and present and not present & SPLIT_NAMES:
        return ""
    raise FileNotFoundError(f"{place}: no folder {' or '.join(_SPLIT_FOLDERS[split])} in it")


def require_same_classes(place: str, classes: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Raises `ValueError`, with their names, if classes are not in both splits."""
    if classes != other:
        odd = sorted(set(classes) ^ set(other))
        raise ValueError(f"{place}: the splits differ in the classes {', '.join(odd)}")


def _visible_files(folder: str | os.PathLike[str]) -> Iterator[str]:
    # Unlike `rglob`, this asks the disk once per folder instead of once per file.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry.path
            elif not entry.is_symlink():
                yield from _visible_files(entry.path)


def _walk(root: pathlib.Path) -> Iterator[tuple[pathlib.PurePosixPath, list[str], list[str]]]:
    """Every folder with those below it and its files, but for what starts with a dot."""
    for folder, below, files in os.walk(root, followlinks=True):
        path = pathlib.PurePosixPath(os.path.relpath(folder, root))
        # Splits and what they consist of may be links to elsewhere; further down, one that leads
        # back up would have no end.
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            and (len(path.parts) < 2 or not os.path.islink(os.path.join(folder, name)))
        ]
        yield path, list(below), [name for name in files if not name.startswith(".")]


def _read(file: str) -> bytes:
    # Reading a pipe would never end.
    if not os.path.isfile(file):
        raise BrokenImage(f"{file}: not a readable file")
    try:
        return pathlib.Path(file).read_bytes()
    except OSError as error:
        raise BrokenImage(f"{file}: not a readable file ({error.strerror})") from error


def _state(file: str) -> tuple[str, int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return file, -1, -1
    return file, found.st_size, found.st_mtime_ns


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    entries = (entry for entry in folder.iterdir() if entry.is_dir())
    return tuple(sorted(entry.name for entry in entries if not entry.name.startswith(".")))
