"""Labelled images: in memory, or as encoded files with the meaning of their masks' values."""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kernsym_jax.data.decode import BrokenImage, View, decode, look_at_mask, read_values, size_of

VOID = 255
"""The label of mask pixels that do not count."""

# The largest value that a mask of 16 bits can have.
_LARGEST_VALUE = 2**16 - 1
# Masks are translated in blocks of rows, because a lookup needs eight bytes per pixel.
_PIXELS_AT_ONCE = 2**20


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size in memory, with their labels.

    Attributes:
      images: (n, height, width, channels) uint8.
      labels: indices into `classes`: (n,) int32, or masks (n, height, width) uint8 with `VOID`
        where a pixel does not count.
      classes: the names of the classes.

    Raises:
      ValueError: if the arrays do not fit each other or a label is not the index of a class.

    >>> import numpy as np
    >>> from kernsym_jax import data
    >>> images = data.ImageSet(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("cat", "dog"))
    >>> len(images), images.masks
    (2, False)
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
        size = f" of {self.images.shape[1:3]}" if self.masks else ""
        wanted = self.images.shape[:3] if self.masks else self.images.shape[:1]
        if self.labels.shape != wanted:
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
    """Returns mean and standard deviation of each channel, on the scale where white is 1.

    Args:
      images: (n, height, width, channels) uint8.

    Returns:
      Two tuples of length channels. A channel that never changes has the deviation 1.

    >>> import numpy as np
    >>> from kernsym_jax import data
    >>> data.channel_statistics(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1))
    ((0.5,), (0.5,))
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


@dataclasses.dataclass(frozen=True)
class MaskCoding:
    """The meaning of each value in the masks of a source: a class, or void.

    Attributes:
      void: the values of pixels that do not count.
      values: the values of the classes, in their order. Empty for as many values as there are names
        or, without names, for 0 to the largest value in the training masks.
      classes: the names of the classes. Empty for the source's own names or, if it has none, the
        values.

    Raises:
      ValueError: if the values are not distinct whole numbers of 16 bits, or do not fit the names.

    >>> import numpy as np
    >>> from kernsym_jax import data
    >>> coding = data.MaskCoding(void=(11,), values=(0, 7), classes=("sky", "road"))
    >>> coding.encode(np.array([[0, 7, 11]]), "street.png").tolist()  # 255 is `VOID`
    [[0, 1, 255]]
    """

    void: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("void", self.void), ("mask_values", self.values)):
            if not all(type(value) is int and 0 <= value <= _LARGEST_VALUE for value in values):
                raise ValueError(
                    f"config.data.{name}: whole numbers 0 to {_LARGEST_VALUE}, got {values}"
                )
        every = self.void + self.values
        if len(set(every)) < len(every):
            raise ValueError(
                "config.data.mask_values and config.data.void name a value twice: "
                f"{self.values} and {self.void}"
            )
        if not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"config.data.classes: names, got {self.classes}")
        if self.values and self.classes and len(self.values) != len(self.classes):
            raise ValueError(
                f"{len(self.classes)} names in config.data.classes for {len(self.values)} values "
                "in config.data.mask_values"
            )
        most = max(len(self.values), len(self.classes))
        if most > VOID:
            raise ValueError(f"masks have at most {VOID} classes, got {most}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MaskCoding":
        """Returns the coding that the keys under ``config.data`` of a resolved config describe."""
        return cls(
            void=tuple(config["void"]),
            values=tuple(config["mask_values"]),
            classes=tuple(config["classes"]),
        )

    def completed(
        self, place: str, count: int, file: Callable[[int], tuple[bytes, str]]
    ) -> "MaskCoding":
        """Returns the coding with values and names; looks for missing values in the masks.

        Args:
          place: where the masks are, for messages.
          count: number of masks to train on.
          file: returns the bytes and the name of the file of a mask; called from threads.

        Returns:
          A coding with as many values as names.

        Raises:
          ValueError: if a file is no mask, or the masks have too many values.
        """
        counted = (value for value in itertools.count() if value not in self.void)
        values = self.values or tuple(itertools.islice(counted, len(self.classes)))
        if not values:
            largest = self._largest(count, file)
            if largest is None:
                raise ValueError(f"{place}: no pixel of the masks counts, void is {self.void}")
            if largest - len(self.void) >= VOID:
                raise ValueError(
                    f"{place}: masks of values up to {largest}, more than {VOID} classes; "
                    "config.data.void names those that do not count, config.data.mask_values those "
                    "that do"
                )
            values = tuple(value for value in range(largest + 1) if value not in self.void)
        return MaskCoding(self.void, values, self.classes or tuple(map(str, values)))

    def with_names(self, names: tuple[str, ...]) -> "MaskCoding":
        """Returns the coding for a source that has a name for every value from 0 on."""
        if self.classes or not names:
            return self
        values = self.values or tuple(v for v in range(len(names)) if v not in self.void)
        called = tuple(names[v] if v < len(names) else str(v) for v in values)
        return MaskCoding(self.void, values, called)

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """Translates the values of a mask to labels.

        Args:
          values: (height, width) whole numbers.
          name: of the file, for messages.

        Returns:
          (height, width) uint8: indices into the classes, `VOID` where the value does not count.

        Raises:
          ValueError: for a value that has no meaning.
        """
        unknown = max(self.values + self.void) + 1
        labels = np.full(unknown + 1, -1, np.int16)
        labels[list(self.values)] = np.arange(len(self.values))
        labels[list(self.void)] = VOID
        encoded = np.empty(values.shape, np.uint8)
        for rows in _blocks_of_rows(values):
            block = values[rows].astype(np.int32)
            found = labels[np.where(block < 0, unknown, np.minimum(block, unknown))]
            if found.min() < 0:
                row, column = np.argwhere(found < 0)[0]
                raise ValueError(
                    f"{name}: the value {block[row, column]} at row {rows.start + row}, column "
                    f"{column} is neither of a class ({_listed(self.values)}) nor void "
                    f"({_listed(self.void)})"
                )
            encoded[rows] = found
        return encoded

    def _largest(self, count: int, file: Callable[[int], tuple[bytes, str]]) -> int | None:
        """Returns the largest value that counts; None if every pixel is void."""

        def of(index: int) -> int:
            try:
                values = read_values(*file(index))
            except BrokenImage:
                # Reported where the mask is used, as `on_broken` asks.
                return -1
            blocks = (values[rows].astype(np.int32) for rows in _blocks_of_rows(values))
            return max(
                int(block.max(initial=-1, where=~np.isin(block, self.void))) for block in blocks
            )

        with concurrent.futures.ThreadPoolExecutor() as pool:
            largest = max(pool.map(of, range(count)), default=-1)
        return largest if largest >= 0 else None


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a set, to be read one by one in any order.

    Attributes:
      size: number of files.
      classes: the names of the classes.
      record: returns the bytes and the label of the file of an index, or raises `BrokenImage`; safe
        to call from threads. The label is an index into the classes, or the bytes of a mask.
      name: returns the name of the file of an index, for messages.
      masks: the meaning of the labels if they are masks.
    """

    size: int
    classes: tuple[str, ...]
    record: Callable[[int], tuple[bytes, int | bytes]]
    name: Callable[[int], str]
    masks: "Masks | None" = None

    def __len__(self) -> int:
        return self.size

    def read(
        self,
        index: int,
        view: View,
        draws: np.ndarray | None = None,
        size: tuple[int, ...] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the image of an index, and its mask if it has one.

        Args:
          index: of the file.
          view: the steps that follow, for the image and the mask.
          draws: uniform random numbers for a random window; ``None`` for the middle.
          size: height and width that the result must have; ``None`` for any.

        Returns:
          (height, width, 1 or 3) uint8, and the label: () int32, or (height, width) uint8.

        Raises:
          BrokenImage: if one of them cannot be read.
          OtherSize: if the result would have another size.
          ValueError: if a mask does not fit its image or its classes.
        """
        content, label = self.record(index)
        image = decode(content, self.name(index), view, draws, size)
        if isinstance(label, int):
            return image, np.asarray(label, np.int32)
        assert self.masks is not None, "only masks are labels that have to be decoded"
        name = self.masks.name(index)
        values, wanted = read_values(label, name), size_of(content)
        if values.shape != wanted:
            raise ValueError(
                f"{name}: a mask of {values.shape[1]}×{values.shape[0]} pixels for an image of "
                f"{wanted[1]}×{wanted[0]} ({self.name(index)})"
            )
        return image, look_at_mask(self.masks.coding.encode(values, name), view, draws)


class Masks(NamedTuple):
    """The masks of a set of files.

    Attributes:
      coding: the meaning of their values, complete.
      name: returns the name of the mask of an index, for messages.
    """

    coding: MaskCoding
    name: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """Labelled images as encoded files.

    Attributes:
      place: where the files are, different for every set and split.
      identity: returns another value if one of the files has changed.
      list: lists the files, or raises the error that explains why they cannot be used.
      coding: the requested meaning of the values of masks, if the labels are masks.
    """

    place: str
    identity: Callable[[], Hashable]
    list: Callable[[], Files]
    coding: MaskCoding | None = None

    @functools.cached_property
    def files(self) -> Files:
        """The files, listed at the first access, which may take seconds."""
        return self.list()


def _blocks_of_rows(values: np.ndarray) -> Iterator[slice]:
    height, width = values.shape
    step = max(1, _PIXELS_AT_ONCE // width)
    for start in range(0, height, step):
        yield slice(start, start + step)


def _listed(values: tuple[int, ...]) -> str:
    """Returns the numbers as text; a long range as its first and last number."""
    if len(values) > 3 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values)) or "none"
