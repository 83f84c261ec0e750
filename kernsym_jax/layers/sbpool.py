"""SBPool: windows shift so that both ends of an axis share the rows that uneven padding skips."""

import jax
import jax.numpy as jnp

from kernsym_jax import geometry
from kernsym_jax.layers.padding import Amounts, Pair

Position = tuple[float | jax.Array, float | jax.Array]


def corner(index: int) -> Position:
    """Returns the position of the windows of a strided layer in evaluation.

    Args:
      index: the strided layer's number in forward order, from 0.

    Returns:
      ``(0, 0), (1, 0), (0, 1), (1, 1)`` in turn: 0 skips rows at the far end of the axis, 1 at the
      near end. The corners cycle, so that the drifts of successive layers cancel.

    Reference: Alsallakh et al., "Mind the Pool", ICLR 2023.
    """
    return float(index % 2), float(index // 2 % 2)


def random_position(key: jax.Array) -> Position:
    """Returns two random numbers in [0, 1); layers that share them have the same offset."""
    vertical, horizontal = jax.random.uniform(key, (2,))
    return vertical, horizontal


def offset_of(
    position: Position, size: Pair, kernel: Pair, stride: Pair, amounts: Amounts, dilation: Pair
) -> tuple[tuple, Pair]:
    """Returns the offset of the first window for a position in [0, 1].

    Args:
      position: vertical and horizontal; floats give ints, traced scalars give traced int32.
      size: height and width of the map.
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      amounts: ``((top, bottom), (left, right))``, equal on both sides of an axis.
      dilation: vertical and horizontal dilation.

    Returns:
      ``((r_h, r_w), (u_h, u_w))``: the offset r and the uneven padding u. A uniform position gives
      a uniform offset on 0..u.
    """
    uneven = tuple(
        geometry.uneven_padding(size[i], kernel[i], stride[i], amounts[i][0], dilation[i])
        for i in (0, 1)
    )

    def offset(place: float | jax.Array, surplus: int) -> int | jax.Array:
        if surplus == 0:
            return 0
        if isinstance(place, float):
            return min(int(place * (surplus + 1)), surplus)
        return jnp.minimum((place * (surplus + 1)).astype(jnp.int32), surplus)

    offsets = tuple(offset(place, u) for place, u in zip(position, uneven, strict=True))
    return offsets, (uneven[0], uneven[1])
