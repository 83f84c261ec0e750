"""A labelled set of images that are still files, and its decoding."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.mask import MaskCoding, read_values
from kernsym_jax.data.picture import BrokenImage, View, decode, look_at_mask, size_of

ON_BROKEN = ("fail", "skip")
_NAMES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a set, to be read one by one in any order.

    Attributes:
      size: how many.
      classes: the names of the classes.
      record: gives the bytes and the label of the file of an index, or raises `BrokenImage`; safe
        to call from threads. The label is an index into the classes, or the bytes of a mask.
      name: gives the name of the file of an index, for messages.
      masks: what the labels are if they are masks.
    """

    size: int
    classes: tuple[str, ...]
    record: Callable[[int], tuple[bytes, int | bytes]]
    name: Callable[[int], str]
    masks: "Masks | None" = None

    def __len__(self) -> int:
        return self.size

    def read(
        self, index: int, view: View, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the image of an index, and its mask if it has one.

        Args:
          index: of the file.
          view: what is done to the image, and to the mask.
          draws: uniform random numbers for a random window; ``None`` for the middle.

        Returns:
          (height, width, 1 or 3) uint8, and the label: () int32, or (height, width) uint8.

        Raises:
          BrokenImage: if one of them cannot be read.
          ValueError: if a mask does not fit its image or its classes.
        """
        content, label = self.record(index)
        image = decode(content, self.name(index), view, draws)
        if isinstance(label, int):
            return image, np.asarray(label, np.int32)
        assert self.masks is not None, "only masks are labels that have to be decoded"
        name = self.masks.name(index)
        values, size = read_values(label, name), size_of(content)
        if values.shape != size:
            raise ValueError(
                f"{name}: a mask of {values.shape[1]}×{values.shape[0]} pixels for an image of "
                f"{size[1]}×{size[0]} ({self.name(index)})"
            )
        return image, look_at_mask(self.masks.coding.encode(values, name), view, draws)


class Masks(NamedTuple):
    """The masks of a set of files.

    Attributes:
      coding: what their values mean, complete.
      name: gives the name of the mask of an index, for messages.
    """

    coding: MaskCoding
    name: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """Labelled images as encoded files.

    Attributes:
      place: where they are, another for every set and split.
      identity: gives another value if one of the files has changed.
      list: gives the files, and raises what there is to complain about.
      coding: what was asked of the masks, if the labels are masks.
    """

    place: str
    identity: Callable[[], Hashable]
    list: Callable[[], Files]
    coding: MaskCoding | None = None

    @functools.cached_property
    def files(self) -> Files:
        """The files, listed when they are first asked for, as that may take seconds."""
        return self.list()


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What became of an `EncodedSet`.

    Attributes:
      images: those that could be read.
      skipped: why each of the others could not, with its name.
    """

    images: ImageSet
    skipped: tuple[str, ...]


def decode_all(encoded: EncodedSet, view: View, on_broken: str) -> Decoded:
    """Decodes a set into memory.

    Args:
      encoded: the set.
      view: what is done to every image; without channels, all become colour images if one is.
      on_broken: ``fail`` or ``skip``, for files that are no readable images.

    Returns:
      The images, in the order of the set.

    Raises:
      ValueError: if an image cannot be read, or has another size than the first.
    """
    files = encoded.files
    images = np.empty((0, 0, 0, 0), np.uint8)
    labels = np.empty(0, np.int32)
    skipped: list[str] = []
    first, kept = "", 0
    for index, (image, label) in enumerate(_decoded(files, view)):
        if isinstance(image, BrokenImage):
            if on_broken == "fail":
                raise image
            skipped.append(str(image))
            continue
        if not kept:
            first = files.name(index)
            images = np.empty((len(files), *image.shape), np.uint8)
            labels = np.empty((len(files), *label.shape), label.dtype)
        elif image.shape[:2] != images.shape[1:3]:
            raise ValueError(
                f"{files.name(index)}: {image.shape[1]}×{image.shape[0]} pixels, where {first} "
                f"has {images.shape[2]}×{images.shape[1]}; images must have one size: set "
                "config.data.image_size or config.data.scale_to to scale them as they are read, or "
                "config.data.crop_size and config.data.streaming to crop them while training"
            )
        if image.shape[2] > images.shape[3]:
            images = np.repeat(images, 3, axis=3)
        images[kept], labels[kept] = image, label
        kept += 1
    if not kept:
        raise ValueError(f"{encoded.place}: no readable image: {'; '.join(skipped[:3])}")
    return Decoded(ImageSet(images[:kept], labels[:kept], files.classes), tuple(skipped))


def report_skipped(place: str, decoded: Decoded) -> None:
    """Logs, in one line, how many files of how many were skipped, and which."""
    skipped = decoded.skipped
    if skipped:
        shown = "; ".join(skipped[:_NAMES_SHOWN])
        rest = f"; and {len(skipped) - _NAMES_SHOWN} more" if len(skipped) > _NAMES_SHOWN else ""
        total = len(skipped) + len(decoded.images)
        logging.warning("%s: skipped %d of %d files: %s%s", place, len(skipped), total, shown, rest)


def check_on_broken(on_broken: str) -> None:
    """Raises `ValueError` for anything but ``fail`` and ``skip``."""
    if on_broken not in ON_BROKEN:
        raise ValueError(f"on_broken: one of {', '.join(ON_BROKEN)}, got {on_broken!r}")


def _decoded(files: Files, view: View) -> Iterator[tuple[np.ndarray | BrokenImage, np.ndarray]]:
    def one(index: int) -> tuple[np.ndarray | BrokenImage, np.ndarray]:
        try:
            return files.read(index, view)
        except BrokenImage as error:
            return error, np.empty(0)

    # Pillow lets go of the interpreter while it decodes, so threads do run side by side. Some at a
    # time, so that memory holds the images once.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ahead = 64 * (os.cpu_count() or 1)
        for start in range(0, len(files), ahead):
            yield from pool.map(one, range(start, min(start + ahead, len(files))))
