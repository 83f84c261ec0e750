"""What the operations of a jaxpr that pick and place do to the axes of a map: slices, pads, …"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.geometry.axis import (
    CONSTANT,
    OTHER,
    Axes,
    Axis,
    chained,
    changed,
    cut,
    extend,
    from_index,
    repeated,
    taken,
    unknown,
)
from kernsym_jax.geometry.jaxpr_value import Handler, Value, unfollowed
from kernsym_jax.geometry.network import Network


def _pad(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    config = params["padding_config"]
    padded = [d for d, amounts in enumerate(config) if any(amounts)]
    axes = network.settle_along(inputs[0].axes, padded)
    fill = OTHER if inputs[1].depends else CONSTANT
    changes: dict[int, Axis | None] = {}
    for d in padded:
        lo, hi, between = config[d]
        axis = axes[d]
        spread = between > 0 and inputs[0].shape[d] > 1
        known = axis is not None and not spread
        changes[d] = extend(axis, int(lo), int(hi), fill) if known else unknown(shape[d])  # type: ignore[arg-type]  # known
    return changed(axes, changes)


def _concatenate(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> Axes:
    d = params["dimension"]
    inputs = [value for value in inputs if value.shape[d]]  # jnp.pad adds empty pieces as well
    pieces = [network.settle_along(value.axes, [d]) for value in inputs]
    others = [
        changed(axes, {d: None})
        for axes, value in zip(pieces, inputs, strict=True)
        if value.depends
    ]
    fills = [(value.shape[d], OTHER if value.depends else CONSTANT) for value in inputs]
    return changed(network.merge(others), {d: chained([axes[d] for axes in pieces], fills)})


def _slice(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(shape)
    return _sliced(network, inputs[0], starts, limits, steps)


def _sliced(
    network: Network,
    value: Value,
    starts: Sequence[int],
    limits: Sequence[int],
    steps: Sequence[int],
) -> Axes:
    ranges = [range(*bounds) for bounds in zip(starts, limits, steps, strict=True)]
    dims = [d for d, places in enumerate(ranges) if places != range(value.shape[d])]
    axes = network.settle_along(value.axes, dims)
    changes: dict[int, Axis | None] = {
        d: cut(axis, starts[d], limits[d], steps[d]) for d in dims if (axis := axes[d]) is not None
    }
    return changed(axes, changes)


def _split(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> list[Axes]:
    value, d = inputs[0], params["axis"]
    ends = np.cumsum(params["sizes"])
    results = []
    for size, end in zip(params["sizes"], ends, strict=True):
        starts, limits = [0] * len(value.shape), list(value.shape)
        starts[d], limits[d] = int(end - size), int(end)
        results.append(_sliced(network, value, starts, limits, [1] * len(limits)))
    return results


def _dynamic_slice(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> Axes:
    starts = _starts(inputs[1:], inputs[0].shape, shape)
    limits = [start + size for start, size in zip(starts, shape, strict=True)]
    return _sliced(network, inputs[0], starts, limits, [1] * len(shape))


def _dynamic_update_slice(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> Axes:
    canvas, piece = inputs[:2]
    return _laid(network, canvas, piece, _starts(inputs[2:], shape, piece.shape))


def _scatter(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    canvas, places, piece = inputs
    numbers = params["dimension_numbers"]
    if len(piece.shape) != len(shape) or len(numbers.update_window_dims) != len(shape):
        return canvas.axes if canvas.depends else unfollowed(shape)
    starts = [0] * len(shape)
    given = [0] * len(shape) if places.const is None else places.const.reshape(-1).tolist()
    for d, start in zip(numbers.scatter_dims_to_operand_dims, given, strict=False):
        starts[d] = start
    return _laid(network, canvas, piece, starts)


def _laid(network: Network, canvas: Value, piece: Value, starts: Sequence[int]) -> Axes:
    """A map laid on a canvas: on one of constants, what stays visible of it is padding."""
    if canvas.depends:
        return canvas.axes
    shape = canvas.shape
    dims = [d for d, size in enumerate(shape) if size != piece.shape[d]]
    axes = network.settle_along(piece.axes, dims)
    changes: dict[int, Axis | None] = {
        d: extend(axis, starts[d], shape[d] - piece.shape[d] - starts[d])
        for d in dims
        if (axis := axes[d]) is not None
    }
    return changed(axes, changes)


def _starts(values: Sequence[Value], whole: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where a part begins; at 0 where only the data says."""
    given = [0 if value.const is None else int(value.const) for value in values]
    return [min(max(g, 0), n - m) for g, n, m in zip(given, whole, part, strict=True)]


def _rev(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes = network.settle_along(inputs[0].axes, params["dimensions"])
    return changed(
        axes,
        {
            d: taken(axis, range(axis.size)[::-1])
            for d in params["dimensions"]
            if (axis := axes[d]) is not None
        },
    )


def _tile(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    tiled = [d for d, times in enumerate(params["reps"]) if times > 1]
    axes = network.settle_along(inputs[0].axes, tiled)
    changes: dict[int, Axis | None] = {
        d: repeated(axis, times=params["reps"][d]) for d in tiled if (axis := axes[d]) is not None
    }
    return changed(axes, changes)


def _gather(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    value, indices = inputs[:2]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    axes = network.settle_along(value.axes, numbers.start_index_map)
    result = list(unfollowed(shape))
    kept = [d for d in range(len(value.shape)) if d not in gone]
    for d, out in zip(kept, numbers.offset_dims, strict=True):
        if sizes[d] == value.shape[d]:
            result[out] = axes[d]
    picked = [out for out in range(len(shape)) if out not in numbers.offset_dims]
    if (
        len(picked) == 1
        and numbers.start_index_map == numbers.collapsed_slice_dims
        and len(gone) == 1
    ):
        axis, places = axes[gone[0]], indices.const
        if axis is not None and places is not None:
            result[picked[0]] = _picked(axis, places.reshape(-1))
    return tuple(result)


def _picked(axis: Axis, places: np.ndarray) -> Axis:
    """The given places of an axis; what is out of bounds is filled with a constant."""
    inside = (places >= 0) & (places < axis.size)
    found = taken(axis, np.clip(places, 0, axis.size - 1))
    if inside.all():
        return found
    return from_index(found.source, np.where(inside, found.index, CONSTANT))


HANDLERS: dict[str, Handler] = {
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "pad": _pad,
    "rev": _rev,
    "scatter": _scatter,
    "slice": _slice,
    "split": _split,
    "tile": _tile,
}
"""By the name of the primitive."""
