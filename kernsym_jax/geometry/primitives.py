"""How the primitives of a jaxpr, other than layers, change the axes of a map."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernsym_jax.geometry import jaxpr_value
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
    reshaped,
    taken,
    unknown,
)
from kernsym_jax.geometry.jaxpr_value import Value, computed, unfollowed
from kernsym_jax.geometry.network import Network

# A handler takes the parameters of an equation, its operands and the shape of its first output. It
# returns the axes of that output, or a list with the axes of every output.
_Handler = Callable[[Network, Any, list[Value], tuple[int, ...]], Axes | list[Axes]]


def apply(network: Network, equation: Any, inputs: list[Value]) -> list[Value]:
    """Applies an equation that neither is a layer nor contains one.

    Args:
      network: records the subsampled maps that the equation reads.
      equation: equation of a jaxpr.
      inputs: one value per operand.

    Returns:
      One value per output.
    """
    name, params = equation.primitive.name, equation.params
    shapes = [tuple(getattr(out.aval, "shape", ())) for out in equation.outvars]
    if not any(value.depends for value in inputs):
        leaf = jaxpr_value.origin([value.leaf for value in inputs])
        known = [value.const for value in inputs]
        return [
            Value(
                (None,) * len(shape),
                shape,
                False,
                leaf,
                computed(name, params, known, shape, getattr(out.aval, "dtype", None)),
            )
            for shape, out in zip(shapes, equation.outvars, strict=True)
        ]
    # The product of two matrices is neither of them.
    leaf = None if name == "dot_general" else jaxpr_value.origin([value.leaf for value in inputs])
    if name in _HANDLERS:
        results = _HANDLERS[name](network, params, inputs, shapes[0])
        axes = results if isinstance(results, list) else [results]
    elif name.startswith(("reduce", "arg")) and ("axes" in params or "dimensions" in params):
        summed = params.get("axes", params.get("dimensions"))
        axes = [_reduced(network, summed, value) for value in inputs[: len(shapes)]]
    elif len(shapes) > 1 and shapes == [value.shape for value in inputs]:
        axes = [value.axes for value in inputs]
    else:
        axes = [_place_by_place(network, inputs, shape) for shape in shapes]
    return [Value(a, shape, True, leaf) for a, shape in zip(axes, shapes, strict=True)]


def _place_by_place(network: Network, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    """Returns the axes of an elementwise operation, or of an unknown one."""
    maps = []
    for value in inputs:
        sizes = list(zip(value.shape, shape, strict=False))
        if value.depends and len(value.shape) == len(shape) and all(n in (1, m) for n, m in sizes):
            # A pixel, row or column is combined with every place: a broadcast.
            maps.append(
                tuple(a if n == m else None for a, (n, m) in zip(value.axes, sizes, strict=True))
            )
    if maps:
        return network.merge(maps)
    for value in inputs:
        network.leave(value.axes)
    return unfollowed(shape)


def _reduced(network: Network, summed: Sequence[int], value: Value) -> Axes:
    if any(a is not None and a.pending for a in (value.axes[d] for d in summed)):
        network.leave(value.axes)
    return tuple(a for d, a in enumerate(value.axes) if d not in summed)


def _stack(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes = network.merge([value.axes for value in inputs if value.depends])
    d = params["axis"]
    return (*axes[:d], unknown(shape[d]), *axes[d:])


def _unstack(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> list[Axes]:
    axes, d = inputs[0].axes, params["axis"]
    return [(*axes[:d], *axes[d + 1 :])] * inputs[0].shape[d]


def _transpose(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    return tuple(inputs[0].axes[d] for d in params["permutation"])


def _squeeze(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    dropped = {d % len(inputs[0].shape) for d in params["dimensions"]}
    return tuple(axis for d, axis in enumerate(inputs[0].axes) if d not in dropped)


def _reshape(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes, old = inputs[0].axes, inputs[0].shape
    if params.get("dimensions") is not None:  # the reshape transposes first
        axes = tuple(axes[d] for d in params["dimensions"])
        old = tuple(old[d] for d in params["dimensions"])
    result = reshaped(axes, old, shape)
    if any(a is not None and a.pending and a not in result for a in axes):
        network.leave(axes)
    return result


def _broadcast(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes: list[Axis | None] = [None] * len(shape)
    for source, d in enumerate(params["broadcast_dimensions"]):
        axis = inputs[0].axes[source]
        if axis is not None and axis.size < shape[d]:
            axis = repeated(axis, shape[d])
        axes[d] = axis
    return tuple(axes)


def _dot_general(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> Axes:
    contracted, batched = params["dimension_numbers"]
    result: list[Axis | None] = [
        inputs[0].axes[d] or inputs[1].axes[e] for d, e in zip(*batched, strict=True)
    ]
    for value, summed, shared in zip(inputs, contracted, batched, strict=True):
        if any(a is not None and a.pending for a in (value.axes[d] for d in summed)):
            network.leave(value.axes)
        free = [d for d in range(len(value.shape)) if d not in (*summed, *shared)]
        result += [value.axes[d] for d in free]
    return tuple(axis or unknown(size) for axis, size in zip(result, shape, strict=True))


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
    inputs = [value for value in inputs if value.shape[d]]  # jnp.pad also adds empty pieces
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
    """Returns the axes of a map written into a canvas; a constant canvas becomes padding."""
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
    """Returns where a part begins on each axis; 0 where this depends on data."""
    given = [0 if value.const is None else int(value.const) for value in values]
    return [min(max(g, 0), n - m) for g, n, m in zip(given, whole, part, strict=True)]


def _rev(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes = network.settle_along(inputs[0].axes, params["dimensions"])
    known = {d: axes[d] for d in params["dimensions"]}
    turned = {
        d: taken(axis, range(axis.size)[::-1]) for d, axis in known.items() if axis is not None
    }
    return changed(axes, turned)


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
    """Returns the given places of an axis; a place out of bounds holds a constant."""
    inside = (places >= 0) & (places < axis.size)
    found = taken(axis, np.clip(places, 0, axis.size - 1))
    if inside.all():
        return found
    return from_index(found.source, np.where(inside, found.index, CONSTANT))


_HANDLERS: dict[str, _Handler] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "scatter": _scatter,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
