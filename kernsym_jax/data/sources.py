"""Every source of images by its name, ``kind`` or ``kind:place``."""

import gzip
import importlib.metadata
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from kernsym_jax.cli import nearest
from kernsym_jax.data import folder, generated, tfds
from kernsym_jax.data.decode import View, changes, look_at, look_at_mask
from kernsym_jax.data.image_set import EncodedSet, ImageSet, MaskCoding
from kernsym_jax.data.reading import check_on_broken, read_all

SPLITS = ("train", "test")

_DIGITS_TO_TEST_PER_CLASS = 36
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
# Compression shrinks real images to about a fifth; a file that grows far more holds none.
_IDX_MOST_GROWTH, _IDX_GROWS_TO = 16, 2**28


def load_digits(split: str) -> ImageSet:
    """Loads scikit-learn's digits; 36 of each class, spread over the writers, are for testing.

    Args:
      split: ``train`` (1437 images) or ``test`` (360).

    Returns:
      (n, 8, 8, 1) images; the scans' 17 grey levels are spread over 0 to 255.
    """
    table = _digits()
    scans, labels = table[:, :-1], table[:, -1]
    images = np.round(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # The file is sorted by writer: evenly spaced images are of all writers.
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        spaced = np.linspace(0, len(members) - 1, _DIGITS_TO_TEST_PER_CLASS).round().astype(int)
        test[members[spaced]] = True
    chosen = test if split == "test" else ~test
    classes = tuple(str(digit) for digit in range(10))
    return ImageSet(images[chosen], labels[chosen].astype(np.int32), classes)


def _digits() -> np.ndarray:
    """Returns scikit-learn's (1797, 65) table: 64 grey levels and the label of each digit."""
    # Reading the file takes milliseconds, importing scikit-learn a second.
    package = importlib.metadata.distribution("scikit-learn")
    file = pathlib.Path(str(package.locate_file("sklearn/datasets/data/digits.csv.gz")))
    if file.is_file():
        with gzip.open(file, "rt", encoding="ascii") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn import datasets

    return np.column_stack(datasets.load_digits(return_X_y=True))


def load_idx(place: str, split: str) -> ImageSet:
    """Loads the files of MNIST's format, ``{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]``.

    Args:
      place: the folder of the four files.
      split: ``train`` or ``test``.

    Returns:
      (n, height, width, 1) images. The classes are 0 to the largest training label.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: if a file is damaged, or the files do not fit each other.
    """
    root = pathlib.Path(place)
    images = read_idx(_find_idx(root, f"{_IDX_PREFIX[split]}-images-idx3-ubyte"), axes=3)
    labels = read_idx(_find_idx(root, f"{_IDX_PREFIX[split]}-labels-idx1-ubyte"), axes=1)
    known = labels
    if split != "train":
        known = read_idx(_find_idx(root, f"{_IDX_PREFIX['train']}-labels-idx1-ubyte"), axes=1)
    classes = tuple(str(label) for label in range(int(known.max()) + 1))
    try:
        return ImageSet(images[..., None], labels.astype(np.int32), classes)
    except ValueError as error:
        raise ValueError(f"{root}, {split} split: {error}") from error


def read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    Args:
      path: the file, gzipped if its name ends in ``.gz``.
      axes: wanted number of axes.

    Returns:
      uint8 array of the declared shape.

    Raises:
      ValueError: if the file has another format, or is shorter or longer than it declares.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
                raise ValueError(f"{path}: not an IDX file of unsigned bytes")
            if header[3] != axes:
                raise ValueError(f"{path}: {header[3]} axes where {axes} were wanted")
            shape = struct.unpack(f">{axes}I", header[4:])
            wanted, size = math.prod(shape), os.path.getsize(path)
            most = _IDX_MOST_GROWTH * size + _IDX_GROWS_TO if path.suffix == ".gz" else size
            # One byte more than wanted shows a file that is too long without reading all of it.
            limit = min(wanted, most)
            values = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if len(values) != wanted or not wanted:
        holds = f"more than {limit}" if len(values) > limit else str(len(values))
        raise ValueError(f"{path}: declares {wanted} bytes of shape {shape}, holds {holds}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find_idx(root: pathlib.Path, name: str) -> pathlib.Path:
    for candidate in (root / name, root / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{root}: no {name} or {name}.gz there")


_STORED: dict[str, Callable[[str, str], ImageSet | EncodedSet]] = {
    "folder": folder.load,
    "idx": load_idx,
    "tfds": tfds.load,
}
_MASKED: dict[str, Callable[[str, str, MaskCoding], EncodedSet]] = {
    "masks": folder.load_masks,
    "tfds-masks": tfds.load_masks,
}
_GENERATED: dict[str, Callable[[str, str, int], ImageSet]] = {
    "textures": generated.load_textures,
    "noise": generated.load_noise,
    "fake": generated.load_fake,
}


def load(
    source: str,
    split: str,
    *,
    image_size: int = 0,
    scale_to: Sequence[int] = (),
    view: View | None = None,
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
      image_size: side in pixels to which the largest central square of each image is scaled; 0 to
        leave images as they are.
      scale_to: height and width to which the whole of each image is scaled, in place of
        ``image_size``.
      view: all steps from a decoded image to the result, in place of ``image_size`` and
        ``scale_to``.
      on_broken: ``fail`` or ``skip``, for files that are no readable images; skipped files are
        logged.
      seed: of generated images.
      coding: the meaning of the masks' values; only for a source of masks.

    Returns:
      The images and labels, always in the same order.

    Raises:
      ValueError: for an unknown source or split, and for data that cannot be used.
      FileNotFoundError: if the place does not exist.

    >>> from kernsym_jax import data
    >>> digits = data.load("digits", "test")
    >>> digits.images.shape, digits.labels[:4].tolist()
    ((360, 8, 8, 1), [0, 1, 2, 3])
    >>> data.load("textures:size=12,n=20", "train").images.shape
    (20, 12, 12, 3)
    """
    check_on_broken(on_broken)
    view = view or View(image_size=image_size, scale_to=tuple(scale_to))
    found = find(source, split, seed, coding)
    if isinstance(found, EncodedSet):
        return read_all(found, view, on_broken)
    return resized(found, view)


def find(
    source: str, split: str, seed: int = 0, coding: MaskCoding | None = None
) -> ImageSet | EncodedSet:
    """Returns one split of a source: in memory, or as files that are not decoded yet.

    Args:
      source: as `load` takes it.
      split: ``train`` or ``test``.
      seed: of generated images.
      coding: the meaning of the masks' values; None if every value is a class.

    Returns:
      The split.

    Raises:
      ValueError: for an unknown source or split, and for data that cannot be used.
      FileNotFoundError: if the place does not exist.
    """
    kind, _, place = source.partition(":")
    known = ["digits", *_STORED, *_MASKED, *_GENERATED]
    if kind not in known:
        raise ValueError(
            f"unknown data source {source!r}; known are {', '.join(known)} (as kind:place)"
            f"{nearest(kind, known)}"
        )
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; wanted one of {', '.join(SPLITS)}")
    coding = coding or MaskCoding()
    if kind in _MASKED:
        return _MASKED[kind](place, split, coding)
    if coding != MaskCoding():
        raise ValueError(
            f"config.data.void, mask_values and classes are for masks; {source!r} has class labels"
        )
    if kind in _GENERATED:
        return _GENERATED[kind](place, split, seed)
    if kind in _STORED:
        return _STORED[kind](place, split)
    if place:
        raise ValueError(f"the source digits takes no place, got {place!r}")
    return load_digits(split)


def resized(images: ImageSet, view: View) -> ImageSet:
    """Returns a set in a view of the middle; the set itself if that changes nothing."""
    if not changes(view, *images.images.shape[1:3]):
        return images
    labels = images.labels
    if images.masks:
        labels = np.stack([look_at_mask(mask, view) for mask in labels])
    seen = np.stack([look_at(image, view) for image in images.images])
    return ImageSet(seen, labels, images.classes)


def prepare(source: str) -> None:
    """Downloads and writes a TFDS set; of any other source, checks that it is there and complete.

    Args:
      source: as `load` takes it.

    Raises:
      ValueError: if a library is missing, or the data cannot be used.
      OSError: if the data are not there, or cannot be downloaded or written.

    >>> from kernsym_jax import data
    >>> data.prepare("digits")  # nothing to download: it is there and complete
    """
    kind, _, place = source.partition(":")
    if kind in ("tfds", "tfds-masks"):
        tfds.prepare(place)
    # The config of a run gives the values of masks. Given any value, this reads no mask.
    coding = MaskCoding(values=(0,)) if kind in _MASKED else None
    for split in SPLITS:
        found = find(source, split, coding=coding)
        if isinstance(found, EncodedSet):
            found.list()
