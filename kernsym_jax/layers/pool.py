"""Pooling of the windows of a map, with every padding mode, and onto a grid of fixed size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernsym_jax.layers.padding import (
    Pair,
    Position,
    WindowedMap,
    check_padding,
    module_path,
    pair,
    place_windows,
)


class MaxPool(nn.Module):
    """Takes the largest value of each window; constant padding is minus infinity.

    Attributes:
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``.
      pad: rows and columns added per side; ``None`` for ``(k - 1) // 2``.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> layers.MaxPool(2, stride=2).apply({}, x)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """

    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Pools a map (batch, height, width, channels); ``position`` as in ``Conv``."""
        windows = _windows(self, x, position, fill=-np.inf)
        return _reduce(windows, -np.inf, lax.max, pair(self.kernel_size), pair(self.stride))


class AvgPool(nn.Module):
    """Averages each window, padding included except under ``padding="partial"``.

    Attributes:
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``; ``partial`` averages over the pixels of the image only.
      pad: rows and columns added per side; ``None`` for ``(k - 1) // 2``.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.full((1, 3, 4, 1), 9.0)
    >>> layers.AvgPool(3).apply({}, x)[0, 0, :, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    >>> layers.AvgPool(3, padding="partial").apply({}, x)[0, 0, :, 0].tolist()
    [9.0, 9.0, 9.0, 9.0]
    """

    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Pools a map (batch, height, width, channels); ``position`` as in ``Conv``."""
        kernel = pair(self.kernel_size)
        windows = _windows(self, x, position, fill=0.0)
        total = _reduce(windows, 0.0, lax.add, kernel, pair(self.stride))
        mean = total / np.asarray(kernel[0] * kernel[1], total.dtype)
        if windows.scale is None:
            return mean
        return mean * jnp.asarray(windows.scale, mean.dtype)


def adaptive_average_pool(x: jax.Array, size: int | Pair) -> jax.Array:
    """Averages a map onto a grid of fixed size.

    Cell i of n along an axis of h pixels averages rows ⌊i·h/n⌋ to ⌈(i+1)·h/n⌉ - 1, as PyTorch's
    ``AdaptiveAvgPool2d`` does; cells overlap where n does not divide h.

    Args:
      x: map (batch, height, width, channels).
      size: height and width of the grid, or one number for both.

    Returns:
      Map (batch, *size, channels), of the type of ``x``; averages are taken in float32.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    >>> layers.adaptive_average_pool(x, (1, 2)).ravel().tolist()
    [1.0, 3.0]
    """
    y = x.astype(jnp.float32)
    for axis, cells in zip((1, 2), pair(size), strict=True):
        length = y.shape[axis]
        if length == 0:
            raise ValueError(f"adaptive_average_pool: the input map is empty, shape {x.shape}")
        if length % cells == 0:
            shape = (*y.shape[:axis], cells, length // cells, *y.shape[axis + 1 :])
            y = y.reshape(shape).mean(axis + 1)
        else:
            means = [
                lax.slice_in_dim(
                    y, i * length // cells, -(-(i + 1) * length // cells), axis=axis
                ).mean(axis, keepdims=True)
                for i in range(cells)
            ]
            y = jnp.concatenate(means, axis)
    return y.astype(x.dtype)


def _windows(
    pool: MaxPool | AvgPool, x: jax.Array, position: Position | None, fill: float
) -> WindowedMap:
    layer = module_path(pool)
    check_padding(pool.padding, layer)
    kernel, stride = pair(pool.kernel_size), pair(pool.stride)
    return place_windows(
        x,
        kernel=kernel,
        stride=stride,
        padding=pool.padding,
        pad=pool.pad,
        dilation=(1, 1),
        position=position,
        fill=fill,
        layer=layer,
    )


def _reduce(
    windows: WindowedMap, start: float, operation: Any, kernel: Pair, stride: Pair
) -> jax.Array:
    """Reduces every window by ``operation``; the remaining padding has the value ``start``."""
    return lax.reduce_window(
        windows.x,
        np.asarray(start, windows.x.dtype),
        operation,
        (1, *kernel, 1),
        (1, *stride, 1),
        ((0, 0), *windows.amounts, (0, 0)),
    )
