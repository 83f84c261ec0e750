"""Windows on a map: where convolutions and poolings place them, SBPool included, and pooling."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernsym_jax import geometry
from kernsym_jax.layers.padding import (
    Amounts,
    Pair,
    check_map,
    check_padding,
    check_window,
    layer_padding,
    module_path,
    pad_map,
    pair,
    window_scale,
)

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


_CONSTANT = ("zero", "same", "partial", "valid")
_NONE: Amounts = ((0, 0), (0, 0))


class Windows(NamedTuple):
    """A map that is ready for an operation with sliding windows.

    Attributes:
      x: map (batch, height, width, channels), extended or cropped.
      amounts: constant padding that the operation itself has to add on each side.
      scale: factor of each window under partial convolution, (1, out_h, out_w, 1), else ``None``.
    """

    x: jax.Array
    amounts: Amounts
    scale: jax.Array | np.ndarray | None


def place_windows(
    x: jax.Array,
    *,
    kernel: Pair,
    stride: Pair,
    padding: str,
    pad: int | Pair | None,
    dilation: Pair,
    position: Position | None,
    fill: float,
    layer: str,
) -> Windows:
    """Pads a map for one layer and places the first window according to ``position``.

    Args:
      x: map (batch, height, width, channels).
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      padding: one of ``PADDINGS``.
      pad: amount per side; ``None`` for the default of ``layer_padding``.
      dilation: vertical and horizontal dilation.
      position: SBPool's choice, or ``None`` to start at the first padded pixel.
      fill: value of constant padding.
      layer: name for error messages.

    Returns:
      The map and what the operation has to add. The output size is the same for every
      ``position``.

    Raises:
      ValueError: if the map is empty, the kernel is larger than the padded map, or the padding is
        too wide for its mode.
    """
    size = (x.shape[1], x.shape[2])
    check_map(size, layer)
    amounts = layer_padding(size, kernel, stride, padding, pad, dilation)
    check_window(size, kernel, dilation, amounts, padding, layer)
    if position is not None and max(stride) > 1:
        amounts = _even(amounts)
        offset, uneven = offset_of(position, size, kernel, stride, amounts, dilation)
        if not all(isinstance(r, int) for r in offset):
            drawn = None
            if padding == "partial":
                every = window_scale(size, kernel, amounts, dilation)
                drawn = _from_offset(every, offset, uneven)[:, :: stride[0], :: stride[1]]
            x = _from_offset(pad_map(x, amounts, padding, fill), offset, uneven)
            return Windows(x, _NONE, drawn)
        amounts = _moved(amounts, offset, uneven)
    scale = window_scale(size, kernel, amounts, dilation, stride) if padding == "partial" else None
    crops = any(amount < 0 for side in amounts for amount in side)
    if padding in _CONSTANT and not crops:
        return Windows(x, amounts, scale)
    return Windows(pad_map(x, amounts, padding, fill), _NONE, scale)


def subsample(
    x: jax.Array, stride: int, position: Position | None = None, layer: str = "subsample"
) -> jax.Array:
    """Keeps every ``stride``-th pixel, as a 1×1 convolution with that stride does.

    Args:
      x: map (batch, height, width, channels).
      stride: step on both axes.
      position: SBPool's choice, or ``None`` to start at the first pixel.
      layer: name for error messages.

    Returns:
      Map (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels).
    """
    step = (stride, stride)
    windows = place_windows(
        x,
        kernel=(1, 1),
        stride=step,
        padding="zero",
        pad=0,
        dilation=(1, 1),
        position=position,
        fill=0.0,
        layer=layer,
    )
    return windows.x[:, ::stride, ::stride]


def crop(x: jax.Array, margin: int | Pair) -> jax.Array:
    """Removes ``margin`` pixels on every side, as ``valid`` layers in a parallel branch do."""
    rows, columns = pair(margin)
    return x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]


def crop_to_common(maps: list[jax.Array]) -> list[jax.Array]:
    """Crops maps around their centres to the smallest height and width among them."""
    height, width = min(x.shape[1] for x in maps), min(x.shape[2] for x in maps)
    return [
        crop(x, ((x.shape[1] - height) // 2, (x.shape[2] - width) // 2))[:, :height, :width]
        for x in maps
    ]


def _even(amounts: Amounts) -> Amounts:
    """Returns the larger amount of each axis for both sides; ``same`` may pad them unequally."""
    (top, bottom), (left, right) = amounts
    height, width = max(top, bottom), max(left, right)
    return (height, height), (width, width)


def _moved(amounts: Amounts, offset: tuple, uneven: Pair) -> Amounts:
    """Returns the padding with which windows start at ``offset`` and cover every row."""
    (top, bottom), (left, right) = amounts
    return (
        (top - offset[0], bottom - uneven[0] + offset[0]),
        (left - offset[1], right - uneven[1] + offset[1]),
    )


def _from_offset(x: jax.Array | np.ndarray, offset: tuple, uneven: Pair) -> jax.Array:
    """Crops a padded map so that windows start at ``offset``, which may be a traced value."""
    shape = (x.shape[0], x.shape[1] - uneven[0], x.shape[2] - uneven[1], x.shape[3])
    return lax.dynamic_slice(x, (0, offset[0], offset[1], 0), shape)


class MaxPool(nn.Module):
    """Takes the largest value of each window; constant padding is minus infinity.

    Attributes:
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``.
      pad: rows and columns added per side; ``None`` for ``(k - 1) // 2``.
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
) -> Windows:
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
    windows: Windows, start: float, operation: Any, kernel: Pair, stride: Pair
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
