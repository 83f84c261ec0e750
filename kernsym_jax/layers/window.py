"""Where the windows of a convolution or a pooling lie on its map."""

from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from kernsym_jax.layers.padding import (
    Amounts,
    Pair,
    check_map,
    check_window,
    layer_padding,
    pad_map,
    pair,
)
from kernsym_jax.layers.partial_conv import window_scale
from kernsym_jax.layers.sbpool import Position, offset_of

_CONSTANT = ("zero", "same", "partial", "valid")
_NONE: Amounts = ((0, 0), (0, 0))


class Windows(NamedTuple):
    """A map made ready for an operation that slides windows over it.

    Attributes:
      x: map (batch, height, width, channels), extended or cropped.
      amounts: what the operation itself has yet to add on each side, as a constant.
      scale: (1, out_h, out_w, 1), the factor of each window under partial convolution, else
        ``None``.
    """

    x: jax.Array
    amounts: Amounts
    scale: jax.Array | np.ndarray | None


def place_windows(
    x: jax.Array,
    kernel: Pair,
    stride: Pair,
    padding: str,
    pad: int | Pair | None,
    dilation: Pair,
    position: Position | None,
    fill: float,
    layer: str,
) -> Windows:
    """Pads a map for one layer and puts the first window where ``position`` says.

    Args:
      x: map (batch, height, width, channels).
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      padding: one of ``PADDINGS``.
      pad: amount per side; ``None`` for the default of ``layer_padding``.
      dilation: vertical and horizontal dilation.
      position: SBPool's choice, or ``None`` for windows from the first padded pixel on.
      fill: the constant of the modes that pad by one.
      layer: name for error messages.

    Returns:
      The map and what is left to do for the operation; the output size does not depend on
      ``position``.

    Raises:
      ValueError: for an empty map, a kernel larger than the padded map, or a padding wider than
        its mode allows.
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
    if padding in _CONSTANT and min(map(min, amounts)) >= 0:
        return Windows(x, amounts, scale)
    return Windows(pad_map(x, amounts, padding, fill), _NONE, scale)


def subsample(
    x: jax.Array, stride: int, position: Position | None = None, layer: str = "subsample"
) -> jax.Array:
    """Keeps every ``stride``-th pixel: a 1×1 window that copies.

    Args:
      x: map (batch, height, width, channels).
      stride: step on both axes.
      position: SBPool's choice, or ``None`` to start at the first pixel.
      layer: name for error messages.

    Returns:
      Map (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels).
    """
    step = (stride, stride)
    windows = place_windows(x, (1, 1), step, "zero", 0, (1, 1), position, 0.0, layer)
    return windows.x[:, ::stride, ::stride]


def crop(x: jax.Array, margin: int | Pair) -> jax.Array:
    """Removes ``margin`` pixels on every side, as ``valid`` layers beside this branch did."""
    rows, columns = pair(margin)
    return x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]


def crop_to_common(maps: list[jax.Array]) -> list[jax.Array]:
    """Crops maps about their centre to the smallest height and width among them."""
    height, width = min(x.shape[1] for x in maps), min(x.shape[2] for x in maps)
    return [
        crop(x, ((x.shape[1] - height) // 2, (x.shape[2] - width) // 2))[:, :height, :width]
        for x in maps
    ]


def _even(amounts: Amounts) -> Amounts:
    """The same on both sides; TensorFlow's odd total is one short of it, which is then uneven."""
    (top, bottom), (left, right) = amounts
    height, width = max(top, bottom), max(left, right)
    return (height, height), (width, width)


def _moved(amounts: Amounts, offset: tuple, uneven: Pair) -> Amounts:
    """The padding that puts the first window at ``offset`` and leaves no row over."""
    (top, bottom), (left, right) = amounts
    return (
        (top - offset[0], bottom - uneven[0] + offset[0]),
        (left - offset[1], right - uneven[1] + offset[1]),
    )


def _from_offset(x: jax.Array | np.ndarray, offset: tuple, uneven: Pair) -> jax.Array:
    """The same for a padded map and a drawn offset, which no shape may depend on."""
    shape = (x.shape[0], x.shape[1] - uneven[0], x.shape[2] - uneven[1], x.shape[3])
    return lax.dynamic_slice(x, (0, offset[0], offset[1], 0), shape)
