"""Images with masks: a folder or an archive of them, each pair under one name."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from kernsym_jax.data import archive, folder
from kernsym_jax.data.encoded_set import EncodedSet, Files, Masks
from kernsym_jax.data.mask import MaskCoding

Path = pathlib.PurePosixPath
Members = dict[Path, Callable[[], bytes] | None]


class _Member(NamedTuple):
    name: Path
    read: Callable[[], bytes]


def load(place: str, split: str, coding: MaskCoding) -> EncodedSet:
    """Lists ``<split>/images/<name>.<suffix>`` with ``<split>/masks/<name>.<suffix>``.

    A place that has no folder of a split, but folders of images and masks, is itself a test split.

    Args:
      place: the folder, or a tar file of it, that holds ``train`` and ``test`` (or ``val``,
        ``validation``).
      split: ``train`` or ``test``.
      coding: what the values of the masks mean.

    Returns:
      The images in the order of their names; what is wrong is found when they are listed. Files
      whose names start with a dot are passed over.

    Raises:
      FileNotFoundError: if the place is not there, and when listed if the split, its folders or its
        images are not.
      ValueError (when listed): if an image has no mask or a mask no image, or the archive is none.
    """
    path = pathlib.Path(place)
    packed = path.is_file()
    if not packed and not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or archive")
    return EncodedSet(
        place=f"{path.resolve()}, {split} split with masks",
        identity=lambda: archive.state(path) if packed else folder.states(path),
        list=lambda: _files(
            str(path), archive.members(path) if packed else folder.members(path), split, coding
        ),
        coding=coding,
    )


def _files(place: str, members: Members, split: str, coding: MaskCoding) -> Files:
    folders = {path.parts[0] for path, read in members.items() if read is None}
    name = folder.split_folder(place, folders, split)
    pairs = _pairs(place, members, name)
    # All splits have the classes of the training masks, where there are any.
    train = next(iter(folder.split_folders(folders, ["train"])), name)
    known = pairs if train == name else _pairs(place, members, train)
    coding = coding.completed(
        place, len(known), lambda index: (known[index][1].read(), f"{place}/{known[index][1].name}")
    )
    return Files(
        size=len(pairs),
        classes=coding.classes,
        record=lambda index: (pairs[index][0].read(), pairs[index][1].read()),
        name=lambda index: f"{place}/{pairs[index][0].name}",
        masks=Masks(coding, lambda index: f"{place}/{pairs[index][1].name}"),
    )


def _pairs(place: str, members: Members, split: str) -> list[tuple[_Member, _Member]]:
    images, masks = (_by_name(place, members, Path(split) / kind) for kind in ("images", "masks"))
    for these, others, kind, other in (
        (images, masks, "mask", "image"),
        (masks, images, "image", "mask"),
    ):
        alone = sorted(these.keys() - others.keys())
        if alone:
            more = f", and {len(alone) - 1} more like it" if len(alone) > 1 else ""
            raise ValueError(
                f"{place}/{these[alone[0]].name}: no {kind} of that name for this {other}{more}"
            )
    return [(images[key], masks[key]) for key in sorted(images, key=lambda key: key.parts)]


def _by_name(place: str, members: Members, below: Path) -> dict[Path, _Member]:
    """The files below a folder by their names without suffix."""
    if below not in members:
        raise FileNotFoundError(f"{place}: no folder {below} in it")
    found: dict[Path, _Member] = {}
    for path, read in members.items():
        if read is None or not path.is_relative_to(below):
            continue
        key = path.relative_to(below).with_suffix("")
        if key in found:
            raise ValueError(f"{place}: {found[key].name} and {path} have one name")
        found[key] = _Member(path, read)
    if not found:
        raise FileNotFoundError(f"{place}: no files in its folder {below}")
    return found
