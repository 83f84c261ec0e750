"""IDX files, the format of MNIST and its successors (Fashion-MNIST, KMNIST, EMNIST)."""

import gzip
import pathlib
import struct
import zlib

import numpy as np

from kernsym_jax.data.image_set import ImageSet

_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08


def load(place: str, split: str) -> ImageSet:
    """Loads ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, plain or with ``.gz``.

    Args:
      place: the folder of the four files.
      split: ``train`` or ``test``.

    Returns:
      (n, height, width, 1) images. The classes are 0 to the largest training label.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: if a file is damaged, or the files do not fit each other.
    """
    folder = pathlib.Path(place)
    images = read(_find(folder, f"{_PREFIX[split]}-images-idx3-ubyte"), axes=3)
    labels = read(_find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte"), axes=1)
    known = labels
    if split != "train":
        known = read(_find(folder, f"{_PREFIX['train']}-labels-idx1-ubyte"), axes=1)
    classes = tuple(str(label) for label in range(int(known.max()) + 1))
    try:
        return ImageSet(images[..., None], labels.astype(np.int32), classes)
    except ValueError as error:
        raise ValueError(f"{folder}, {split} split: {error}") from error


def read(path: pathlib.Path, axes: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    Args:
      path: the file, gzipped if its name ends in ``.gz``.
      axes: how many axes it must have.

    Returns:
      uint8 array of the shape that the file declares.

    Raises:
      ValueError: if it is not such a file, or shorter or longer than it declares.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
                raise ValueError(f"{path}: not an IDX file of unsigned bytes")
            if header[3] != axes:
                raise ValueError(f"{path}: {header[3]} axes where {axes} were wanted")
            shape = struct.unpack(f">{axes}I", header[4:])
            wanted = int(np.prod(shape, dtype=object))
            # One byte more than wanted shows a file that is too long without reading all of it.
            values = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error, OverflowError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: damaged ({error})") from error
    if len(values) != wanted or not wanted:
        size = "more" if len(values) > wanted else str(len(values))
        raise ValueError(f"{path}: declares {wanted} bytes of shape {shape}, holds {size}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: no {name} or {name}.gz there")
