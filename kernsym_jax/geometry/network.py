"""The layers of a network, collected while its graph is followed from the input on."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from kernsym_jax.geometry.axis import (
    Axes,
    Axis,
    Source,
    agree,
    joined,
    read,
    unknown,
    whole,
    window_of,
)
from kernsym_jax.geometry.layer import LayerGeometry


class Network:
    """Layers in the order in which they run, and which of them read which."""

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
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        padding: Sequence[tuple[int, int]],
        groups: int = 1,
        upsampling: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
    ) -> list[Axis]:
        """Records a layer.

        Args:
          layer: its name; ``None`` for a name made of the kind and a number.
          kind: one of `layer.KINDS`.
          axes: spatial axes of what it reads, none of them pending.
          sizes: places along them.
          kernel: taps.
          stride: step between windows.
          dilation: step between taps.
          padding: ``(lo, hi)`` that the layer itself adds, per axis.
          groups: of a convolution.
          upsampling: step by which the layer spreads its input first; none by default.
          outputs: sizes of its output where these exceed the formula's, because the last window may
            hang over the far end; what hangs over is counted as padding.

        Returns:
          The spatial axes of its output.

        Raises:
          ValueError: naming the layer, for an empty input or a kernel that does not fit it.
        """
        # Plain ints, whatever the network was written with: rows become JSON.
        kernel, stride, dilation = (tuple(map(int, n)) for n in (kernel, stride, dilation))
        spreads = tuple(map(int, upsampling or [1] * len(sizes)))
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        name = layer or f"{kind}_{self._numbers[kind] + 1}"
        if min(sizes) < 1:
            raise ValueError(f"{name}: its input map is empty, {'x'.join(map(str, sizes))}")
        inputs, amounts, modes, reads = [], [], set(), set()
        results = []
        for i, axis in enumerate(axes):
            found = read(axis, sizes[i], spans[i], stride[i])
            lo, hi = (
                int(own) + more * spreads[i]
                for own, more in zip(padding[i], (found.lo, found.hi), strict=True)
            )
            room = (found.size - 1) * spreads[i] + 1 + lo + hi - spans[i]
            if room < 0:
                raise ValueError(
                    f"{name}: its kernel spans {spans[i]} pixels, more than the {room + spans[i]} "
                    f"of its padded input ({found.size} with padding {lo} and {hi})"
                )
            overhang = max(0, (outputs[i] - 1) * stride[i] - room) if outputs else 0
            inputs.append(found.size)
            amounts.append((lo, hi + overhang))
            modes |= {found.mode} - {"valid"}
            modes |= {"zero"} if max(*padding[i], overhang) > 0 else set()
            reads.add(found.rows)
            results.append((room + overhang) // stride[i] + 1)
        row = LayerGeometry(
            layer=layer or kind,
            kind=kind,
            input_size=tuple(inputs),
            output_size=tuple(results),
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=tuple(amounts),
            groups=int(groups),
            padding_mode=modes.pop() if len(modes) == 1 else "mixed" if modes else "valid",
            upsampling=spreads,
            repeats=self._repeats,
        )
        known = [rows for rows in reads if rows is not None]
        followed = frozenset().union(*known) if len(known) == len(reads) else None
        number = self._add(row, layer is not None, followed)
        return [whole(Source(size, frozenset({number}), "space")) for size in results]

    def settle(self, axes: Axes) -> Axes:
        """The same axes with none pending: a subsampled map is recorded as a layer of its own."""
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
                kernel,
                stride,
                dilation,
                [(0, 0)] * len(slid),
            )
        result = list(axes)
        for i, axis in zip(space, settled, strict=True):
            result[i] = axis
        return tuple(result)

    def settle_along(self, axes: Axes, dims: Iterable[int]) -> Axes:
        """The axes, settled if one of ``dims``, which are about to be rearranged, is pending."""
        return self.settle(axes) if any(a and a.pending for a in (axes[d] for d in dims)) else axes

    def merge(self, operands: Sequence[Axes]) -> Axes:
        """The axes of an operation on several maps place by place."""
        result = operands[0]
        for axes in operands[1:]:
            if not all(map(agree, result, axes)):
                result, axes = self.settle(result), self.settle(axes)
            result = tuple(map(joined, result, axes))
        return result

    def leave(self, axes: Axes) -> None:
        """Notes a map that goes into something that is not followed, such as a global average.

        If it is subsampled and nothing else reads it, the subsampling is a layer all the same.
        """
        if any(axis is not None and axis.pending for axis in axes):
            self._unread.append(axes)

    @contextlib.contextmanager
    def loop(self, turns: int) -> Iterator[None]:
        """Counts the layers recorded inside ``turns`` times."""
        outside, self._repeats = self._repeats, self._repeats * turns
        yield
        self._repeats = outside

    def branches(self, alternatives: Sequence[Callable[[], object]]) -> list[object]:
        """Runs alternatives of which a network takes one; layers that they share count once."""
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
        """The layers, their inputs resolved."""
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
        if twins := self._twins.get(row):
            number = twins.pop(0)
            before = self._reads[number]
            self._reads[number] = before | reads if None not in (before, reads) else None  # type: ignore[operator]  # neither is None
            return number
        self._unnamed.append(row)
        if not named:
            self._numbers[row.kind] += 1
            row = dataclasses.replace(row, layer=f"{row.kind}_{self._numbers[row.kind]}")
        self._rows.append(row)
        self._reads.append(reads)
        return len(self._rows) - 1


def _windows(axis: Axis) -> tuple[int, int, int, Axis]:
    return window_of(axis) if axis.pending else (1, 1, 1, axis)


def _is_subsampled_map(places: Sequence[Axis]) -> bool:
    """Not so for a stride along the channels, or along the only axis of something else."""
    steps = [axis for axis in places if axis.step > 1]
    spatial = [axis for axis in steps if axis.source.role != "feature"]
    return len(spatial) > 1 or any(axis.source.role == "space" for axis in steps)


def _pending(axes: Sequence[Axis | None]) -> list[Axis]:
    return [axis for axis in axes if axis is not None and axis.pending]


def _is_part(phase: Sequence[Axis], whole_map: Sequence[Axis]) -> bool:
    """Whether ``phase`` is one of several shifted slices that ``whole_map`` puts together."""
    return (
        len(phase) == len(whole_map)
        and all(
            a.extent is b.extent and a.step == b.step and set(a.offsets) <= set(b.offsets)
            for a, b in zip(phase, whole_map, strict=True)
        )
        and any(a.offsets != b.offsets for a, b in zip(phase, whole_map, strict=True))
    )
