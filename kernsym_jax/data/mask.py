"""Masks: what the values in their files mean, and how they are read."""

import concurrent.futures
import dataclasses
import io
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kernsym_jax.data.image_set import VOID
from kernsym_jax.data.picture import FORMATS, BrokenImage

if TYPE_CHECKING:
    from PIL import Image

# The largest value that a mask of 16 bits can have.
_MOST = 2**16 - 1


@dataclasses.dataclass(frozen=True)
class MaskCoding:
    """Which class each value in the masks of a source stands for.

    Attributes:
      void: the values of pixels that do not count.
      values: those that count, in the order of the classes; empty for 0 to the largest in the
        training masks, or for as many as there are names.
      classes: the names of the classes; empty for those of the source, or the values.

    Raises:
      ValueError: for values that are not distinct whole numbers of 16 bits, or do not fit the
        names.
    """

    void: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("void", self.void), ("mask_values", self.values)):
            if not all(type(value) is int and 0 <= value <= _MOST for value in values):
                raise ValueError(f"config.data.{name}: whole numbers 0 to {_MOST}, got {values}")
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
        """What the keys under ``config.data`` of a resolved config say."""
        return cls(
            void=tuple(config["void"]),
            values=tuple(config["mask_values"]),
            classes=tuple(config["classes"]),
        )

    def completed(
        self, place: str, count: int, file: Callable[[int], tuple[bytes, str]]
    ) -> "MaskCoding":
        """The coding with values and names, found in the masks if nothing says them.

        Args:
          place: where the masks are, for messages.
          count: how many masks there are to train on.
          file: gives the bytes and the name of the file of one; called from threads.

        Returns:
          A coding with as many values as names.

        Raises:
          ValueError: if a mask is no mask, or their values are too many.
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
        """The coding for a source that itself has a name for every value from 0 on."""
        if self.classes or not names:
            return self
        values = self.values or tuple(v for v in range(len(names)) if v not in self.void)
        called = tuple(names[v] if v < len(names) else str(v) for v in values)
        return MaskCoding(self.void, values, called)

    def encode(self, values: np.ndarray, name: str) -> np.ndarray:
        """Labels for the values of a mask.

        Args:
          values: (height, width) whole numbers.
          name: of the file, for messages.

        Returns:
          (height, width) uint8: indices into the classes, `VOID` where the value does not count.

        Raises:
          ValueError: for a value that is none of these.
        """
        unknown = max(self.values + self.void) + 1
        labels = np.full(unknown + 1, -1, np.int16)
        labels[list(self.values)] = np.arange(len(self.values))
        labels[list(self.void)] = VOID
        found = labels[np.where(values < 0, unknown, np.minimum(values, unknown))]
        if found.min() < 0:
            row, column = np.argwhere(found < 0)[0]
            raise ValueError(
                f"{name}: the value {values[row, column]} at row {row}, column {column} is neither "
                f"of a class ({_listed(self.values)}) nor void ({_listed(self.void)})"
            )
        return found.astype(np.uint8)

    def _largest(self, count: int, file: Callable[[int], tuple[bytes, str]]) -> int | None:
        """The largest value that counts; a file that cannot be read is told of where it is used."""

        def of(index: int) -> int:
            try:
                values = read_values(*file(index))
            except BrokenImage:
                return -1
            return int(values.max(initial=-1, where=~np.isin(values, self.void)))

        with concurrent.futures.ThreadPoolExecutor() as pool:
            largest = max(pool.map(of, range(count)), default=-1)
        return largest if largest >= 0 else None


def read_values(encoded: bytes, name: str) -> np.ndarray:
    """The values of a mask's file: its grey levels, or the indices into its palette.

    Args:
      encoded: the file's bytes.
      name: of the file, for messages.

    Returns:
      (height, width) int32.

    Raises:
      BrokenImage: if it cannot be read.
      ValueError: if it has several channels, or no whole numbers.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            mode, values = picture.mode, _whole_numbers(picture)
    except Exception as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise BrokenImage(f"{name}: not a readable image{reason}") from error
    if values is None:
        raise ValueError(
            f"{name}: a mask is an image of one channel of whole numbers, or of a palette; this "
            f"one has pixels of mode {mode}"
        )
    return values


def _whole_numbers(picture: "Image.Image") -> np.ndarray | None:
    if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
        return None
    return np.asarray(picture).astype(np.int32)


def _listed(values: tuple[int, ...]) -> str:
    """A few numbers as they are, many in a row by the first and the last."""
    if len(values) > 3 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values)) or "none"
