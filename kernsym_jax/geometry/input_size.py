"""Input sizes at which a network applies its padding evenly, and the advice that follows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from kernsym_jax.geometry.arithmetic import windows
from kernsym_jax.geometry.layer import MISFIT, FileAudit, LayerGeometry

LayerLike = LayerGeometry | Sequence[Any]
"""A row of an audit, or ``(kernel, stride, padding[, dilation])``, ints or a tuple per axis."""

# An audit raises these at sizes where a map is empty or shapes do not fit.
_NO_NETWORK = (ValueError, TypeError)

Layers = Sequence[LayerLike] | Callable[[Any], Sequence[LayerGeometry]]


def layers_at(
    layers: Sequence[LayerLike], size: int | Sequence[int] | None = None
) -> list[LayerGeometry]:
    """Calculates the geometry of a network's layers at another input size.

    Args:
      layers: rows of an audit, whose padding stays as it was read; or a tuple
        ``(kernel, stride, padding[, dilation])`` per layer of a chain, whose padding may be
        ``"SAME"`` and is calculated for each size.
      size: pixels of the network's input, one number for every axis or one per axis; ``None`` for
        the size at which the rows were audited.

    Returns:
      A row per layer.

    Raises:
      ValueError: if a map is empty, a kernel does not fit, or the input size of a layer does not
        follow from the rows (the message names the layer); or for tuples without a size.

    >>> from kernsym_jax import geometry
    >>> [row.uneven for row in geometry.layers_at([(3, 2, 1), (3, 2, 1)], 32)]
    [(1, 1), (1, 1)]
    >>> [row.uneven for row in geometry.layers_at([(3, 2, 1), (3, 2, 1)], 33)]
    [(0, 0), (0, 0)]
    """
    rows = list(layers)
    if size is None:
        if not all(isinstance(row, LayerGeometry) for row in rows):
            raise ValueError("layers given as (kernel, stride, padding) need an input size")
        return rows  # type: ignore[return-value]  # just checked
    _check(rows)
    done: list[LayerGeometry] = []
    for number, row in enumerate(rows):
        if isinstance(row, LayerGeometry):
            done.append(_row_at(row, _input_of(row, done, size)))
        else:
            done.append(_tuple_at(row, number, done[-1].output_size if done else size))
    return done


def even_input_sizes(
    layers: Layers,
    around: int | Sequence[int],
    count: int = 3,
    reach: int | None = None,
) -> list[Any]:
    """Finds the input sizes nearest to a given one at which no layer is uneven.

    At such a size every layer has an output, and the windows of every strided layer, pooling
    included, touch the same padding at both ends (`LayerGeometry.even`). Layers of stride 1 do not
    count, because no size changes them.

    Args:
      layers: one of

        - rows of an audit, whose padding stays as it was read;
        - tuples ``(kernel, stride, padding[, dilation])`` in order, the padding maybe ``"SAME"``;
        - a function from an input size to the rows of an audit at that size, for networks whose
          padding or arithmetic depends on the size. If the rows at ``around`` predict those at the
          next size, the other sizes are calculated and only the answers are audited again;
          otherwise every size is audited.
      around: the wanted input size, one number for squares or one per axis.
      count: the largest number of sizes to return.
      reach: the largest distance from ``around`` on each axis; ``around - 1`` by default.

    Returns:
      Sizes in the order of their distance from ``around``, the larger of two at the same distance
      first: ``[225, 193, 257]`` for ResNet around 224. If ``around`` itself is even, it comes
      first. Numbers, or tuples if ``around`` is a tuple. Empty if there is no such size.

    Raises:
      ValueError: if the input size of a row does not follow from the rows (`layers_at`); a function
        of the size avoids this. Whatever the function raises at ``around``.

    >>> from kernsym_jax import geometry
    >>> chain = [(7, 2, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)]  # a ResNet's steps
    >>> geometry.even_input_sizes(chain, around=224)
    [225, 193, 257]
    """
    square = not isinstance(around, Sequence)
    wanted = list(around) if isinstance(around, Sequence) else [around]
    axes: list[list[int]] = []
    for axis, middle in enumerate(wanted):

        def sized(size: int, axis: int = axis) -> Any:
            return size if square else (*wanted[:axis], size, *wanted[axis + 1 :])

        sizes = _nearest(layers, sized, middle, None if square else axis, count, reach)
        axes.append(sizes)
    if square:
        return axes[0]

    def distance(sizes: Sequence[int]) -> int:
        return sum(abs(found - size) for found, size in zip(sizes, wanted, strict=True))

    return sorted(itertools.product(*axes), key=distance)[:count]


@dataclasses.dataclass(frozen=True)
class Advice:
    """The result of an audit in four figures.

    Attributes:
      total: number of convolutions and pooling layers.
      strided: number of layers with a stride and a kernel of several taps; no other layer can be
        uneven at some input sizes only.
      uneven: number of strided layers whose windows meet more padding at one end than at the other.
      nearest: the nearest input size in pixels at which no layer is uneven, one number or one per
        axis; ``None`` if there is none within reach or if no layer is uneven.
      runs: whether the network's weights fit its maps at the audited size, as far as that is known.

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> advice = geometry.advise(rows)
    >>> advice.uneven, advice.strided, advice.nearest
    (1, 1, 33)
    >>> print(advice.verdict)
    uneven at 1 of 1 strided layer; 33 is the nearest size where none is
    """

    total: int
    strided: int
    uneven: int
    nearest: int | tuple[int, ...] | None
    runs: bool = True

    @property
    def verdict(self) -> str:
        """One sentence: ``"uneven at 5 of 5 strided layers; 225 is the nearest size …"``."""
        if not self.total:
            return "neither convolutions nor pooling windows"
        layers = f"{self.strided} strided layer{'s' if self.strided > 1 else ''}"
        if not self.strided:
            return "no strided layers: no input size makes padding uneven"
        if not self.uneven and self.runs:
            return f"even at all {layers}" if self.strided > 1 else "even at the one strided layer"
        size = self.nearest
        name = "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
        if not self.runs:
            advised = "no even size nearby" if size is None else f"{name} is the nearest even size"
            return f"the network does not run at this size; {advised}"
        found = f"uneven at {self.uneven} of {layers}"
        if size is None:
            return f"{found}; no size nearby where none is"
        return f"{found}; {name} is the nearest size where none is"


def advise(
    rows: Sequence[LayerGeometry],
    rows_at: Callable[[Any], Sequence[LayerGeometry]] | None = None,
    input_size: int | Sequence[int] | None = None,
    reach: int = 64,
) -> Advice:
    """Counts the uneven layers of a network and finds the nearest input size without any.

    Args:
      rows: rows of the audit.
      rows_at: a function from an input size (one number or one per axis) to the audit of the same
        network at that size. Without it other sizes are calculated from the rows, see
        `even_input_sizes`.
      input_size: the size at which the rows were audited; ``None`` for the input of the first
        layer.
      reach: the largest distance of a better size from the audited one; half of that is the most.

    Returns:
      The counts and the nearest even size.

    Raises:
      ValueError: if there is no ``rows_at`` and the rows do not determine other sizes.

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> geometry.advise(rows).nearest
    33
    """
    strided = [row for row in rows if row.strided]
    uneven = sum(not row.even for row in strided)
    runs, nearest = _misfit(rows) is None, None
    if uneven or (strided and not runs):
        if input_size is None:
            first = next((row for row in rows if -1 in (row.reads or ())), rows[0]).input_size
            input_size = first[0] if len(set(first)) == 1 else first
        # At a fraction of its size, a network may run, but not see what it was trained to see.
        fewest = min(input_size) if isinstance(input_size, Sequence) else input_size
        reach = min(reach, fewest // 2)
        sizes = even_input_sizes(rows_at or rows, input_size, count=1, reach=reach)
        nearest = sizes[0] if sizes else None
    return Advice(len(rows), len(strided), uneven, nearest, runs)


def _nearest(
    layers: Layers,
    sized: Callable[[int], Any],
    middle: int,
    axis: int | None,
    count: int,
    reach: int | None,
) -> list[int]:
    reach = middle - 1 if reach is None else min(reach, middle - 1)
    steps = range(1, reach + 1)
    sizes = [middle, *itertools.chain.from_iterable((middle + d, middle - d) for d in steps)]
    if not callable(layers):
        _check(layers)
        return _first(
            sizes, lambda size: _even(lambda: layers_at(layers, sized(size)), axis), count
        )
    asked = functools.cache(lambda size: layers(sized(size)))
    rows = list(asked(middle))

    def audited(size: int) -> list[LayerGeometry]:
        return _running(asked(size))

    def predicted(size: int) -> bool:
        try:
            return layers_at(rows, sized(size)) == audited(size)
        except _NO_NETWORK:
            return False

    if predicted(middle) and predicted(middle + 1):
        found = _first(sizes, lambda size: _even(lambda: layers_at(rows, sized(size)), axis), count)
        if all(map(predicted, found)):
            return found
    return _first(sizes, lambda size: _even(lambda: audited(size), axis), count)


def _running(rows: Sequence[LayerGeometry]) -> list[LayerGeometry]:
    """Returns the rows of an audit; raises a ``ValueError`` if the network does not run so."""
    misfit = _misfit(rows)
    if misfit is not None:
        raise ValueError(misfit)
    return list(rows)


def _misfit(rows: Sequence[LayerGeometry]) -> str | None:
    """Returns why the network of an audit does not run, or None if nothing tells that."""
    reasons = rows.left_out.values() if isinstance(rows, FileAudit) else ()
    return next((why for why in reasons if why.startswith(MISFIT)), None)


def _first(sizes: Sequence[int], even: Callable[[int], bool], count: int) -> list[int]:
    return list(itertools.islice(filter(even, sizes), count))


def _even(rows: Callable[[], Sequence[LayerGeometry]], axis: int | None) -> bool:
    try:
        layers = rows()
    except _NO_NETWORK:
        return False
    # The drift of a layer of stride 1 is the same at every size.
    return all(
        step == 1 or drift == 0
        for row in layers
        for i, (step, drift) in enumerate(zip(row.stride, row.centre_drift, strict=True))
        if axis is None or i == axis
    )


def _check(layers: Sequence[LayerLike]) -> None:
    """Raises a ``ValueError`` if the layers do not determine their geometry at another size."""
    first: dict[tuple[int, ...], str] = {}
    for number, row in enumerate(layers):
        if not isinstance(row, LayerGeometry):
            if len(row) not in (3, 4):
                raise ValueError(
                    f"layer {number + 1}: got {row!r}, wanted (kernel, stride, padding[, dilation])"
                )
        elif row.reads is None and max(row.input_size) > 1:
            raise ValueError(
                f"{row.layer}: its input size does not follow from the layers before it; audit the "
                "network at the wanted size instead"
            )
        elif -1 in (row.reads or ()):
            first.setdefault(row.input_size, row.layer)
    if len(first) > 1:
        raise ValueError(f"{' and '.join(first.values())} read inputs of different sizes")


def _input_of(
    row: LayerGeometry, done: Sequence[LayerGeometry], size: int | Sequence[int]
) -> tuple[int, ...]:
    if row.reads is None:  # a map of one pixel, made by a global average, keeps its size
        return row.input_size
    whole = tuple(size) if isinstance(size, Sequence) else (size,) * len(row.input_size)
    sizes = {whole if i < 0 else done[i].output_size for i in row.reads}
    if len(sizes) > 1:
        raise ValueError(f"{row.layer}: the maps it reads differ in size, {sorted(sizes)}")
    return sizes.pop()


def _row_at(row: LayerGeometry, input_size: tuple[int, ...]) -> LayerGeometry:
    moved = dataclasses.replace(row, input_size=input_size)
    try:
        output = tuple(axis.output_size for axis in moved.windows)
    except ValueError as error:
        raise ValueError(f"{row.layer}: {error}") from None
    return dataclasses.replace(moved, output_size=output)


def _tuple_at(layer: Sequence[Any], number: int, size: int | Sequence[int]) -> LayerGeometry:
    name = f"layer {number + 1}"
    kernel, stride, padding = layer[:3]
    dilation = layer[3] if len(layer) == 4 else 1
    counts = [
        len(value) for value in (size, kernel, stride, dilation) if isinstance(value, Sequence)
    ]
    axes = max(counts, default=2)

    def spread(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, Sequence) else (value,) * axes

    size, kernel, stride, dilation = map(spread, (size, kernel, stride, dilation))
    try:
        placed = windows(size, kernel, stride, padding, dilation)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return LayerGeometry(
        layer=name,
        kind="conv",
        input_size=size,
        output_size=tuple(axis.output_size for axis in placed),
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=tuple((axis.lo, axis.hi) for axis in placed),
        padding_mode="zero" if any(axis.lo or axis.hi for axis in placed) else "valid",
        upsampling=(1,) * axes,
        reads=(number - 1,),
    )
