"""What the operations of a jaxpr that are no layers do to the axes of a map."""

from collections.abc import Sequence
from typing import Any

from kernsym_jax.geometry import jaxpr_indexing, weight_path
from kernsym_jax.geometry.axis import (
    Axes,
    Axis,
    repeated,
    unknown,
)
from kernsym_jax.geometry.jaxpr_constants import computed
from kernsym_jax.geometry.jaxpr_value import Handler, Value, unfollowed
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.reshaping import reshaped


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
    elif name.startswith(("reduce", "arg")) and ("axes" in params or "dimensions" in params):
        summed = params.get("axes", params.get("dimensions"))
        axes = [_reduced(network, summed, value) for value in inputs[: len(shapes)]]
    elif len(shapes) > 1 and shapes == [value.shape for value in inputs]:
        axes = [value.axes for value in inputs]
    else:
        axes = [_place_by_place(network, inputs, shape) for shape in shapes]
    return [Value(a, shape, True, leaf) for a, shape in zip(axes, shapes, strict=True)]


def _place_by_place(network: Network, inputs: list[Value], shape: tuple[int, ...]) -> Axes:
    """An operation on maps of one shape, or one of which nothing is known."""
    maps = []
    for value in inputs:
        sizes = list(zip(value.shape, shape, strict=False))
        if value.depends and len(value.shape) == len(shape) and all(n in (1, m) for n, m in sizes):
            # One pixel, row or column is the same for every place that it is combined with.
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
    if params.get("dimensions") is not None:  # transposed first
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


_HANDLERS: dict[str, Handler] = {
    **jaxpr_indexing.HANDLERS,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot_general,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}
