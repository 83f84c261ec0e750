"""The values that an audit follows through a jaxpr, and NumPy arithmetic for small constant ones.

The arithmetic is needed for index arrays, such as those of ``jnp.take``: they decide which pixel
lies where, and a jaxpr often computes them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kernsym_jax.geometry import weight_path
from kernsym_jax.geometry.axis import Axes, unknown
from kernsym_jax.geometry.network import Network
from kernsym_jax.geometry.weight_path import Leaf

LARGEST = 4096
"""The largest number of elements of an array that is calculated."""


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
    """Returns what is known about the result of a branch: what its alternatives have in common."""
    dependent = [value for value in values if value.depends]
    leaf = weight_path.origin([value.leaf for value in values])
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
