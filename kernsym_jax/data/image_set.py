"""A labelled set of images in memory."""

import dataclasses

import numpy as np

VOID = 255
"""The label of a mask's pixels that do not count."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels.

    Attributes:
      images: (n, height, width, channels) uint8.
      labels: indices into `classes`: (n,) int32, or masks (n, height, width) uint8 with `VOID`
        where a pixel does not count.
      classes: the names of the classes.

    Raises:
      ValueError: if the arrays do not fit each other or a label is not the index of a class.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                "images must be uint8 (n, height, width, channels), "
                f"got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[: 3 if self.masks else 1]:
            size = f" of {self.images.shape[1:3]}" if self.masks else ""
            raise ValueError(
                f"{len(self.images)} images{size} but labels of shape {self.labels.shape}"
            )
        if self.masks and self.labels.dtype != np.uint8:
            raise ValueError(f"masks must be uint8, got {self.labels.dtype}")
        if not len(self.images):
            raise ValueError("an image set without images")
        low = int(self.labels.min())
        if self.masks:
            high = max(int(mask.max(initial=0, where=mask != VOID)) for mask in self.labels)
        else:
            high = int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"label {low if low < 0 else high} is out of range: "
                f"{len(self.classes)} classes are labelled 0 to {len(self.classes) - 1}"
            )

    @property
    def masks(self) -> bool:
        """Whether every pixel has a label, rather than every image."""
        return self.labels.ndim == 3

    def __len__(self) -> int:
        return len(self.images)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale where white is 1.

    Args:
      images: (n, height, width, channels) uint8.

    Returns:
      Two tuples of length channels; a channel that never changes has the deviation 1.
    """
    # From the histogram: exact, and without a float copy of the images.
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(levels, weights=counts)
        deviation = np.sqrt(np.average((levels - mean) ** 2, weights=counts))
        means.append(round(float(mean), 6))
        deviations.append(round(float(deviation), 6) or 1.0)
    return tuple(means), tuple(deviations)
