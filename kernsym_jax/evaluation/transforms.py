"""Shifts and flips of images: how pixels move, and which offsets are compared.

A flip is any of the eight elements of D4, quarter turns included.
"""

import dataclasses
import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry.group import D4, cell_permutations

MODES = ("circular", "zero", "crop")
PER = ("image", "batch")


@dataclasses.dataclass(frozen=True)
class Shifts:
    """The shifts of an image to compare; an offset (dy, dx) moves its content down and right.

    Without ``draws`` the answer to every offset is compared with the answer to the image at rest.
    With ``draws`` pairs of offsets are drawn and their answers are compared with each other.

    Attributes:
      mode: ``circular`` wraps around; ``zero`` fills with 0 in the space of the network's input;
        ``crop`` moves a window over a larger image.
      low: smallest offset along each axis, in pixels.
      high: largest offset along each axis, in pixels.
      draws: pairs per image; 0 for the full grid of (high − low + 1)² offsets.
      per: ``image`` draws offsets for each image, ``batch`` one pair for all images of a batch.
      seed: seed of the draws.
      window: height and width of the window of ``crop`` in pixels; 0 for the largest window that
        every offset keeps inside the image.

    Raises:
      ValueError: for an unknown mode or a value out of range.

    References: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019 (windows of
    224 in images of 256 that start in {0, …, 31}²: ``Shifts("crop", -15, 16, draws=5, per="batch",
    window=224)``); Chaman and Dokmanić, "Truly Shift-Invariant Convolutional Neural Networks", CVPR
    2021 (rolls by [−3, 2]²: ``Shifts("circular", -3, 2, draws=1)``).

    >>> from kernsym_jax import evaluation
    >>> shifts = evaluation.Shifts("circular", -1, 1)
    >>> len(shifts.grid), shifts.differences
    (9, range(-1, 2))
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
        """The number of comparisons per image."""
        return self.draws or len(self.grid)

    @property
    def differences(self) -> range:
        """The possible differences between two compared offsets along one axis, in pixels."""
        if self.draws:
            return range(self.low - self.high, self.high - self.low + 1)
        return range(self.low, self.high + 1)

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width in pixels of the network's input.

        Args:
          height: height of the images in pixels.
          width: width of the images in pixels.

        Returns:
          The size of the window for ``crop``, and (height, width) for the other modes.

        Raises:
          ValueError: if a shift could move an image out of sight, or a window beyond the image.
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
    text: str,
    mode: str,
    *,
    draws: int = 0,
    per: str = "image",
    seed: int = 0,
    window: int = 0,
) -> Shifts | None:
    """Parses the shifts that a command line gives.

    Args:
      text: the largest shift, or the smallest and the largest: ``3`` or ``-3,2``.
      mode: one of ``MODES``.
      draws: pairs per image; 0 for the full grid.
      per: ``image`` or ``batch``.
      seed: seed of the draws.
      window: side of the window for mode ``crop``; ignored for the other modes.

    Returns:
      The shifts, or None if the only shift is 0.

    Raises:
      ValueError: if the text is malformed or a value is out of range.

    >>> from kernsym_jax import evaluation
    >>> shifts = evaluation.parse_shifts("-3,2", "circular")
    >>> shifts.low, shifts.high, len(shifts.grid)
    (-3, 2, 36)
    >>> evaluation.parse_shifts("0", "zero") is None
    True
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
      Images of the same dtype; of the size of the view for ``crop``, of the same size otherwise.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation
    >>> images = jnp.array([1, 2, 3, 4]).reshape(1, 1, 4, 1)
    >>> evaluation.shift(images, jnp.array([0, 1]), mode="circular").ravel().tolist()
    [4, 1, 2, 3]
    >>> evaluation.shift(images, jnp.array([0, 1]), mode="zero").ravel().tolist()
    [0, 1, 2, 3]
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


@functools.partial(jax.jit, static_argnames=("mode", "view"))
def shift_maps(
    maps: jax.Array, offset: jax.Array, mode: str, view: tuple[int, int] | None = None
) -> jax.Array:
    """Shifts maps (batch, height, width) as `shift` shifts images."""
    return shift(maps[..., None], offset, mode, view)[..., 0]


@functools.partial(jax.jit, static_argnames=("shifts", "batch"))
def draw_pair(shifts: Shifts, draw: jax.Array, first: jax.Array, batch: int) -> jax.Array:
    """Draws the two offsets of one comparison, a pure function of seed, draw and image number.

    Args:
      shifts: the range, the seed, and whether images share offsets.
      draw: () int32, number of the draw.
      first: () int32, number of the batch's first image.
      batch: number of images in the batch.

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


class Turn(NamedTuple):
    """An element of D4 for images of one size, as arrays: one program applies every element."""

    swapped: np.ndarray  # () bool: rows and columns change places
    rows: np.ndarray  # (height,) int32: then the result has these rows,
    columns: np.ndarray  # (width,) int32: and these columns


def turn(name: str, height: int, width: int, *, rolled: bool = False) -> Turn:
    """Returns an element of D4 for images of a size, see `flip`.

    Raises:
      ValueError: if the element swaps rows and columns of images that are not square.
    """
    swapped, reversed_axes = _axes_of(name)
    if swapped and height != width:
        raise ValueError(f"{name} needs square images; these have {height}×{width} pixels")
    rolled_axes = _rolled_axes(name, height, width) if rolled else ()
    orders = []
    for axis, size in ((1, height), (2, width)):
        order = np.arange(size, dtype=np.int32)
        if axis in reversed_axes:
            order = order[::-1]
        orders.append(np.roll(order, 1) if axis in rolled_axes else order)
    return Turn(np.array(swapped), *orders)


@jax.jit
def flip_by(images: jax.Array, element: Turn) -> jax.Array:
    """Applies an element of D4 to images (batch, height, width, channels)."""
    return _taken(_swapped(images, element), element)


@jax.jit
def unflip_by(maps: jax.Array, element: Turn) -> jax.Array:
    """Undoes `flip_by`."""
    # A reversal undoes itself, also one that a roll follows.
    return _swapped(_taken(maps, element), element)


def _swapped(images: jax.Array, element: Turn) -> jax.Array:
    if images.shape[1] != images.shape[2]:
        return images
    return jnp.where(element.swapped, images.swapaxes(1, 2), images)


def _taken(images: jax.Array, element: Turn) -> jax.Array:
    rows = jnp.take(images, element.rows, axis=1, mode="clip")
    return jnp.take(rows, element.columns, axis=2, mode="clip")


def flip(images: jax.Array, name: str, *, rolled: bool = False) -> jax.Array:
    """Applies an element of D4 to images, as `symmetry.transform` applies it to a kernel.

    Args:
      images: (batch, height, width, channels).
      name: one of ``symmetry.D4``; for images that are not square one of ``symmetry.RECTANGLE``.
      rolled: rolls the result by one pixel along every axis of even size that the element
        reverses. Pixel 0 then stays pixel 0, so a stride of 2 samples the same pixels as before;
        without the roll a flip swaps even and odd pixels.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if the element swaps rows and columns of images that are not square.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation
    >>> images = jnp.array([1, 2, 3, 4]).reshape(1, 1, 4, 1)
    >>> evaluation.flip(images, "fliplr").ravel().tolist()
    [4, 3, 2, 1]
    >>> evaluation.flip(images, "fliplr", rolled=True).ravel().tolist()
    [1, 4, 3, 2]
    """
    return flip_by(images, turn(name, *images.shape[1:3], rolled=rolled))


def unflip(maps: jax.Array, name: str, *, rolled: bool = False) -> jax.Array:
    """Undoes `flip`.

    Args:
      maps: (batch, height, width, channels), flipped images or a network's answers to them.
      name: the element that `flip` applied.
      rolled: whether `flip` rolled its result.

    Returns:
      Maps of the same shape and dtype, aligned with the images before the flip.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation
    >>> images = jnp.array([1, 2, 3, 4]).reshape(1, 1, 4, 1)
    >>> evaluation.unflip(evaluation.flip(images, "fliplr"), "fliplr").ravel().tolist()
    [1, 2, 3, 4]
    """
    return unflip_by(maps, turn(name, *maps.shape[1:3], rolled=rolled))


def roll_matters(name: str, height: int, width: int) -> bool:
    """Returns whether the one-pixel roll changes an element's result for images of that size."""
    return bool(_rolled_axes(name, height, width))


def _rolled_axes(name: str, height: int, width: int) -> tuple[int, ...]:
    sizes = {1: height, 2: width}
    return tuple(axis for axis in _axes_of(name)[1] if sizes[axis] % 2 == 0)


def _axes_of(name: str) -> tuple[bool, tuple[int, ...]]:
    """Returns whether an element swaps rows and columns, and which axes of its result it reverses.

    Taking rows and then columns is faster than a gather of pixels by `cell_permutations`.
    """
    (corner, right), (below, _) = cell_permutations(2, 2)[D4.index(name)].reshape(2, 2).tolist()
    # Cells of a 2×2 grid are numbered row by row: a step of 2 goes along a column.
    swapped = abs(right - corner) == 2
    steps = {1: below - corner, 2: right - corner}
    return swapped, tuple(axis for axis, step in steps.items() if step < 0)
