"""What is known of an array while a jaxpr is followed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernsym_jax.geometry import weight_path
from kernsym_jax.geometry.axis import Axes, unknown
from kernsym_jax.geometry.jaxpr_constants import small_constant
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
            return Value(unfollowed(shape), shape, self.depends, self.leaf)
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


Handler = Callable[[Network, Any, list[Value], tuple[int, ...]], Axes | list[Axes]]
"""From the parameters of an equation, its operands and the shape of its first output to the axes of
its output, or a list of those of every output."""


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


def unfollowed(shape: Sequence[int]) -> Axes:
    """Axes of which nothing is known."""
    return tuple(unknown(size) for size in shape)
