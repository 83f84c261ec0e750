"""Single images of a set as a network gets them, read when they are asked for."""

import dataclasses

import numpy as np
from absl import logging

from kernsym_jax.data.encoded_set import EncodedSet
from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.picture import BrokenImage, View, look_at, look_at_mask

_SAMPLE = 512


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the images of a set one by one; safe to use from threads, and in other processes.

    Attributes:
      images: the set.
      view: what is done to every image; all must then have one size.
      on_broken: ``fail``, or ``skip`` to take the next readable image of the set instead.
      label_order: (n,) int32: image i has the class label of image ``label_order[i]``; ``None`` for
        its own.
      shape: (height, width, channels) that every image must have; ``None`` for any.
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
        """Reads an image as `read` does, or the next that can be read if broken ones are skipped.

        Raises:
          BrokenImage: if broken ones are not skipped, or none can be read.
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
        """The label of an image that is not looked at, which is no mask."""
        if isinstance(self.images, ImageSet):
            return np.asarray(self.images.labels[index])
        return np.asarray(self.images.files.record(index)[1], np.int32)


def sample(reader: Reader) -> np.ndarray:
    """Some images of a set, evenly spread over it, in the middle view.

    Args:
      reader: of the set; without channels in its view, all are colour images if one is.

    Returns:
      (n, height, width, channels) uint8, at most 512 images.

    Raises:
      ValueError: if they have different sizes, or none can be read.
    """
    chosen = np.unique(np.linspace(0, len(reader) - 1, _SAMPLE).round().astype(int))
    images = [reader.read_or_next(int(index))[0] for index in chosen]
    shape = (*images[0].shape[:2], max(image.shape[2] for image in images))
    for image in images:
        if image.shape[:2] != shape[:2]:
            raise ValueError(
                f"images of {image.shape[1]}×{image.shape[0]} and of {shape[1]}×{shape[0]} pixels; "
                "set config.data.crop_size to crop them while training, or config.data.image_size "
                "or scale_to"
            )
    return np.stack([np.broadcast_to(image, shape) for image in images])


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logging.warning("skipped %s", message)
