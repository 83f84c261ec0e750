"""A tree of image files with one folder per class."""

import concurrent.futures
import pathlib

import numpy as np

from kernsym_jax.data.image_set import ImageSet

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def load(place: str, split: str) -> ImageSet:
    """Loads ``<place>/<split>/<class>/<image>``.

    Args:
      place: the folder that holds ``train`` and ``test`` (or ``val``, ``validation``).
      split: ``train`` or ``test``.

    Returns:
      (n, height, width, channels) images in the order of their paths, one channel if all are grey,
      else three. The classes are the folders' names, sorted.

    Raises:
      FileNotFoundError: if the folder, the split or its images are not there.
      ValueError: if an image cannot be read or has another size than the first, or if the splits
        do not have the same classes.
    """
    root = pathlib.Path(place)
    folder = _split_folder(root, split)
    classes = _class_names(folder)
    train = _class_names(_split_folder(root, "train")) if split != "train" else classes
    if classes != train:
        odd = sorted(set(classes) ^ set(train))
        raise ValueError(f"{root}: the splits differ in the classes {', '.join(odd)}")
    files, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(
            file
            for file in (folder / name).rglob("*")
            if file.suffix.lower() in _SUFFIXES and file.is_file()
        )
        files += members
        labels += [label] * len(members)
    if not files:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(_SUFFIXES)}) in its folders")
    # Pillow lets go of the interpreter while it decodes, so threads do run side by side.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = list(pool.map(_decode, files))
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{file}: {image.shape[1]}×{image.shape[0]} pixels, where {files[0]} has "
                f"{images[0].shape[1]}×{images[0].shape[0]}; images must have one size"
            )
    channels = max(image.shape[2] for image in images)
    stacked = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
    return ImageSet(stacked, np.array(labels, np.int32), classes)


def _decode(file: pathlib.Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA", "I;16")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable image ({error})") from error
    return pixels[..., None] if grey else pixels


def _split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for name in _SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root}: no folder {' or '.join(_SPLIT_FOLDERS[split])} in it")


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
