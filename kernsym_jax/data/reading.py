"""Reading a set of images: whole into memory, through a cache on disk, or image by image."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator

import numpy as np
from absl import logging

from kernsym_jax import lock
from kernsym_jax.data.decode import BrokenImage, OtherSize, View, look_at, look_at_mask
from kernsym_jax.data.image_set import EncodedSet, Files, ImageSet

ON_BROKEN = ("fail", "skip")

CACHE_VARIABLE = "KERNSYM_JAX_CACHE"
"""Environment variable with the folder of the cache; an empty value turns the cache off."""

WORTH_SECONDS = 1.0
"""Sets that take less time to decode are not cached."""

_FORMAT = 1
_ABOUT = "about.json"
_ARRAYS = ("images", "labels")
_NAMES_SHOWN = 10
_SAMPLE, _SAMPLE_BYTES = 512, 2**30
# Decoded images that wait for a slower one before them, per core and in bytes.
_AHEAD, _BYTES_AHEAD = 64, 2**28


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An `EncodedSet` in memory.

    Attributes:
      images: those that could be read.
      skipped: the error of each other image, with its name.
    """

    images: ImageSet
    skipped: tuple[str, ...]


def check_on_broken(on_broken: str) -> None:
    """Raises `ValueError` for anything but ``fail`` and ``skip``."""
    if on_broken not in ON_BROKEN:
        raise ValueError(f"on_broken: one of {', '.join(ON_BROKEN)}, got {on_broken!r}")


def read_all(encoded: EncodedSet, view: View, on_broken: str) -> ImageSet:
    """Decodes a set into memory, through the cache, and logs skipped images in one line.

    Args:
      encoded: the set.
      view: the steps that follow for every image.
      on_broken: ``fail`` or ``skip``, for files that are no readable images.

    Returns:
      The images, in the order of the set.

    Raises:
      ValueError: as `decode_all` does.
    """
    result = decode_cached(encoded, view, on_broken)
    skipped = result.skipped
    if skipped:
        shown = "; ".join(skipped[:_NAMES_SHOWN])
        rest = f"; and {len(skipped) - _NAMES_SHOWN} more" if len(skipped) > _NAMES_SHOWN else ""
        total = len(skipped) + len(result.images)
        logging.warning(
            "%s: skipped %d of %d files: %s%s", encoded.place, len(skipped), total, shown, rest
        )
    return result.images


def decode_all(encoded: EncodedSet, view: View, on_broken: str) -> Decoded:
    """Decodes a set into memory.

    Args:
      encoded: the set.
      view: the steps that follow for every image. If it leaves the channels open, all become colour
        images if one is.
      on_broken: ``fail`` or ``skip``, for files that are no readable images.

    Returns:
      The images, in the order of the set.

    Raises:
      ValueError: if an image cannot be read or has another size than the first, or if the images
        need more memory than the machine has.
    """
    files = encoded.files
    images = np.empty((0, 0, 0, 0), np.uint8)
    labels = np.empty(0, np.int32)
    skipped: list[str] = []
    kept = 0
    for image, label in _decoded(files, view):
        if isinstance(image, BrokenImage):
            if on_broken == "fail":
                raise image
            skipped.append(str(image))
            continue
        if not kept:
            _require_memory(encoded.place, len(files), image, label)
            images = np.empty((len(files), *image.shape), np.uint8)
            labels = np.empty((len(files), *label.shape), label.dtype)
        if image.shape[2] > images.shape[3]:
            images = np.repeat(images, 3, axis=3)
        images[kept], labels[kept] = image, label
        kept += 1
    if not kept:
        raise ValueError(f"{encoded.place}: no readable image: {'; '.join(skipped[:3])}")
    return Decoded(ImageSet(images[:kept], labels[:kept], files.classes), tuple(skipped))


def _decoded(files: Files, view: View) -> Iterator[tuple[np.ndarray | BrokenImage, np.ndarray]]:
    """Yields every image, or why it cannot be read, and its label."""
    size: tuple[int, ...] | None = None

    def one(index: int) -> tuple[np.ndarray | BrokenImage, np.ndarray]:
        try:
            return files.read(index, view, size=size)
        except BrokenImage as error:
            return error, np.empty(0)
        except OtherSize as error:
            assert size is not None, "without a size, every size is right"
            raise ValueError(
                f"{files.name(index)}: {error}, where the first image has {size[1]}×{size[0]}; "
                "images must have one size: set config.data.image_size or config.data.scale_to to "
                "scale them as they are read, or config.data.crop_size and config.data.streaming "
                "to crop them while training"
            ) from error

    ahead, index = 1, 0
    # Pillow releases the interpreter while it decodes, so threads do run side by side.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        while index < len(files):
            for image, label in pool.map(one, range(index, min(index + ahead, len(files)))):
                if size is None and isinstance(image, np.ndarray):
                    size = image.shape[:2]
                    per_image = max(image.nbytes + label.nbytes, 1)
                    ahead = max(1, min(_BYTES_AHEAD // per_image, _AHEAD * (os.cpu_count() or 1)))
                index += 1
                yield image, label


def _require_memory(place: str, count: int, image: np.ndarray, label: np.ndarray) -> None:
    """Raises `ValueError` if a set of so many images cannot be held in memory."""
    needed = count * (image.nbytes + label.nbytes)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise ValueError(
            f"{place}: {count} images of {image.shape[1]}×{image.shape[0]} pixels take "
            f"{needed / 2**30:.0f} GiB of memory, the machine has {present / 2**30:.0f} GiB; set "
            "config.data.image_size or config.data.streaming"
        )


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of the cache; None if `CACHE_VARIABLE` turns the cache off."""
    named = os.environ.get(CACHE_VARIABLE)
    if named is not None:
        return pathlib.Path(named).expanduser() if named else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "kernsym_jax"


def decode_cached(
    encoded: EncodedSet, view: View, on_broken: str, worth_seconds: float = WORTH_SECONDS
) -> Decoded:
    """Returns what `decode_all` returns, from the cache if it is there.

    An entry is valid for one state of the files (their names, sizes and times of change) and one
    set of options. A damaged entry is decoded again. If the cache cannot be written, a warning says
    so.

    Args:
      encoded: the set.
      view: the steps that follow for every image.
      on_broken: ``fail`` or ``skip``.
      worth_seconds: results are cached if it took at least this time to decode them.

    Returns:
      The images, mapped from the file if they come from the cache.

    Raises:
      ValueError: as `decode_all` does.
    """
    entry = _entry(encoded, view, on_broken)
    found = find_cached(encoded, view, on_broken)
    if found is not None or entry is None:
        return found or decode_all(encoded, view, on_broken)
    damaged, started = entry.exists(), time.monotonic()
    result = decode_all(encoded, view, on_broken)
    if time.monotonic() - started >= worth_seconds:
        try:
            _write(entry, encoded.place, result, replace=damaged)
        except (OSError, lock.LockedElsewhere) as error:
            logging.warning("%s: not cached (%s)", encoded.place, error)
    return result


def find_cached(encoded: EncodedSet, view: View, on_broken: str) -> Decoded | None:
    """Returns the cache's entry for these files and options; None if it is missing or damaged."""
    entry = _entry(encoded, view, on_broken)
    if entry is None or not entry.is_dir():
        return None
    try:
        return _load(entry)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s: damaged, decoded anew (%s)", entry, error)
        return None


def _entry(encoded: EncodedSet, view: View, on_broken: str) -> pathlib.Path | None:
    cache = cache_folder()
    if cache is None:
        return None
    import PIL

    # A set and its options have one entry, that of the newest state of its files.
    masks = [] if encoded.coding is None else [encoded.coding]
    subject = _digest(_FORMAT, PIL.__version__, encoded.place, view, on_broken, *masks)
    return cache / f"{subject}-{_digest(encoded.identity())}"


def _load(entry: pathlib.Path) -> Decoded:
    about = json.loads((entry / _ABOUT).read_text(encoding="utf-8"))
    arrays = {}
    for name in _ARRAYS:
        array = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if _checksum(array) != about["checksums"][name]:
            raise ValueError(f"the checksum of {name} does not match")
        arrays[name] = array
    labels = arrays["labels"]
    if labels.ndim == 1:
        labels = np.array(labels)
    images = ImageSet(arrays["images"], labels, tuple(about["classes"]))
    return Decoded(images, tuple(about["skipped"]))


def _write(entry: pathlib.Path, source: str, result: Decoded, *, replace: bool) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    subject = entry.name.partition("-")[0]
    try:
        with lock.only_writer(entry.parent / f".{subject}.lock"):
            if not entry.exists() or replace:
                _write_entry(entry, source, result)
    except lock.LockedElsewhere:
        raise
    except lock.Locked as error:
        logging.info("%s: left to another process (%s)", source, error)


def _write_entry(entry: pathlib.Path, source: str, result: Decoded) -> None:
    subject = entry.name.partition("-")[0]
    # Files of writers that were killed.
    for old in entry.parent.glob(f".{subject}-*"):
        shutil.rmtree(old, ignore_errors=True)
    # Written beside its place and then renamed: a reader finds all of it or nothing.
    fresh = pathlib.Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{subject}-"))
    try:
        arrays = {"images": result.images.images, "labels": result.images.labels}
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        about = {
            "source": source,
            "classes": result.images.classes,
            "skipped": result.skipped,
            "checksums": {name: _checksum(array) for name, array in arrays.items()},
        }
        (fresh / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        for old in entry.parent.glob(f"{subject}-*"):
            shutil.rmtree(old, ignore_errors=True)
        fresh.rename(entry)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the images of a set one by one; safe to use from threads and in other processes.

    Attributes:
      images: the set.
      view: the steps that follow for every image; the results must have one size.
      on_broken: ``fail``, or ``skip`` to take the next readable image of the set instead.
      label_order: (n,) int32: image i has the class label of image ``label_order[i]``; None if
        every image has its own.
      shape: (height, width, channels) that every image must have; None for any.
    """

    images: ImageSet | EncodedSet
    view: View
    on_broken: str = "fail"
    label_order: np.ndarray | None = None
    shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.images if isinstance(self.images, ImageSet) else self.images.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return (self.images if isinstance(self.images, ImageSet) else self.images.files).classes

    @property
    def masks(self) -> bool:
        """Whether the labels are masks."""
        if isinstance(self.images, ImageSet):
            return self.images.masks
        return self.images.files.masks is not None

    def read(self, index: int, draws: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image and its label.

        Args:
          index: of the image.
          draws: uniform random numbers for its window; ``None`` for the middle.

        Returns:
          (height, width, channels) uint8, and the label: () int32, or (height, width) uint8.

        Raises:
          BrokenImage: if it cannot be read.
          ValueError: if it has another shape than the others, or its mask does not fit.
        """
        if isinstance(self.images, ImageSet):
            name, label = f"image {index}", np.asarray(self.images.labels[index])
            image = look_at(self.images.images[index], self.view, draws)
            if self.masks:
                label = look_at_mask(label, self.view, draws)
        else:
            name = self.images.files.name(index)
            image, label = self.images.files.read(index, self.view, draws)
        if self.shape is not None and image.shape != self.shape:
            raise ValueError(
                f"{name}: {image.shape[1]}×{image.shape[0]} pixels, where others have "
                f"{self.shape[1]}×{self.shape[0]}; images must have one size: set "
                "config.data.crop_size to crop them while training, or config.data.image_size or "
                "scale_to"
            )
        if self.label_order is not None and self.label_order[index] != index:
            label = self._class_label(int(self.label_order[index]))
        return image, label

    def read_or_next(
        self, index: int, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image as `read` does, or the next readable one if broken ones are skipped.

        Raises:
          BrokenImage: if broken images are not skipped, or none can be read.
        """
        for ahead in range(len(self)):
            try:
                return self.read((index + ahead) % len(self), draws)
            except BrokenImage as error:
                broken = error
                if self.on_broken == "fail":
                    raise
                _warn_once(str(error))
        raise broken

    def _class_label(self, index: int) -> np.ndarray:
        """Returns the class label of an image without reading the image."""
        if isinstance(self.images, ImageSet):
            return np.asarray(self.images.labels[index])
        return np.asarray(self.images.files.record(index)[1], np.int32)


def sample(reader: Reader) -> np.ndarray:
    """Reads some images of a set, evenly spread over it, in the middle view.

    Args:
      reader: of the set. If its view leaves the channels open, all become colour images if one is.

    Returns:
      (n, height, width, channels) uint8, at most 512 images and about 1 GiB.

    Raises:
      ValueError: if they have different sizes, or none can be read.
    """
    first = reader.read_or_next(0)[0]
    count = min(_SAMPLE, max(1, _SAMPLE_BYTES // first.nbytes))
    chosen = np.unique(np.linspace(0, len(reader) - 1, count).round().astype(int))
    images = [first, *(reader.read_or_next(int(index))[0] for index in chosen[1:])]
    shape = (*images[0].shape[:2], max(image.shape[2] for image in images))
    for image in images:
        if image.shape[:2] != shape[:2]:
            raise ValueError(
                f"images of {image.shape[1]}×{image.shape[0]} and of {shape[1]}×{shape[0]} pixels; "
                "set config.data.crop_size to crop them while training, or config.data.image_size "
                "or scale_to"
            )
    return np.stack([np.broadcast_to(image, shape) for image in images])


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("skipped %s", message)
