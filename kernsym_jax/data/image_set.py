"""A labelled set of images in memory."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels.

    Attributes:
      images: (n, height, width, channels) uint8.
      labels: (n,) int32, indices into `classes`.
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
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"{len(self.images)} images but labels of shape {self.labels.shape}")
        if not len(self.images):
            raise ValueError("an image set without images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"label {low if low < 0 else high} is out of range: "
                f"{len(self.classes)} classes are labelled 0 to {len(self.classes) - 1}"
            )

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
