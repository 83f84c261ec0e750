"""Which input sizes let a network apply its padding evenly."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from kernsym_jax.geometry.arithmetic import windows
from kernsym_jax.geometry.layer import LayerGeometry

LayerLike = LayerGeometry | Sequence[Any]
"""A row of an audit, or ``(kernel, stride, padding[, dilation])``, ints or a tuple per axis."""

# What an audit raises where some map is empty, or where shapes do not fit, at a size.
_NO_NETWORK = (ValueError, TypeError)

Layers = Sequence[LayerLike] | Callable[[Any], Sequence[LayerGeometry]]


def layers_at(
    layers: Sequence[LayerLike], size: int | Sequence[int] | None = None
) -> list[LayerGeometry]:
    """Works out the geometry of a network's layers for another size of its input.

    Args:
      layers: rows of an audit, whose padding stays as it was read; or tuples
        ``(kernel, stride, padding[, dilation])`` of layers that follow one another, whose padding
        may be ``"SAME"`` and is worked out anew.
      size: pixels of the network's input, the same on every axis or one per axis; ``None`` for the
        size that the rows were audited at.

    Returns:
      A row per layer.

    Raises:
      ValueError: naming the layer whose map would be empty, whose kernel would not fit, or whose
        input size does not follow from the rows; for tuples without a size.
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

    A size counts where the padding that windows touch is the same at both ends of every layer,
    pooling included (`LayerGeometry.even`), and every layer has an output. Layers of stride 1 are
    left out: no size changes them.

    Args:
      layers: what to judge; one of

        - rows of an audit (any branching), their padding taken as it was read;
        - tuples ``(kernel, stride, padding[, dilation])`` in order, the padding maybe ``"SAME"``;
        - a function from an input size to the rows of an audit at that size, for networks whose
          padding or arithmetic depends on the size. Where the rows at ``around`` and one more
          foretell each other, the rest is calculated and only the answers are audited again;
          otherwise every size is audited.
      around: the wanted input size, one number for squares or one per axis.
      count: how many sizes to return at most.
      reach: how far from ``around`` to look on each axis; ``around`` less one by default.

    Returns:
      Sizes in the order of their distance from ``around``, which comes first if it is even itself;
      of two at the same distance the larger first: ``[225, 193, 257]`` for ResNet around 224.
      Numbers, or tuples where ``around`` is one. Empty where there is none within reach.

    Raises:
      ValueError: where a row's input size does not follow from the rows (`layers_at`); a function
        of the size takes such networks too. Whatever the function raises at ``around``.
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
    audited = functools.cache(lambda size: list(layers(sized(size))))
    rows = audited(middle)

    def foretold(size: int) -> bool:
        try:
            return layers_at(rows, sized(size)) == audited(size)
        except _NO_NETWORK:
            return False

    if foretold(middle) and foretold(middle + 1):
        found = _first(sizes, lambda size: _even(lambda: layers_at(rows, sized(size)), axis), count)
        if all(map(foretold, found)):
            return found
    return _first(sizes, lambda size: _even(lambda: audited(size), axis), count)


def _first(sizes: Sequence[int], even: Callable[[int], bool], count: int) -> list[int]:
    return list(itertools.islice(filter(even, sizes), count))


def _even(rows: Callable[[], Sequence[LayerGeometry]], axis: int | None) -> bool:
    try:
        layers = rows()
    except _NO_NETWORK:
        return False
    # A layer of stride 1 is the same at every size, centred or not.
    return all(
        step == 1 or drift == 0
        for row in layers
        for i, (step, drift) in enumerate(zip(row.stride, row.centre_drift, strict=True))
        if axis is None or i == axis
    )


def _check(layers: Sequence[LayerLike]) -> None:
    """Raises a ``ValueError`` for layers that do not say enough to work out another size."""
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
    if row.reads is None:  # what has become one pixel, by a global average, stays one
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
