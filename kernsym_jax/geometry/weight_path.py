"""Names of layers: the paths of weights in the arguments of a function."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from kernsym_jax.formats.arrays import WEIGHT_LEAVES, layer_name, leaf_name

_BOXES = ("value", "raw_value")


class Leaf(NamedTuple):
    """An array that a function is given: its path, ``"a/b/kernel"``, and number of elements."""

    path: str
    size: int

    @property
    def is_weight(self) -> bool:
        """Whether its own name is one that weights go by."""
        return leaf_name(self.path) in WEIGHT_LEAVES

    @property
    def layer(self) -> str | None:
        """``"a/b"`` for the weights ``"a/b/kernel"``; ``None`` without any path."""
        return layer_name(self.path) or None


def origin(leaves: Sequence[Leaf | None]) -> Leaf | None:
    """The leaf that an operation on several comes from: weights first, then the largest."""
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
    """The arrays in pytrees that a Python function brings along, by identity."""
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
    """What a function brings along: its closure, the object of a method, a partial's arguments."""
    fn = inspect.unwrap(fn)
    if isinstance(fn, functools.partial):
        return [*fn.args, *fn.keywords.values(), *_held(fn.func)]
    held = [fn.__self__] if inspect.ismethod(fn) else []
    with contextlib.suppress(ValueError):  # a cell that is not filled yet
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
