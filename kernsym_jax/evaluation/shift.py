"""Shifts of images: how pixels move, and which offsets a network's answers are compared at."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp

MODES = ("circular", "zero", "crop")
PER = ("image", "batch")


@dataclasses.dataclass(frozen=True)
class Shifts:
    """Which shifts of an image are compared; an offset (dy, dx) moves its content down and right.

    Without ``draws`` every offset is compared with the image at rest. With them, pairs of offsets
    are drawn and their answers compared with each other.

    Attributes:
      mode: ``circular``, what leaves at one side enters at the other; ``zero``, what enters is 0 in
        the space of the network's input; ``crop``, a window that moves over a larger image.
      low: least offset along each axis, in pixels.
      high: largest offset.
      draws: pairs per image; 0 for the full grid of (high − low + 1)² offsets.
      per: whether each ``image`` has offsets of its own, or all of a ``batch`` share them.
      seed: of the draws.
      window: height and width of the window of ``crop``; 0 for what all offsets leave.

    Raises:
      ValueError: for an unknown mode or a value out of range.

    References: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019 (windows of
    224 in images of 256 that start in {0, …, 31}²: ``Shifts("crop", -15, 16, draws=5, per="batch",
    window=224)``); Chaman and Dokmanić, "Truly Shift-Invariant Convolutional Neural Networks", CVPR
    2021 (rolls by [−3, 2]²: ``Shifts("circular", -3, 2, draws=1)``).
    """

    mode: str = "circular"
    low: int = -3
    high: int = 3
    draws: int = 0
    per: str = "image"
    seed: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        for name, words in (("mode", MODES), ("per", PER)):
            if getattr(self, name) not in words:
                value = getattr(self, name)
                raise ValueError(f"shift {name}: one of {', '.join(words)}, got {value!r}")
        if self.low > self.high:
            raise ValueError(f"shifts from {self.low} to {self.high}: the smaller number is first")
        for name in ("draws", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"shift {name}: at least 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"shift seed: from 0 to 2³² − 1, got {self.seed}")
        if self.window and self.mode != "crop":
            raise ValueError(f"a window belongs to shifts of mode crop, not {self.mode}")

    @property
    def reach(self) -> int:
        """The largest distance from rest along an axis, in pixels."""
        return max(abs(self.low), abs(self.high))

    @property
    def grid(self) -> list[tuple[int, int]]:
        """Every offset (dy, dx), row by row."""
        along = range(self.low, self.high + 1)
        return list(itertools.product(along, along))

    @property
    def comparisons(self) -> int:
        """How many there are for every image."""
        return self.draws or len(self.grid)

    @property
    def differences(self) -> range:
        """By how much the two images that are compared may differ along an axis."""
        if self.draws:
            return range(self.low - self.high, self.high - self.low + 1)
        return range(self.low, self.high + 1)

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """What a network sees of images of that size.

        Args:
          height: of the images in pixels.
          width: of the images in pixels.

        Returns:
          Height and width in pixels.

        Raises:
          ValueError: if a shift could move an image out of sight, or a window over its border.
        """
        if self.mode != "crop":
            if self.reach >= min(height, width):
                raise ValueError(
                    f"shifts of up to {self.reach} pixels leave nothing of {height}×{width} images"
                )
            return height, width
        view = self.window or height - 2 * self.reach, self.window or width - 2 * self.reach
        for size, seen in zip((height, width), view, strict=True):
            near = (size - seen) // 2
            if seen < 1 or near < self.high or size - seen - near < -self.low:
                what = f"windows of {self.window} do not fit" if self.window else "no window fits"
                raise ValueError(
                    f"{what} in {height}×{width} images with shifts from {self.low} to "
                    f"{self.high} pixels"
                )
        return view


def parse_shifts(
    text: str, mode: str, draws: int = 0, per: str = "image", seed: int = 0, window: int = 0
) -> Shifts | None:
    """Shifts as they are given on a command line.

    Args:
      text: the largest shift, or the least and the largest: ``3`` or ``-3,2``.
      mode: one of ``MODES``.
      draws: pairs per image; 0 for the full grid.
      per: ``image`` or ``batch``.
      seed: of the draws.
      window: of mode ``crop``; the others have none.

    Returns:
      The shifts; ``None`` if the only one is 0.

    Raises:
      ValueError: for anything else.
    """
    if not re.fullmatch(r"\d{1,6}|-?\d{1,6},-?\d{1,6}", text, re.ASCII):
        raise ValueError(f"a shift is given as 3, or as -3,2 for least and largest; got {text!r}")
    numbers = [int(number) for number in text.split(",")]
    low, high = numbers if len(numbers) == 2 else (-numbers[0], numbers[0])
    shifts = Shifts(mode, low, high, draws, per, seed, window if mode == "crop" else 0)
    return shifts if low or high else None


@functools.partial(jax.jit, static_argnames=("mode", "view"))
def shift(
    images: jax.Array, offset: jax.Array, mode: str, view: tuple[int, int] | None = None
) -> jax.Array:
    """Moves the content of images.

    Args:
      images: (batch, height, width, channels).
      offset: int32 (2,), or (batch, 2) for an offset per image: pixels down and to the right.
      mode: one of ``MODES``.
      view: height and width of the window of ``crop``, at rest in the middle of the image.

    Returns:
      Images of the same dtype; of the size of the view if the mode is ``crop``.
    """
    if offset.ndim == 2:
        move = functools.partial(shift, mode=mode, view=view)
        return jax.vmap(lambda image, own: move(image[None], own)[0])(images, offset)
    batch, height, width, channels = images.shape
    if mode == "crop":
        high, wide = view or (height, width)
        top, left = (height - high) // 2 - offset[0], (width - wide) // 2 - offset[1]
        return jax.lax.dynamic_slice(images, (0, top, left, 0), (batch, high, wide, channels))
    moved = jnp.roll(images, offset, (1, 2))
    if mode == "circular":
        return moved
    rows, columns = jnp.arange(height) - offset[0], jnp.arange(width) - offset[1]
    rows_inside = ((rows >= 0) & (rows < height)).reshape(1, height, 1, 1)
    columns_inside = ((columns >= 0) & (columns < width)).reshape(1, 1, width, 1)
    return jnp.where(rows_inside & columns_inside, moved, 0)


@functools.partial(jax.jit, static_argnames=("shifts", "batch"))
def draw_pair(shifts: Shifts, draw: jax.Array, first: jax.Array, batch: int) -> jax.Array:
    """The two offsets of one draw, a pure function of the seed, the draw and the image's number.

    Args:
      shifts: their range and seed, and who shares them.
      draw: () int32, number of the draw.
      first: () int32, number of the batch's first image.
      batch: images in the batch.

    Returns:
      int32 (2, batch, 2) for offsets per image, (2, 2) for offsets per batch.
    """
    key = jax.random.fold_in(jax.random.key(shifts.seed), draw)

    def pair(number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, number)
        return jax.random.randint(own, (2, 2), shifts.low, shifts.high + 1, jnp.int32)

    if shifts.per == "batch":
        return pair(first)
    return jax.vmap(pair, out_axes=1)(first + jnp.arange(batch, dtype=jnp.int32))
