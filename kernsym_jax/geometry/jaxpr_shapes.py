"""What the operations of a jaxpr that are no layers do to the axes of a map."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernsym_jax.geometry import weight_path
from kernsym_jax.geometry.axis import (
    CONSTANT,
    OTHER,
    Axes,
    Axis,
    chained,
    cut,
    extend,
    from_index,
    reshaped,
    taken,
    unknown,
)
from kernsym_jax.geometry.jaxpr_constants import computed, small_constant
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.weight_path import Leaf


class Value(NamedTuple):
    """What is known of an array.

    Attributes:
      axes: one per dimension.
      shape: of the array.
      depends: whether it depends on an input of the function.
      leaf: the input or closed-over array that it was made from, if it was.
      const: its numbers, if they are constants and few: indices, mostly.
    """

    axes: Axes
    shape: tuple[int, ...]
    depends: bool
    leaf: Leaf | None = None
    const: np.ndarray | None = None

    def resized(self, shape: tuple[int, ...]) -> "Value":
        """The value seen with another shape of the same rank; what changed size is unknown."""
        if self.shape == shape:
            return self
        if len(self.shape) != len(shape):
            return Value(_unknown(shape), shape, self.depends, self.leaf)
        axes = [
            a if a and a.size == size else unknown(size)
            for a, size in zip(self.axes, shape, strict=True)
        ]
        return Value(tuple(axes), shape, self.depends, self.leaf)

    def without_first(self) -> "Value":
        """One of the slices along the first dimension."""
        return Value(self.axes[1:], self.shape[1:], self.depends, self.leaf)

    def stacked(self, length: int) -> "Value":
        """Such values stacked along a new first dimension."""
        return Value((unknown(length), *self.axes), (length, *self.shape), self.depends, self.leaf)


def constant(array: Any) -> Value:
    """A value that depends on no input."""
    shape = tuple(np.shape(array))
    return Value((None,) * len(shape), shape, False, None, small_constant(array))


def either(network: Network, values: Sequence[Value]) -> Value:
    """What is common to the values of which one is taken."""
    dependent = [value for value in values if value.depends]
    leaf = weight_path.origin([value.leaf for value in values])
    if not dependent:
        return values[0]._replace(leaf=leaf, const=None)
    axes = network.merge([value.axes for value in dependent])
    return Value(axes, values[0].shape, True, leaf)


def apply(network: Network, equation: Any, inputs: list[Value]) -> list[Value]:
    """The outputs of an equation that is no layer and holds none.

    Args:
      network: takes note of subsampled maps on the way.
      equation: of a jaxpr.
      inputs: one per operand.

    Returns:
      One per output.
    """
    name, params = equation.primitive.name, equation.params
    shapes = [tuple(getattr(out.aval, "shape", ())) for out in equation.outvars]
    if not any(value.depends for value in inputs):
        leaf = weight_path.origin([value.leaf for value in inputs])
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
    # A product of two matrices comes from neither.
    leaf = None if name == "dot_general" else weight_path.origin([value.leaf for value in inputs])
    if name in _HANDLERS:
        results = _HANDLERS[name](network, params, inputs, shapes[0])
        axes = results if isinstance(results, list) else [results]
    elif "axes" in params and name.startswith(("reduce_", "arg")):
        axes = [_reduced(network, params, value) for value in inputs[: len(shapes)]]
    elif len(shapes) > 1 and shapes == [value.shape for value in inputs]:
        axes = [value.axes for value in inputs]
    else:
        axes = [_place_by_place(network, inputs, shape) for shape in shapes]
    return [Value(a, shape, True, leaf) for a, shape in zip(axes, shapes, strict=True)]


def _unknown(shape: Sequence[int]) -> Axes:
    return tuple(unknown(size) for size in shape)


def _place_by_place(network: Network, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    """An operation on maps of one shape, or one of which nothing is known."""
    maps = [value.axes for value in inputs if value.depends and value.shape == shape]
    if maps:
        return network.merge(maps)
    for value in inputs:
        network.leave(value.axes)
    return _unknown(shape)


def _settled(network: Network, value: Value, dims: Sequence[int]) -> Axes:
    """The axes of a value, of which ``dims`` are about to be rearranged."""
    axes = value.axes
    pending = any(axis is not None and axis.pending for axis in (axes[d] for d in dims))
    return network.settle(axes) if pending else axes


def _changed(axes: Axes, changes: dict[int, Axis | None]) -> Axes:
    return tuple(changes.get(d, axis) for d, axis in enumerate(axes))


def _reduced(network: Network, params: Any, value: Value) -> Axes:
    if any(a is not None and a.pending for a in (value.axes[d] for d in params["axes"])):
        network.leave(value.axes)
    return tuple(a for d, a in enumerate(value.axes) if d not in params["axes"])


def _pad(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    config = params["padding_config"]
    padded = [d for d, amounts in enumerate(config) if any(amounts)]
    axes = _settled(network, inputs[0], padded)
    fill = OTHER if inputs[1].depends else CONSTANT
    changes: dict[int, Axis | None] = {}
    for d in padded:
        lo, hi, between = config[d]
        axis = axes[d]
        spread = between > 0 and inputs[0].shape[d] > 1
        known = axis is not None and not spread
        changes[d] = extend(axis, int(lo), int(hi), fill) if known else unknown(shape[d])  # type: ignore[arg-type]  # known
    return _changed(axes, changes)


def _concatenate(
    network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]
) -> Axes:
    d = params["dimension"]
    inputs = [value for value in inputs if value.shape[d]]  # jnp.pad adds empty pieces as well
    pieces = [_settled(network, value, [d]) for value in inputs]
    others = [
        _changed(axes, {d: None})
        for axes, value in zip(pieces, inputs, strict=True)
        if value.depends
    ]
    fills = [(value.shape[d], OTHER if value.depends else CONSTANT) for value in inputs]
    return _changed(network.merge(others), {d: chained([axes[d] for axes in pieces], fills)})


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
    axes = _settled(network, value, dims)
    changes: dict[int, Axis | None] = {
        d: cut(axis, starts[d], limits[d], steps[d]) for d in dims if (axis := axes[d]) is not None
    }
    return _changed(axes, changes)


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
    if canvas.depends:
        return canvas.axes
    # A map laid on a canvas of constants is padded by what remains visible of it.
    starts = _starts(inputs[2:], shape, piece.shape)
    dims = [d for d, size in enumerate(shape) if size != piece.shape[d]]
    axes = _settled(network, piece, dims)
    changes: dict[int, Axis | None] = {
        d: extend(axis, starts[d], shape[d] - piece.shape[d] - starts[d])
        for d in dims
        if (axis := axes[d]) is not None
    }
    return _changed(axes, changes)


def _starts(values: Sequence[Value], whole: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where a part begins; at 0 where only the data says."""
    given = [0 if value.const is None else int(value.const) for value in values]
    return [min(max(g, 0), n - m) for g, n, m in zip(given, whole, part, strict=True)]


def _rev(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes = _settled(network, inputs[0], params["dimensions"])
    return _changed(
        axes,
        {
            d: taken(axis, np.arange(axis.size)[::-1])
            for d in params["dimensions"]
            if (axis := axes[d]) is not None
        },
    )


def _transpose(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    return tuple(inputs[0].axes[d] for d in params["permutation"])


def _squeeze(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    dropped = {d % len(inputs[0].shape) for d in params["dimensions"]}
    return tuple(axis for d, axis in enumerate(inputs[0].axes) if d not in dropped)


def _reshape(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes = reshaped(inputs[0].axes, inputs[0].shape, shape)
    if any(a is not None and a.pending and a not in axes for a in inputs[0].axes):
        network.leave(inputs[0].axes)
    return axes


def _broadcast(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    axes: list[Axis | None] = [None] * len(shape)
    for source, d in enumerate(params["broadcast_dimensions"]):
        axis = inputs[0].axes[source]
        if axis is not None and axis.size < shape[d]:
            pending = axis.pending
            axis = unknown(shape[d]) if pending else taken(axis, np.zeros(shape[d], int))
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


def _gather(network: Network, params: Any, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    value, indices = inputs[:2]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    axes = _settled(network, value, numbers.start_index_map)
    result = list(_unknown(shape))
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
    index = np.asarray(axis.index)[np.clip(places, 0, axis.size - 1)]
    inside = (places >= 0) & (places < axis.size)
    return from_index(axis.source, np.where(inside, index, CONSTANT))


_Handler = Callable[[Network, Any, list[Value], tuple[int, ...]], Axes | list[Axes]]

_HANDLERS: dict[str, _Handler] = {
    "pad": _pad,
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "rev": _rev,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot_general,
    "gather": _gather,
}
