"""The layers of a network, recorded while an audit follows its graph from the input to the output.

A worked example: the audit of ``nn.Conv`` with 7×7 taps, stride 2 and padding 3 on an image of
224×224 pixels, and of the 3×3 max-pooling behind it, as at the start of a ResNet. The image is
input number -1::

    network = Network()
    image = [whole(Source(224, frozenset({-1})))] * 2
    by_seven = Sliding(kernel=[7, 7], stride=[2, 2], dilation=[1, 1], padding=[(3, 3)] * 2)
    stem = network.window("conv1", "conv", image, [224, 224], by_seven)
    by_three = Sliding(kernel=[3, 3], stride=[2, 2], dilation=[1, 1], padding=[(1, 1)] * 2)
    pooled = network.window(None, "max_pool", stem, [112, 112], by_three)

`Network.window` reads each axis (`axis.read`): the image arrives whole, without padding around it.
The padding is the layer's own 3 rows at each end, so (224 + 6 - 7) // 2 + 1 = 112 windows fit and
(224 + 6 - 7) mod 2 = 1 row is left over. It records row 0, ``conv1``, with ``reads=(-1,)``, and
returns axes whose source is row 0. The pooling receives these axes, so it becomes row 1,
``max_pool_1``, with ``reads=(0,)``. A shortcut adds two maps: `Network.merge` gives the sum a
source with both rows, and the next layer reads both. A pending axis (a strided slice, or BlurPool's
sum of shifted slices) becomes a row of kind ``subsample`` as soon as a layer reads it
(`Network.settle`). `Network.rows` returns the rows in the end.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from kernsym_jax.geometry.axis import (
    Axes,
    Axis,
    Reading,
    Source,
    agree,
    joined,
    read,
    unknown,
    whole,
    window_of,
)
from kernsym_jax.geometry.layer import LayerGeometry


class Sliding(NamedTuple):
    """How a layer slides its windows; sequences have one entry per axis.

    Attributes:
      kernel: number of taps.
      stride: step between windows.
      dilation: step between taps.
      padding: ``(lo, hi)`` that the layer itself adds.
      groups: groups of a convolution.
      upsampling: step by which the layer spreads its input first; None for no spreading.
      outputs: sizes of the output if the last window may hang over the far end, else None; the
        overhang counts as padding.
    """

    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    padding: Sequence[tuple[int, int]]
    groups: int = 1
    upsampling: Sequence[int] | None = None
    outputs: Sequence[int] | None = None


class Network:
    """The layers in the order in which they run, and which layers read which."""

    def __init__(self) -> None:
        self._rows: list[LayerGeometry] = []
        self._reads: list[frozenset[int] | None] = []
        self._unnamed: list[LayerGeometry] = []
        self._numbers: Counter[str] = Counter()
        self._subsampled: dict[tuple[Axis, ...], list[Axis]] = {}
        self._unread: list[Axes] = []
        self._repeats = 1
        self._twins: dict[LayerGeometry, list[int]] = {}

    def window(
        self,
        layer: str | None,
        kind: str,
        axes: Sequence[Axis | None],
        sizes: Sequence[int],
        sliding: Sliding,
    ) -> list[Axis]:
        """Records a layer.

        Args:
          layer: name of the layer; ``None`` for a name made of the kind and a number.
          kind: one of `layer.KINDS`.
          axes: spatial axes of its input, none of them pending.
          sizes: number of places on each axis.
          sliding: how the windows slide.

        Returns:
          The spatial axes of the output.

        Raises:
          ValueError: if the input is empty or the kernel does not fit on it; the message names the
            layer.
        """
        # JSON needs plain ints, and a network may hold NumPy's.
        kernel, stride, dilation = (tuple(map(int, n)) for n in sliding[:3])
        spread = tuple(map(int, sliding.upsampling or [1] * len(sizes)))
        name = layer or f"{kind}_{self._numbers[kind] + 1}"
        if min(sizes) < 1:
            raise ValueError(f"{name}: its input map is empty, {'x'.join(map(str, sizes))}")
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        found = list(map(read, axes, sizes, spans, stride))
        outputs: Sequence[int | None] = sliding.outputs or [None] * len(sizes)
        placed = [
            _place(name, found[i], spans[i], stride[i], spread[i], padding=pair, outputs=outputs[i])
            for i, pair in enumerate(sliding.padding)
        ]
        row = LayerGeometry(
            layer=layer or kind,
            kind=kind,
            input_size=tuple(reading.size for reading in found),
            output_size=tuple(windows.number for windows in placed),
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=tuple((windows.lo, windows.hi) for windows in placed),
            groups=int(sliding.groups),
            padding_mode=_mode(found, [windows.own for windows in placed]),
            upsampling=spread,
            repeats=self._repeats,
        )
        number = self._add(row, layer is not None, _rows_read(found))
        return [whole(Source(size, frozenset({number}), "space")) for size in row.output_size]

    def settle(self, axes: Axes) -> Axes:
        """Returns the axes with none pending; records a subsampled map as a layer of its own."""
        pending = [i for i, axis in enumerate(axes) if axis is not None and axis.pending]
        if not pending:
            return axes
        space = [
            i
            for i, axis in enumerate(axes)
            if axis is not None and (i in pending or axis.source.role == "space")
        ]
        places: tuple[Axis, ...] = tuple(axes[i] for i in space)  # type: ignore[misc]  # not None
        if not _is_subsampled_map(places):
            settled = [
                whole(a.source) if a.step == 1 and a.size == a.source.size else unknown(a.size)
                for a in places
            ]
        elif places in self._subsampled:
            settled = self._subsampled[places]
        else:
            kernel, dilation, stride, slid = zip(*map(_windows, places), strict=True)
            settled = self._subsampled[places] = self.window(
                None,
                "subsample",
                slid,
                [axis.size for axis in slid],
                Sliding(kernel, stride, dilation, padding=[(0, 0)] * len(slid)),
            )
        result = list(axes)
        for i, axis in zip(space, settled, strict=True):
            result[i] = axis
        return tuple(result)

    def settle_along(self, axes: Axes, dims: Iterable[int]) -> Axes:
        """Settles the axes if one of ``dims`` is pending; a pending axis cannot be rearranged."""
        return self.settle(axes) if any(a and a.pending for a in (axes[d] for d in dims)) else axes

    def merge(self, operands: Sequence[Axes]) -> Axes:
        """Returns the axes of an elementwise operation on several maps."""
        result = operands[0]
        for axes in operands[1:]:
            if not all(map(agree, result, axes)):
                result, axes = self.settle(result), self.settle(axes)
            result = tuple(map(joined, result, axes))
        return result

    def leave(self, axes: Axes) -> None:
        """Notes a map whose use is not followed further, for example in a global average.

        If the map is subsampled and no layer reads it, `rows` still records the subsampling.
        """
        if any(axis is not None and axis.pending for axis in axes):
            self._unread.append(axes)

    @contextlib.contextmanager
    def loop(self, turns: int) -> Iterator[None]:
        """Multiplies ``repeats`` of the layers recorded inside by ``turns``."""
        outside, self._repeats = self._repeats, self._repeats * turns
        yield
        self._repeats = outside

    def branches(self, alternatives: Sequence[Callable[[], object]]) -> list[object]:
        """Runs the alternatives of a branch; a layer that several of them contain counts once."""
        outside, start = self._twins, len(self._rows)
        results = []
        for alternative in alternatives:
            self._twins = {}
            for number in range(start, len(self._rows)):
                self._twins.setdefault(self._unnamed[number], []).append(number)
            results.append(alternative())
        self._twins = outside
        return results

    def rows(self) -> list[LayerGeometry]:
        """Returns the rows of the audit."""
        for axes in self._unread:
            rivals = [*map(_pending, self._subsampled), *map(_pending, self._unread)]
            if not any(_is_part(_pending(axes), rival) for rival in rivals):
                self.settle(axes)
        self._unread.clear()
        images = set().union(*(r for r in self._reads if r and max(r) < 0))
        return [
            dataclasses.replace(
                row,
                reads=None
                if reads is None
                else tuple(sorted({max(n, -1) for n in reads if n >= 0 or n in images})),
            )
            for row, reads in zip(self._rows, self._reads, strict=True)
        ]

    def _add(self, row: LayerGeometry, named: bool, reads: frozenset[int] | None) -> int:
        """Returns the number of a new row, or of its twin in another branch."""
        twins = self._twins.get(row)
        if twins:
            number = twins.pop(0)
            before = self._reads[number]
            self._reads[number] = None if before is None or reads is None else before | reads
            return number
        self._unnamed.append(row)
        if not named:
            self._numbers[row.kind] += 1
            row = dataclasses.replace(row, layer=f"{row.kind}_{self._numbers[row.kind]}")
        self._rows.append(row)
        self._reads.append(reads)
        return len(self._rows) - 1


class _Placed(NamedTuple):
    """Windows along one axis: their number, all padding, and whether the layer itself adds any."""

    number: int
    lo: int
    hi: int
    own: bool


def _place(
    layer: str,
    reading: Reading,
    span: int,
    stride: int,
    spread: int,
    *,
    padding: tuple[int, int],
    outputs: int | None,
) -> _Placed:
    """Places windows that span ``span`` pixels on a map that is spread and padded."""
    lo, hi = int(padding[0]) + reading.lo * spread, int(padding[1]) + reading.hi * spread
    room = (reading.size - 1) * spread + 1 + lo + hi - span
    if room < 0:
        raise ValueError(
            f"{layer}: its kernel spans {span} pixels, more than the {room + span} of its padded "
            f"input ({reading.size} with padding {lo} and {hi})"
        )
    overhang = 0 if outputs is None else max(0, (outputs - 1) * stride - room)
    own = max(*padding, overhang) > 0
    return _Placed((room + overhang) // stride + 1, lo, hi + overhang, own)


def _mode(found: Sequence[Reading], own: Sequence[bool]) -> str:
    """Returns the `LayerGeometry.padding_mode` of a layer; its own padding is zeros."""
    modes = {reading.mode for reading in found} - {"valid"}
    if any(own):
        modes.add("zero")
    if not modes:
        return "valid"
    return modes.pop() if len(modes) == 1 else "mixed"


def _rows_read(found: Sequence[Reading]) -> frozenset[int] | None:
    """Returns the rows whose maps a layer reads, or None if one of its axes is unknown."""
    known = [reading.rows for reading in found if reading.rows is not None]
    return frozenset().union(*known) if len(known) == len(found) else None


def _windows(axis: Axis) -> tuple[int, int, int, Axis]:
    return window_of(axis) if axis.pending else (1, 1, 1, axis)


def _is_subsampled_map(places: Sequence[Axis]) -> bool:
    """Returns whether the strides are those of a map.

    A stride along the channels is not, and neither is one along the only axis of something that no
    convolution made.
    """
    steps = [axis for axis in places if axis.step > 1]
    spatial = [axis for axis in steps if axis.source.role != "feature"]
    return len(spatial) > 1 or any(axis.source.role == "space" for axis in steps)


def _pending(axes: Sequence[Axis | None]) -> list[Axis]:
    return [axis for axis in axes if axis is not None and axis.pending]


def _is_part(phase: Sequence[Axis], whole_map: Sequence[Axis]) -> bool:
    """Returns whether ``phase`` is one of the shifted slices that ``whole_map`` adds up."""
    return (
        len(phase) == len(whole_map)
        and all(
            a.extent is b.extent and a.step == b.step and set(a.offsets) <= set(b.offsets)
            for a, b in zip(phase, whole_map, strict=True)
        )
        and any(a.offsets != b.offsets for a, b in zip(phase, whole_map, strict=True))
    )
