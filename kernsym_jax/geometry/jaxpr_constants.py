"""Small constant arrays of a jaxpr, such as the indices of a ``take``, worked out with NumPy."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

LARGEST = 4096
"""Elements of the largest array that is worked out."""

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


def small_constant(array: Any) -> np.ndarray | None:
    """The numbers of a constant, or ``None`` for a large one or one of no common type."""
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
    """Works out one equation.

    Args:
      name: of the primitive.
      params: of the equation.
      inputs: operands; ``None`` for one that is not known.
      shape: of the result.
      dtype: of the result.

    Returns:
      The result, ``None`` where it is not known.
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
