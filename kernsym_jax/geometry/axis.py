"""Follows one axis of a map, place by place, from the layer that makes it to its reader.

Padding reaches a convolution in many forms: its own argument, a ``pad`` before it, slices that are
concatenated, an index array. Every form says, for each place along an axis, which position of the
original map lies there. An `Axis` keeps exactly this, so every form reads the same.

A worked example: the first layer of a network makes a map of 5 rows, ``jnp.pad`` reflects it at
both ends, and a convolution of 3 taps with stride 2 reads the result without padding of its own::

    source = Source(5, rows=frozenset({0}))           # the layer in row 0 of the audit made it
    padded = taken(whole(source), np.array([1, 0, 1, 2, 3, 4, 3]))
    read(padded, size=7, span=3, stride=2)

`read` looks for the longest run of successive positions: ``0 1 2 3 4``, the whole map. One place
lies before it and one after it, and NumPy's reflection gives the same index, so the answer is
``Reading(size=5, lo=1, hi=1, mode="reflect", rows=frozenset({0}))``: the convolution reads 5 rows
of layer 0 with one row of reflect padding at each end.

A second example: BlurPool with two taps adds two slices of a map of 8 rows, ``x[0:7:2]`` and
``x[1:8:2]``. The first slice is an axis of step 2 and offset 0, the second of step 2 and offset 1,
and `joined` gives their sum the offsets (0, 1). Such an axis is *pending*: no single position lies
at a place. `window_of` writes it as windows of 2 taps with stride 2::

    rows = whole(Source(8))
    window_of(joined(cut(rows, 0, 7, 2), cut(rows, 1, 8, 2)))[:3]     # (2, 1, 2)
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONSTANT = -1
"""The entry of an index where the place holds a constant."""
OTHER = -2
"""The entry of an index where the place holds neither a constant nor a pixel of the source."""

LARGEST = 2**22
"""The length of the longest axis whose index is written out; longer axes become unknown."""

_FILLS = {"replicate": "edge", "reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The positions along one axis of a map that a layer made or that is an input.

    Attributes:
      size: number of positions.
      rows: numbers of the layers whose maps are added or concatenated here; an input has a number
        below zero. ``None`` if unknown.
      role: ``"space"`` or ``"feature"``, as a convolution made it; ``None`` if unknown.
    """

    size: int
    rows: frozenset[int] | None = None
    role: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Extent:
    """A padded source.

    Attributes:
      source: the positions.
      index: the position at each place, or ``CONSTANT`` or ``OTHER``.
    """

    source: Source
    index: range | np.ndarray


@dataclasses.dataclass(frozen=True)
class Axis:
    """A slice of an extent, or the sum of several shifted slices.

    Place i holds the sum of the places ``step * i + offset`` of the extent, over all offsets.
    ``None`` stands for an axis along which a map is constant (a broadcast).

    Attributes:
      extent: the padded source.
      offsets: start of each slice, in ascending order.
      step: step of the slices.
      size: number of places.
    """

    extent: Extent
    offsets: tuple[int, ...]
    step: int
    size: int

    @property
    def source(self) -> Source:
        """The source of the extent."""
        return self.extent.source

    @property
    def pending(self) -> bool:
        """Whether the axis subsamples or sums places, so that no index can describe it."""
        return self.step > 1 or len(self.offsets) > 1

    @property
    def index(self) -> range | np.ndarray:
        """The source position at each place of an axis that is not pending."""
        return self.extent.index[self.offsets[0] : self.offsets[0] + self.size]

    @property
    def untouched(self) -> bool:
        """Whether the axis is its whole source, in order."""
        return not self.pending and _is_run(self.index, 0, self.source.size)

    @property
    def spread(self) -> bool:
        """Whether every place holds the same position of the source, or a constant."""
        if self.size == 1 or self.pending or isinstance(self.index, range):
            return False
        return bool((self.index == self.index[0]).all())


Axes = tuple[Axis | None, ...]


class Reading(NamedTuple):
    """A map and the padding around it, as a layer reads them along one axis.

    Attributes:
      size: positions of the map.
      lo: places before the map; negative if the near end of the map is cropped.
      hi: places after the map; negative if the far end is cropped.
      mode: what the padding holds, see `LayerGeometry.padding_mode`.
      rows: layers that made the map, see `Source`.
    """

    size: int
    lo: int
    hi: int
    mode: str
    rows: frozenset[int] | None


def whole(source: Source) -> Axis:
    """Returns all positions of a source, in order."""
    return Axis(Extent(source, range(source.size)), (0,), 1, source.size)


def unknown(size: int, role: str | None = None) -> Axis:
    """Returns an axis about which nothing is known but its size and, if given, its role."""
    return whole(Source(size, None, role))


def from_index(source: Source, index: np.ndarray) -> Axis:
    """Returns positions of a source in the given order."""
    return Axis(Extent(source, index), (0,), 1, len(index))


def cut(axis: Axis, start: int, limit: int, step: int = 1) -> Axis:
    """Returns the slice ``[start:limit:step]`` of an axis that is not pending."""
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
    """Returns the given places of an axis that is not pending, in the given order."""
    if max(axis.size, len(places)) > LARGEST:
        return unknown(len(places))
    return from_index(axis.source, np.asarray(axis.index)[np.asarray(places, int)])


def repeated(axis: Axis, each: int = 1, times: int = 1) -> Axis:
    """Repeats every place ``each`` times in a row, and the result ``times`` times."""
    size = axis.size * each * times
    if size == axis.size:
        return axis
    if axis.pending or size > LARGEST:
        return unknown(size)
    return taken(axis, np.tile(np.repeat(np.arange(axis.size), each), times))


def chained(pieces: Sequence[Axis | None], fills: Sequence[tuple[int, int]]) -> Axis | None:
    """Concatenates pieces of an axis.

    Args:
      pieces: axes that are not pending, or ``None`` for a piece that is no part of a map.
      fills: per piece, its size, and the entry of the index if the piece is ``None``.

    Returns:
      The axis; an unknown one if the pieces have several sources, ``None`` if they have none.
    """
    size = sum(length for length, _ in fills)
    known = [piece for piece in pieces if piece is not None and piece.source.rows is not None]
    if 2 * sum(piece.size for piece in known) > size:
        # A computed piece beside a larger map is the border of that map.
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
    """Returns the axes with those of some dimensions replaced."""
    return tuple(changes.get(d, axis) for d, axis in enumerate(axes))


def agree(a: Axis | None, b: Axis | None) -> bool:
    """Returns whether `joined` keeps what is known about both axes."""
    if a is None or b is None or a == b or a.spread or b.spread:
        return True
    if a.extent is b.extent:
        return (a.step, a.size) == (b.step, b.size)
    return (a.untouched and b.untouched) or _same_places(a, b)


def joined(a: Axis | None, b: Axis | None) -> Axis | None:
    """Returns the axis of the sum of two maps, or of any other elementwise operation on them."""
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


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """Returns the axes of a reshaped array; those that are neither split nor merged stay known."""
    if 0 in old or 0 in new:
        return tuple(unknown(size) for size in new)
    result: list[Axis | None] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        elements_before = math.prod(old[p] for p in before)
        elements_after = math.prod(new[p] for p in after)
        while elements_before != elements_after:
            if elements_before < elements_after:
                before.append(i)
                elements_before *= old[i]
                i += 1
            else:
                after.append(j)
                elements_after *= new[j]
                j += 1
        result += _regrouped(
            [axes[p] for p in before], [old[p] for p in before], [new[p] for p in after]
        )
    return tuple(result)


def read(axis: Axis | None, size: int, span: int, stride: int) -> Reading:
    """Separates a map from the padding around it.

    The map is the longest run of successive positions, if it holds every position that occurs; the
    places before and after it are padding. A run may leave out some positions at an end of its
    source. If it leaves out less than a window or a step, the layer crops its input, which counts
    as negative padding. Otherwise the run is another, smaller map.

    Args:
      axis: an axis that is not pending.
      size: its number of places.
      span: pixels that the kernel of the reading layer spans.
      stride: stride of the reading layer.

    Returns:
      The map and its padding. If the axis is no padded map: the whole axis, with rows ``None``.
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
    """Writes a pending axis as windows.

    Returns:
      Taps, dilation and stride of the windows, and the axis that they slide on. The first window
      starts at the near end of this axis. The axis reaches to the end of the extent if no further
      window fits there; otherwise it ends with the last window.
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
    """Returns begin and end of the longest run of successive positions.

    If several runs have this length, it is the middle one.
    """
    goes_on = (np.diff(index) == 1) & (index[:-1] >= 0)
    begins = np.flatnonzero(np.concatenate([[True], ~goes_on]) & (index >= 0))
    ends = np.flatnonzero(np.concatenate([~goes_on, [True]]) & (index >= 0)) + 1
    longest = np.flatnonzero(ends - begins == (ends - begins).max())
    middle = longest[len(longest) // 2]
    return int(begins[middle]), int(ends[middle])


def _mode(index: np.ndarray, size: int, lo: int, hi: int, near: int) -> str:
    """Returns the `LayerGeometry.padding_mode` of the first ``lo`` and last ``hi`` places."""
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


def _regrouped(axes: Sequence[Axis | None], old: Sequence[int], new: Sequence[int]) -> Axes:
    """Returns the axes ``new`` that a reshape makes from the axes ``old``, and from no others."""
    wide = [i for i, size in enumerate(old) if size > 1]
    targets = [j for j, size in enumerate(new) if size > 1] or list(range(len(new)))[:1]
    result: list[Axis | None] = [None] * len(new)
    known = [i for i, axis in enumerate(axes) if axis is not None]
    if len(targets) > 1 or (len(known) > 1 and len(wide) > 1):
        features = all(axis is None or axis.source.role == "feature" for axis in axes)
        role = "feature" if known and features else None
        return tuple(unknown(size, role) if size > 1 else None for size in new)
    if targets and known:
        (target,) = targets
        kept = [i for i in known if i in wide] or known[:1]
        axis = axes[kept[0]]
        repeats = math.prod(old[kept[0] + 1 :])
        tiles = math.prod(old[: kept[0]])
        result[target] = axis if axis is None else repeated(axis, repeats, tiles)
    return tuple(result)
