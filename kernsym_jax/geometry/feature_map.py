"""Maps in the graphs of Keras and TensorFlow Lite, and how operators change them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kernsym_jax.geometry.arithmetic import padding_amounts
from kernsym_jax.geometry.axis import (
    CONSTANT,
    LARGEST,
    OTHER,
    Axes,
    Axis,
    Source,
    chained,
    changed,
    cut,
    extend,
    reshaped,
    taken,
    unknown,
    whole,
)
from kernsym_jax.geometry.layer import MISFIT, FileAudit
from kernsym_jax.geometry.network import Network, Sliding

MAX_OPERATIONS = 50_000
"""The most operations that an audit follows: nested models can repeat each other without end."""

LARGEST_WINDOW = 1 << 16
"""The largest kernel, stride, dilation or number of groups."""

Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """An array that depends on the network's input: the sizes of its axes, and what they hold."""

    shape: tuple[int, ...]
    axes: Axes

    @classmethod
    def of(cls, shape: Sequence[int]) -> "FeatureMap":
        """Returns an array whose shape is known and nothing else."""
        return cls(tuple(shape), tuple(unknown(size) for size in shape))


@dataclasses.dataclass(frozen=True)
class Window:
    """How a layer slides over its input, one number per spatial axis.

    Attributes:
      kernel: taps.
      stride: step between windows; of a transposed convolution, step between spread pixels.
      dilation: step between taps.
      padding: ``SAME``, ``VALID`` or (lo, hi) of each axis.
      groups: of a convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | Pairs
    groups: int = 1


class GraphAudit:
    """The layers of a graph, collected while its operators are followed in order.

    Every method takes and returns `FeatureMap`; None stands for a map of unknown shape.

    Attributes:
      left_out: layer -> why it has no row.
      features: dense layer -> the number of features that it reads.
    """

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self.features: dict[str, int] = {}
        self._network = Network()
        self._operations = 0
        self._images = 0

    def count(self) -> None:
        """Counts an operation.

        Raises:
          ValueError: after `MAX_OPERATIONS`.
        """
        self._operations += 1
        if self._operations > MAX_OPERATIONS:
            raise ValueError(f"a graph of more than {MAX_OPERATIONS} operations")

    def image(self, shape: Sequence[int]) -> FeatureMap:
        """Returns an input of the network."""
        self._images += 1
        rows = frozenset({-self._images})
        return FeatureMap(tuple(shape), tuple(whole(Source(size, rows)) for size in shape))

    def finish(self, results: Sequence[FeatureMap | None]) -> FileAudit:
        """Returns the rows.

        Args:
          results: what the network returns.

        Raises:
          ValueError: if layers are left out and none has a row.
        """
        for result in results:
            self.leave(result)
        rows = self._network.rows()
        if self.left_out and not rows:
            layer, why = next(iter(self.left_out.items()))
            raise ValueError(f"{layer}: {why}")
        return FileAudit(rows, self.left_out)

    def leave(self, found: FeatureMap | None) -> None:
        """Notes a map that is not followed further."""
        if found is not None:
            self._network.leave(found.axes)

    def window(
        self,
        layer: str | None,
        kind: str,
        found: FeatureMap | None,
        window: Window,
        *,
        features: int | None = None,
        channels_first: bool = False,
        outputs: Sequence[int] | None = None,
    ) -> FeatureMap | None:
        """Adds a convolution or pooling.

        Args:
          layer: its name; None for a name made of the kind and a number.
          kind: one of `layer.KINDS`; ``conv`` becomes ``depthwise`` for a group per input channel.
          found: its input.
          window: how it slides.
          features: channels that it makes; None for those of its input.
          channels_first: whether the channels come before the spatial axes.
          outputs: output sizes of a transposed convolution, if its padding does not determine them.

        Raises:
          ValueError: naming the layer, for an empty input or a kernel that does not fit it.
        """
        numbers = (*window.kernel, *window.stride, *window.dilation, window.groups)
        if not 0 < min(numbers) <= max(numbers) <= LARGEST_WINDOW:
            raise ValueError(f"{layer or kind}: a window of {numbers}")
        placed = self._input(layer or kind, found, len(window.kernel), channels_first)
        if placed is None:
            return None
        (batch, channels, places), sizes, inputs = placed
        if kind == "conv" and 1 < window.groups == inputs:
            kind = "depthwise"
        upsampling, stride = None, window.stride
        if kind == "transposed":
            upsampling, stride = window.stride, (1,) * len(sizes)
            padding = _spread_padding(window, sizes, outputs)
        else:
            padding = _own_padding(window, sizes)
        made = self._network.window(
            layer,
            kind,
            places,
            sizes,
            Sliding(window.kernel, stride, window.dilation, padding, window.groups, upsampling),
        )
        last = channels if features is None else unknown(features, "feature")
        axes = (batch, last, *made) if channels_first else (batch, *made, last)
        results = [axis.size for axis in made]
        count = inputs if features is None else features
        shape = (count, *results) if channels_first else (*results, count)
        return FeatureMap((found.shape[0], *shape), axes)  # type: ignore[union-attr]  # not None

    def _input(
        self, layer: str, found: FeatureMap | None, n: int, channels_first: bool
    ) -> tuple[tuple[Axis | None, Axis | None, Axes], tuple[int, ...], int] | None:
        """Returns the axes (batch, channels, space), sizes and channels of a layer's input."""
        if found is None:
            self.left_out[layer] = "the size of its input cannot be inferred"
            return None
        if len(found.shape) != n + 2:
            raise ValueError(f"{layer}: a kernel of {n} axes on a map of shape {found.shape}")
        batch, *axes = self._network.settle(found.axes)
        if channels_first:
            return (batch, axes[0], tuple(axes[1:])), found.shape[2:], found.shape[1]
        return (batch, axes[-1], tuple(axes[:-1])), found.shape[1:-1], found.shape[-1]

    def padded(
        self, found: FeatureMap, amounts: Mapping[int, tuple[int, int]], mode: str = "constant"
    ) -> FeatureMap:
        """Pads or, where an amount is negative, crops axes.

        Args:
          found: the map.
          amounts: axis -> (lo, hi).
          mode: ``constant``, or ``reflect`` or ``symmetric`` as NumPy pads.

        Raises:
          ValueError: if nothing is left of an axis.
        """
        axes = self._network.settle_along(found.axes, list(amounts))
        shape = list(found.shape)
        changes: dict[int, Axis | None] = {}
        for d, (lo, hi) in amounts.items():
            shape[d] += lo + hi
            if not 0 < shape[d] < 1 << 31:
                raise ValueError(f"padding by {lo} and {hi} leaves an axis of {shape[d]}")
            changes[d] = _padded(axes[d], lo, hi, mode)
        return FeatureMap(tuple(shape), changed(axes, changes))

    def sliced(self, found: FeatureMap, ranges: Mapping[int, range]) -> FeatureMap:
        """Returns the map at the places of an ascending range along each of some axes."""
        axes = self._network.settle_along(found.axes, list(ranges))
        shape = list(found.shape)
        changes: dict[int, Axis | None] = {}
        for d, places in ranges.items():
            shape[d], axis = len(places), axes[d]
            changes[d] = axis and cut(axis, places.start, places.stop, places.step)
        return FeatureMap(tuple(shape), changed(axes, changes))

    def together(self, name: str, maps: Sequence[FeatureMap]) -> FeatureMap:
        """Combines maps place by place, as addition and multiplication do.

        Raises:
          ValueError: naming the operation, if they do not fit.
        """
        try:
            shape = np.broadcast_shapes(*(each.shape for each in maps))
        except ValueError:
            raise _misfit(name, maps) from None
        operands = []
        for each in maps:
            own = (1,) * (len(shape) - len(each.shape)) + each.shape
            axes = (None,) * (len(shape) - len(each.shape)) + each.axes
            # A pixel, row or column that is broadcast is the same at every place.
            pairs = zip(axes, own, shape, strict=True)
            operands.append(tuple(a if size == n else None for a, size, n in pairs))
        return FeatureMap(shape, self._network.merge(operands))

    def concatenated(self, name: str, maps: Sequence[FeatureMap], axis: int) -> FeatureMap:
        """Puts maps one after the other along an axis.

        Raises:
          ValueError: naming the operation, if they do not fit.
        """
        rank = len(maps[0].shape)
        d = axis % rank if -rank <= axis < rank else rank
        if len({(*each.shape[:d], *each.shape[d + 1 :]) for each in maps}) > 1 or d == rank:
            raise _misfit(name, maps)
        pieces = [self._network.settle_along(each.axes, [d]) for each in maps]
        fills = [(each.shape[d], OTHER) for each in maps]
        joined = chained([axes[d] for axes in pieces], fills)
        rest = self._network.merge([changed(axes, {d: None}) for axes in pieces])
        shape = list(maps[0].shape)
        shape[d] = sum(size for size, _ in fills)
        return FeatureMap(tuple(shape), changed(rest, {d: joined}))

    def reduced(self, found: FeatureMap, dims: Sequence[int], *, keep: bool) -> FeatureMap:
        """Reduces axes to one place each, as a global average does."""
        gone = {d % len(found.shape) for d in dims}
        self._network.leave(tuple(a for d, a in enumerate(found.axes) if d in gone))
        pairs = enumerate(zip(found.shape, found.axes, strict=True))
        kept = [(1, None) if d in gone else pair for d, pair in pairs if keep or d not in gone]
        return FeatureMap(tuple(size for size, _ in kept), tuple(axis for _, axis in kept))

    def resized(self, found: FeatureMap, sizes: Mapping[int, int]) -> FeatureMap:
        """Scales axes to other sizes by interpolation."""
        self.leave(found)
        shape = tuple(sizes.get(d, size) for d, size in enumerate(found.shape))
        if not all(0 < size < 1 << 31 for size in shape):
            raise ValueError(f"a map scaled to {shape}")
        changes: dict[int, Axis | None] = {d: unknown(size, "space") for d, size in sizes.items()}
        return FeatureMap(shape, changed(found.axes, changes))

    def reshaped(self, found: FeatureMap, shape: Sequence[int]) -> FeatureMap | None:
        """Gives a map another shape, in which one size may be -1; None if that is impossible."""
        shape, count = list(shape), math.prod(found.shape)
        if shape.count(-1) == 1:
            rest = math.prod(size for size in shape if size != -1)
            shape[shape.index(-1)] = count // rest if rest > 0 else 0
        if min(shape, default=1) < 1 or math.prod(shape) != count:
            self.leave(found)
            return None
        result = reshaped(found.axes, found.shape, shape)
        if any(a is not None and a.pending and a not in result for a in found.axes):
            self.leave(found)
        return FeatureMap(tuple(shape), result)

    def permuted(self, found: FeatureMap, order: Sequence[int]) -> FeatureMap:
        """Puts the axes into another order."""
        if sorted(order) != list(range(len(found.shape))):
            raise ValueError(f"a map of {len(found.shape)} axes in the order {list(order)}")
        return FeatureMap(tuple(found.shape[d] for d in order), tuple(found.axes[d] for d in order))

    def refuse(self, layer: str, wanted: int, got: int) -> None:
        """Notes that a layer takes another number of features than its map has."""
        self.left_out[layer] = f"{MISFIT}: it takes {wanted} numbers, not {got}"

    def dense(self, found: FeatureMap, features: int) -> FeatureMap:
        """Multiplies the last axis by a matrix."""
        axes = (*found.axes[:-1], unknown(features, "feature"))
        return FeatureMap((*found.shape[:-1], features), axes)


def image_shape(
    name: str, shape: Sequence[int], size: int | Sequence[int] | None, *, channels_first: bool
) -> tuple[int, ...]:
    """Returns the shape of an input of a network at an input size.

    Args:
      name: of the input.
      shape: the file's shape; a size below 1 is open.
      size: pixels along every spatial axis, or one number per axis; None for the file's own.
      channels_first: whether the channels come before the spatial axes.

    Raises:
      ValueError: naming the input, if an open size is not given, or the number of sizes is not that
        of the spatial axes.
    """
    found = [1 if shape[0] < 1 else shape[0], *shape[1:]] if shape else []
    space = range(2, len(found)) if channels_first else range(1, len(found) - 1)
    if size is not None and len(space):
        sizes = list(size) if isinstance(size, Sequence) else [size] * len(space)
        if len(sizes) != len(space):
            raise ValueError(f"its input {name!r} has {len(space)} spatial axes; got {sizes}")
        for d, pixels in zip(space, sizes, strict=True):
            found[d] = pixels
    if not all(0 < pixels < 1 << 31 for pixels in found):
        shown = ", ".join("?" if pixels < 1 else str(pixels) for pixels in shape)
        raise ValueError(f"its input {name!r} has shape ({shown}); give an input size")
    return tuple(found)


def _own_padding(window: Window, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the padding that a layer itself adds, in numbers."""
    if window.padding == "VALID":
        return [(0, 0)] * len(sizes)
    if not isinstance(window.padding, str):
        return list(window.padding)
    axes = zip(sizes, window.kernel, window.stride, window.dilation, strict=True)
    return [padding_amounts(n, k, s, window.padding, d) for n, k, s, d in axes]  # type: ignore[misc]  # one axis: a pair


def _spread_padding(
    window: Window, sizes: Sequence[int], outputs: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Returns the padding around the spread input of TensorFlow's transposed convolution.

    The layer is the gradient of a convolution: the result loses what that convolution pads, the odd
    pixel at the far end.
    """
    padding = []
    for i, (n, k, s, d) in enumerate(
        zip(sizes, window.kernel, window.stride, window.dilation, strict=True)
    ):
        span = d * (k - 1) + 1
        output = outputs[i] if outputs else n * s
        if not outputs and window.padding != "SAME":
            output += max(span - s, 0)
        excess = (n - 1) * s + span - output
        near = max(excess, 0) // 2
        padding.append((span - 1 - near, span - 1 - (excess - near)))
    return padding


def _padded(axis: Axis | None, lo: int, hi: int, mode: str) -> Axis | None:
    if axis is None:
        return None
    if axis.size + max(lo, 0) + max(hi, 0) > LARGEST:
        return unknown(axis.size + lo + hi)
    if mode == "constant" or min(lo, hi) < 0:
        return extend(axis, lo, hi, CONSTANT)
    return taken(axis, np.pad(np.arange(axis.size), (lo, hi), mode))  # type: ignore[call-overload]  # a mode by name


def _misfit(name: str, maps: Sequence[FeatureMap]) -> ValueError:
    shapes = dict.fromkeys(each.shape for each in maps)
    sizes = " and ".join("×".join(map(str, shape)) for shape in shapes)
    return ValueError(f"{name}: cannot put maps of {sizes} together")
