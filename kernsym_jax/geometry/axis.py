"""One axis of a map, followed position by position from where it was made to where it is read.

Padding reaches a convolution in many guises: its own, a ``pad`` in front, slices of the map put
together again, an index array. All of them say, for each place along an axis, which position of
the original map lies there. An `Axis` keeps exactly that, so that every guise reads the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONSTANT = -1
"""Stands in an index for a place that holds a constant."""
OTHER = -2
"""Stands in an index for a place that holds something else than a pixel of the source."""

LARGEST = 2**22
"""Places of the longest axis whose index is written out; longer ones are not followed further."""

_FILLS = {"replicate": "edge", "reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The positions that a layer or an input made.

    Attributes:
      size: number of positions.
      rows: numbers of the layers (and, below zero, of the inputs) whose maps are added or put
        together here; ``None`` where unknown.
      role: ``"space"`` or ``"feature"``, as a convolution made it; ``None`` where unknown.
    """

    size: int
    rows: frozenset[int] | None = None
    role: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Extent:
    """A source, padded: the source position at each place, or ``CONSTANT`` or ``OTHER``."""

    source: Source
    index: range | np.ndarray


@dataclasses.dataclass(frozen=True)
class Axis:
    """Places along one axis, each made from one or several places of an extent.

    Place i is made from places ``step * i + offset`` of the extent, for every offset: one offset is
    a slice, several are a sum of shifted slices. An axis along which all is the same (broadcast)
    is written ``None`` instead.
    """

    extent: Extent
    offsets: tuple[int, ...]
    step: int
    size: int

    @property
    def source(self) -> Source:
        """What it is made from."""
        return self.extent.source

    @property
    def pending(self) -> bool:
        """Whether it subsamples or mixes places, and so cannot be written as one index."""
        return self.step > 1 or len(self.offsets) > 1

    @property
    def index(self) -> range | np.ndarray:
        """The source position at each place, unless pending."""
        return self.extent.index[self.offsets[0] : self.offsets[0] + self.size]

    @property
    def untouched(self) -> bool:
        """Whether it is its source as a whole, in order."""
        return not self.pending and _is_run(self.index, 0, self.source.size)

    @property
    def spread(self) -> bool:
        """Whether it repeats one position of its source (or constants) all along."""
        if self.size == 1 or self.pending or isinstance(self.index, range):
            return False
        return bool((self.index == self.index[0]).all())


Axes = tuple[Axis | None, ...]


class Reading(NamedTuple):
    """What a layer finds along an axis: a map of ``size``, and padding in front of it."""

    size: int
    lo: int
    hi: int
    mode: str
    rows: frozenset[int] | None


def whole(source: Source) -> Axis:
    """All positions of a source, in order."""
    return Axis(Extent(source, range(source.size)), (0,), 1, source.size)


def unknown(size: int, role: str | None = None) -> Axis:
    """Positions of which nothing is known."""
    return whole(Source(size, None, role))


def from_index(source: Source, index: np.ndarray) -> Axis:
    """Positions of a source in the given order."""
    return Axis(Extent(source, index), (0,), 1, len(index))


def cut(axis: Axis, start: int, limit: int, step: int = 1) -> Axis:
    """The slice ``[start:limit:step]`` of an axis that is not pending."""
    size = len(range(start, limit, step))
    return Axis(axis.extent, (axis.offsets[0] + start,), step, size)


def extend(axis: Axis, lo: int, hi: int, value: int = CONSTANT) -> Axis:
    """Adds places that hold ``value`` at both ends of an axis that is not pending.

    A negative amount crops instead.
    """
    axis = cut(axis, max(-lo, 0), axis.size - max(-hi, 0))
    if max(lo, hi) <= 0:
        return axis
    if axis.size + max(lo, 0) + max(hi, 0) > LARGEST:
        return unknown(axis.size + max(lo, 0) + max(hi, 0))
    ends = (np.full(max(lo, 0), value), np.full(max(hi, 0), value))
    return from_index(axis.source, np.concatenate([ends[0], axis.index, ends[1]]))


def taken(axis: Axis, places: range | np.ndarray) -> Axis:
    """The given places, in their order, of an axis that is not pending."""
    if max(axis.size, len(places)) > LARGEST:
        return unknown(len(places))
    return from_index(axis.source, np.asarray(axis.index)[np.asarray(places, int)])


def repeated(axis: Axis, each: int = 1, times: int = 1) -> Axis:
    """Every place ``each`` times in a row, and all of that ``times`` over."""
    size = axis.size * each * times
    if size == axis.size:
        return axis
    if axis.pending or size > LARGEST:
        return unknown(size)
    return taken(axis, np.tile(np.repeat(np.arange(axis.size), each), times))


def chained(pieces: Sequence[Axis | None], fills: Sequence[tuple[int, int]]) -> Axis | None:
    """Puts pieces of an axis one after the other.

    Args:
      pieces: axes that are not pending, or ``None`` for a piece that is no part of a map.
      fills: per piece, its size and what it holds where it is ``None``.

    Returns:
      The axis; unknown where pieces are of several sources, ``None`` where they are of none.
    """
    size = sum(length for length, _ in fills)
    known = [piece for piece in pieces if piece is not None and piece.source.rows is not None]
    if 2 * sum(piece.size for piece in known) > size:
        # What is computed somehow and put around a larger map is its border.
        pieces = [piece if piece in known else None for piece in pieces]
    sources = {piece.source for piece in pieces if piece is not None}
    if not sources:
        return None
    if len(sources) > 1 or size > LARGEST:
        roles = {source.role for source in sources}
        return unknown(size, roles.pop() if len(roles) == 1 else None)
    parts = [
        np.full(*fill) if piece is None else np.asarray(piece.index)
        for piece, fill in zip(pieces, fills, strict=True)
    ]
    return from_index(sources.pop(), np.concatenate(parts))


def changed(axes: Axes, changes: Mapping[int, Axis | None]) -> Axes:
    """The axes with those of some dimensions replaced."""
    return tuple(changes.get(d, axis) for d, axis in enumerate(axes))


def agree(a: Axis | None, b: Axis | None) -> bool:
    """Whether `joined` keeps what is known of both axes."""
    if a is None or b is None or a == b or a.spread or b.spread:
        return True
    if a.extent is b.extent:
        return (a.step, a.size) == (b.step, b.size)
    return (a.untouched and b.untouched) or _same_places(a, b)


def joined(a: Axis | None, b: Axis | None) -> Axis | None:
    """The axis of a sum of two maps, or of any other operation place by place."""
    if a is None or b is None:
        return a or b
    if a == b or b.spread or _same_places(a, b):
        return a
    if a.spread:
        return b
    if a.extent is b.extent and (a.step, a.size) == (b.step, b.size):
        return dataclasses.replace(a, offsets=tuple(sorted({*a.offsets, *b.offsets})))
    role = a.source.role or b.source.role
    if a.source is b.source and a.size == a.source.size:
        return whole(a.source)
    if a.untouched and b.untouched:
        known = a.source.rows is not None and b.source.rows is not None
        rows = a.source.rows | b.source.rows if known else None  # type: ignore[operator]  # known
        return whole(Source(a.size, rows, role))
    return unknown(a.size, role)


def read(axis: Axis | None, size: int, span: int, stride: int) -> Reading:
    """Tells a map from the padding around it.

    The map is the longest run of successive positions, if it holds every position that occurs.
    What lies before and after it is padding. Where the run leaves out an end of the source by less
    than a window or a step, that is part of how the windows are placed, and counts as negative
    padding; otherwise it is another, smaller map.

    Args:
      axis: not pending.
      size: its number of places.
      span: pixels that the kernel of the reader spans.
      stride: of the reader.

    Returns:
      The map and its padding; all of the axis, with rows ``None``, where it is no padded map.
    """
    if axis is None:
        return Reading(size, 0, 0, "valid", None)
    source = axis.source
    if axis.untouched:
        return Reading(size, 0, 0, "valid", source.rows)
    index = axis.index
    if isinstance(index, range):
        return _cropped(source, index.start, index.stop, max(span, stride))
    real = index[index >= 0]
    if len(real) == 0:
        return Reading(size, 0, 0, "valid", None)
    begin, end = _longest_run(index)
    near, far = int(index[begin]), source.size - 1 - int(index[end - 1])
    if real.min() < near or real.max() > source.size - 1 - far:
        permuted = len(index) == source.size and _is_run(np.sort(index), 0, size)
        return Reading(size, 0, 0, "valid", source.rows if permuted else None)
    lo, hi = begin, size - end
    mode = _mode(index, source.size, lo, hi, near)
    if max(near, far) >= max(span, stride):
        return Reading(end - begin, lo, hi, mode, None)
    return Reading(source.size, lo - near, hi - far, mode, source.rows)


def _cropped(source: Source, start: int, stop: int, reach: int) -> Reading:
    if max(start, source.size - stop) >= reach:
        return Reading(stop - start, 0, 0, "valid", None)
    return Reading(source.size, -start, stop - source.size, "valid", source.rows)


def window_of(axis: Axis) -> tuple[int, int, int, Axis]:
    """Writes a pending axis as windows: kernel, dilation, stride, and the axis that they slide on.

    The windows start at the near end of that axis, which ends where the last of them does unless
    another window would not have fitted.
    """
    start, reach = axis.offsets[0], axis.offsets[-1] - axis.offsets[0]
    dilation = math.gcd(*(offset - start for offset in axis.offsets)) or 1
    room = len(axis.extent.index) - start - reach - 1
    used = start + reach + 1 + (axis.size - 1) * axis.step
    end = len(axis.extent.index) if room // axis.step + 1 == axis.size else used
    slid = Axis(axis.extent, (start,), 1, end - start)
    return reach // dilation + 1, dilation, axis.step, slid


def _is_run(index: range | np.ndarray, start: int, stop: int) -> bool:
    if isinstance(index, range):
        return index == range(start, stop)
    return len(index) == stop - start and bool((index == np.arange(start, stop)).all())


def _same_places(a: Axis, b: Axis) -> bool:
    if a.source is not b.source or a.pending or b.pending or a.size != b.size:
        return False
    return bool(np.array_equal(a.index, b.index))


def _longest_run(index: np.ndarray) -> tuple[int, int]:
    """Begin and end of the longest run of successive positions; of equals, the middle one."""
    goes_on = (np.diff(index) == 1) & (index[:-1] >= 0)
    begins = np.flatnonzero(np.concatenate([[True], ~goes_on]) & (index >= 0))
    ends = np.flatnonzero(np.concatenate([~goes_on, [True]]) & (index >= 0)) + 1
    longest = np.flatnonzero(ends - begins == (ends - begins).max())
    middle = longest[len(longest) // 2]
    return int(begins[middle]), int(ends[middle])


def _mode(index: np.ndarray, size: int, lo: int, hi: int, near: int) -> str:
    """What the first ``lo`` and last ``hi`` places hold, as `LayerGeometry.padding_mode`."""
    fill = np.concatenate([index[:lo], index[len(index) - hi :]])
    if len(fill) == 0:
        return "valid"
    if (fill == CONSTANT).all():
        return "zero"
    for name, mode in _FILLS.items():
        padded = np.pad(np.arange(size), (lo, hi), mode)  # type: ignore[call-overload]
        if np.array_equal(padded[near : near + len(index)], index):
            return name
    return "mixed" if CONSTANT in fill else "other"
