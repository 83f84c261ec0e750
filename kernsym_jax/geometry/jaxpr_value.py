"""A value of a jaxpr during an audit, and the paths of weights that give layers their names."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kernsym_jax.formats.arrays import WEIGHT_LEAVES, layer_name, leaf_name
from kernsym_jax.geometry.axis import Axes, unknown
from kernsym_jax.geometry.network import Network

LARGEST = 4096
"""The largest number of elements of an array that is calculated."""

_BOXES = ("value", "raw_value")


class Leaf(NamedTuple):
    """An array that a function is given: its path, ``"a/b/kernel"``, and number of elements."""

    path: str
    size: int

    @property
    def is_weight(self) -> bool:
        """Whether its own name is a usual name of weights."""
        return leaf_name(self.path) in WEIGHT_LEAVES

    @property
    def layer(self) -> str | None:
        """``"a/b"`` for the weights ``"a/b/kernel"``; ``None`` without any path."""
        return layer_name(self.path) or None


def origin(leaves: Sequence[Leaf | None]) -> Leaf | None:
    """Returns the leaf that names the result of an operation: weights first, then the largest."""
    known = [leaf for leaf in leaves if leaf is not None]
    return max(known, key=lambda leaf: (leaf.is_weight, leaf.size), default=None)


def arguments(fn: Any, args: tuple[Any, ...]) -> tuple[list[Leaf], list[Any], Callable[..., Any]]:
    """Takes the arrays out of a function's arguments, and out of itself if it is a pytree.

    Args:
      fn: function.
      args: its arguments, pytrees.

    Returns:
      The leaves by path, the arrays themselves, and the call as a function of these arrays.
    """
    own = jax.tree_util.tree_flatten_with_path(fn)[0]
    is_tree = bool(own) and own[0][0] != ()
    flat, structure = jax.tree_util.tree_flatten_with_path((fn if is_tree else None, args))
    values = [value for _, value in flat]
    arrays = [
        i for i, value in enumerate(values) if hasattr(value, "shape") and hasattr(value, "dtype")
    ]

    def call(*given: Any) -> Any:
        everything = list(values)
        for i, value in zip(arrays, given, strict=True):
            everything[i] = value
        function, positional = jax.tree_util.tree_unflatten(structure, everything)
        return (function if is_tree else fn)(*positional)

    leaves = []
    for i in arrays:
        # The first key tells the function from its arguments, the second one counts these.
        keys = flat[i][0]
        leaves.append(_leaf(keys[1:] if keys[0].idx == 0 else keys[2:], values[i]))
    return leaves, [values[i] for i in arrays], call


def closed_over(fn: Any) -> dict[int, Leaf]:
    """Returns the arrays in pytrees that a Python function closes over, by identity."""
    found = {}
    for held in _held(fn):
        try:
            leaves = jax.tree_util.tree_flatten_with_path(held)[0]
        except (TypeError, ValueError):  # a dict whose keys have no order, for one
            continue
        for keys, value in leaves:
            if keys and hasattr(value, "shape"):
                found[id(value)] = _leaf(keys, value)
    return found


def _held(fn: Any) -> list[Any]:
    """Returns a function's closure, the object of a method, and a partial's arguments."""
    fn = inspect.unwrap(fn)
    if isinstance(fn, functools.partial):
        return [*fn.args, *fn.keywords.values(), *_held(fn.func)]
    held = [fn.__self__] if inspect.ismethod(fn) else []
    with contextlib.suppress(ValueError):  # an empty cell
        held += [cell.cell_contents for cell in getattr(fn, "__closure__", None) or ()]
    return held


def _leaf(keys: Sequence[Any], array: Any) -> Leaf:
    names = []
    for key in keys:
        found = [getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)]
        names.append(str(found[0] if found else key))
    while names and names[-1] in _BOXES:
        names.pop()
    while len(names) > 1 and names[0] == "params":
        names.pop(0)
    return Leaf("/".join(names), math.prod(array.shape))


class Value(NamedTuple):
    """An array of a jaxpr.

    Attributes:
      axes: one `Axis` per dimension.
      shape: the array's shape.
      depends: whether the array depends on an input of the function.
      leaf: the input or closed-over array that it was made from, or None.
      const: the array itself if it is a small constant (mostly indices), or None.
    """

    axes: Axes
    shape: tuple[int, ...]
    depends: bool
    leaf: Leaf | None = None
    const: np.ndarray | None = None

    def resized(self, shape: tuple[int, ...]) -> "Value":
        """Returns the value with another shape; axes that change their size become unknown."""
        if self.shape == shape:
            return self
        if len(self.shape) != len(shape):
            return Value(unfollowed(shape), shape, self.depends, self.leaf)
        axes = [
            a if a and a.size == size else unknown(size)
            for a, size in zip(self.axes, shape, strict=True)
        ]
        return Value(tuple(axes), shape, self.depends, self.leaf)

    def without_first(self) -> "Value":
        """Returns one of the slices along the first dimension."""
        return Value(self.axes[1:], self.shape[1:], self.depends, self.leaf)

    def stacked(self, length: int) -> "Value":
        """Returns ``length`` such values, stacked along a new first dimension."""
        return Value((unknown(length), *self.axes), (length, *self.shape), self.depends, self.leaf)


def constant(array: Any) -> Value:
    """Returns the value of an array that depends on no input."""
    shape = tuple(np.shape(array))
    return Value((None,) * len(shape), shape, False, None, small_constant(array))


def either(network: Network, values: Sequence[Value]) -> Value:
    """Returns what the results of a branch have in common, whichever alternative runs."""
    dependent = [value for value in values if value.depends]
    leaf = origin([value.leaf for value in values])
    if not dependent:
        return values[0]._replace(leaf=leaf, const=None)
    axes = network.merge([value.axes for value in dependent])
    return Value(axes, values[0].shape, True, leaf)


def unfollowed(shape: Sequence[int]) -> Axes:
    """Returns axes about which nothing is known but their sizes."""
    return tuple(unknown(size) for size in shape)


def small_constant(array: Any) -> np.ndarray | None:
    """Returns a constant as an array, or ``None`` if it is large or of no NumPy type."""
    if isinstance(array, bool | int | float):
        return np.asarray(array)
    if isinstance(array, jax.core.Tracer) or not isinstance(
        array, np.ndarray | np.generic | jax.Array
    ):
        return None
    common = isinstance(array.dtype, np.dtype) and array.dtype.kind in "biuf"
    return np.asarray(array) if common and array.size <= LARGEST else None


def computed(
    name: str, params: Any, inputs: Sequence[np.ndarray | None], shape: tuple[int, ...], dtype: Any
) -> np.ndarray | None:
    """Calculates the result of one equation.

    Args:
      name: name of the primitive.
      params: parameters of the equation.
      inputs: operands; ``None`` for an unknown one.
      shape: shape of the result.
      dtype: dtype of the result.

    Returns:
      The result, or ``None`` if it is unknown.
    """
    if np.prod(shape) > LARGEST or not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        return None
    known = [value for value in inputs if value is not None]
    if len(known) != len(inputs):
        return None
    with np.errstate(all="ignore"):
        result = _result(name, params, known, shape)
        return None if result is None else np.asarray(result).astype(dtype).reshape(shape)


def _result(name: str, params: Any, known: list[np.ndarray], shape: tuple[int, ...]) -> Any:
    if name in _ELEMENTWISE:
        return _ELEMENTWISE[name](*known)
    if name == "iota":
        d = params["dimension"]
        places = np.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
        return np.broadcast_to(places, shape)
    if name == "reshape" and params.get("dimensions") is not None:
        return known[0].transpose(params["dimensions"])
    if name in ("reshape", "squeeze", "convert_element_type"):
        return known[0]
    if name == "broadcast_in_dim":
        dims = params["broadcast_dimensions"]
        sizes = [known[0].shape[dims.index(d)] if d in dims else 1 for d in range(len(shape))]
        return np.broadcast_to(known[0].reshape(sizes), shape)
    if name == "concatenate":
        return np.concatenate(known, params["dimension"])
    if name == "transpose":
        return known[0].transpose(params["permutation"])
    if name == "rev":
        return np.flip(known[0], params["dimensions"])
    if name == "slice":
        steps = params["strides"] or (1,) * len(shape)
        bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return known[0][tuple(slice(*b) for b in bounds)]
    return None


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.logical_and,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "copy": np.asarray,
    "div": lambda x, y: np.divide(x, y) if x.dtype.kind == "f" else np.trunc(np.divide(x, y)),
    "eq": np.equal,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.logical_not,
    "or": np.logical_or,
    "rem": np.fmod,
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    "sign": np.sign,
    "stop_gradient": np.asarray,
    "sub": np.subtract,
}
