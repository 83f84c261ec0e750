"""Every source of images under one name, ``kind`` or ``kind:place``."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from kernsym_jax.data import archive, cache, digits, folder, idx, mask_folder, noise, textures, tfds
from kernsym_jax.data.encoded_set import EncodedSet, check_on_broken, report_skipped
from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.mask import MaskCoding
from kernsym_jax.data.picture import View, changes, look_at, look_at_mask


def _load_tree(place: str, split: str) -> EncodedSet:
    return (archive if pathlib.Path(place).is_file() else folder).load(place, split)


_STORED: dict[str, Callable[[str, str], ImageSet | EncodedSet]] = {
    "digits": digits.load,
    "folder": _load_tree,
    "idx": idx.load,
    "tfds": tfds.load,
}
_MASKED: dict[str, Callable[[str, str, MaskCoding], EncodedSet]] = {
    "masks": mask_folder.load,
    "tfds-masks": tfds.load_masks,
}
_GENERATED: dict[str, Callable[[str, str, int], ImageSet]] = {
    "textures": textures.load,
    "noise": noise.load,
    "fake": noise.load_fake,
}
SPLITS = ("train", "test")


def load(
    source: str,
    split: str,
    *,
    image_size: int = 0,
    scale_to: Sequence[int] = (),
    on_broken: str = "fail",
    seed: int = 0,
    coding: MaskCoding | None = None,
) -> ImageSet:
    """Loads one split of a source into memory.

    Args:
      source: ``digits`` (scikit-learn's 8×8 scans, 1437 for training and 360 for testing),
        ``idx:<dir>`` (MNIST's file format), ``folder:<dir>`` (one folder of images per class; also
        a ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz`` file of it), ``tfds:<name>``
        (TensorFlow Datasets, prepared), ``textures[:name=value,…]``, ``noise[:…]`` or
        ``fake[:…]``. With a mask for every image: ``masks:<dir>`` (``<split>/images`` and
        ``<split>/masks`` with files of equal names, or a tar file of it) or ``tfds-masks:<name>``
        (a set of TensorFlow Datasets with one image and one mask per example).
      split: ``train`` or ``test``.
      image_size: the largest square in the middle of each image is scaled to that size; 0 to leave
        images as they are.
      scale_to: height and width to which the whole of each image is scaled, in place of
        ``image_size``.
      on_broken: ``fail`` or ``skip``, for files that are no readable images; what is skipped is
        logged.
      seed: of generated images.
      coding: what the values of masks mean, of a source of masks only.

    Returns:
      The images and labels, always in the same order.

    Raises:
      ValueError: for an unknown source or split, and for data that cannot be used.
      FileNotFoundError: if the place does not exist.
    """
    check_on_broken(on_broken)
    view = View(image_size=image_size, scale_to=tuple(scale_to))
    found = find(source, split, seed, coding)
    if isinstance(found, EncodedSet):
        return decoded(found, view, on_broken)
    return resized(found, view)


def find(
    source: str, split: str, seed: int = 0, coding: MaskCoding | None = None
) -> ImageSet | EncodedSet:
    """Finds one split of a source: in memory, or as files still to be decoded.

    Args:
      source: as `load` takes it.
      split: ``train`` or ``test``.
      seed: of generated images.
      coding: what the values of masks mean; ``None`` for values that are classes, all of them.

    Returns:
      The split.

    Raises:
      ValueError: for an unknown source or split, and for data that cannot be used.
      FileNotFoundError: if the place does not exist.
    """
    kind, _, place = source.partition(":")
    known_kinds = [*_STORED, *_MASKED, *_GENERATED]
    if kind not in known_kinds:
        known = ", ".join(known_kinds)
        raise ValueError(f"unknown data source {source!r}; known are {known} (as kind:place)")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; wanted one of {', '.join(SPLITS)}")
    coding = coding or MaskCoding()
    if kind in _MASKED:
        return _MASKED[kind](place, split, coding)
    if coding != MaskCoding():
        raise ValueError(
            f"config.data.void, mask_values and classes are of masks; {source!r} has class labels"
        )
    if kind in _GENERATED:
        return _GENERATED[kind](place, split, seed)
    return _STORED[kind](place, split)


def decoded(encoded: EncodedSet, view: View, on_broken: str) -> ImageSet:
    """A set decoded into memory, through the cache; what was skipped is logged."""
    result = cache.decoded(encoded, view, on_broken)
    report_skipped(encoded.place, result)
    return result.images


def resized(images: ImageSet, view: View) -> ImageSet:
    """A set seen through a view of the middle; the set itself if that changes nothing."""
    if not changes(view, *images.images.shape[1:3]):
        return images
    labels = images.labels
    if images.masks:
        labels = np.stack([look_at_mask(mask, view) for mask in labels])
    seen = np.stack([look_at(image, view) for image in images.images])
    return ImageSet(seen, labels, images.classes)


def prepare(source: str) -> None:
    """Does what has to be done once before runs: a TFDS set is downloaded and written.

    Of any other source it finds out whether it is there and whole.

    Args:
      source: as `load` takes it.

    Raises:
      ValueError: if that needs what is not installed, or the data cannot be used.
      OSError: if the data are not there, or cannot be downloaded or written.
    """
    kind, _, place = source.partition(":")
    if kind in ("tfds", "tfds-masks"):
        tfds.prepare(place)
    # Which values of masks count is for a run to say; here none of them is looked at.
    coding = MaskCoding(values=(0,)) if kind in _MASKED else None
    for split in SPLITS:
        found = find(source, split, coding=coding)
        if isinstance(found, EncodedSet):
            found.list()
