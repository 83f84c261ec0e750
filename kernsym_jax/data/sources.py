"""Every source of images under one name, ``kind`` or ``kind:place``."""

from collections.abc import Callable

from kernsym_jax.data import digits, folder, idx
from kernsym_jax.data.image_set import ImageSet

_SOURCES: dict[str, Callable[[str, str], ImageSet]] = {
    "digits": digits.load,
    "folder": folder.load,
    "idx": idx.load,
}
SPLITS = ("train", "test")


def load(source: str, split: str) -> ImageSet:
    """Loads one split of a source into memory.

    Args:
      source: ``digits`` (scikit-learn's 8×8 scans, 1437 for training and 360 for testing),
        ``idx:<dir>`` (MNIST's file format) or ``folder:<dir>`` (one folder of images per class).
      split: ``train`` or ``test``.

    Returns:
      The images and labels, always in the same order.

    Raises:
      ValueError: for an unknown source or split, and for data that cannot be used.
      FileNotFoundError: if the place does not exist.
    """
    kind, _, place = source.partition(":")
    if kind not in _SOURCES:
        known = ", ".join(_SOURCES)
        raise ValueError(f"unknown data source {source!r}; known are {known} (as kind:place)")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; wanted one of {', '.join(SPLITS)}")
    return _SOURCES[kind](place, split)
