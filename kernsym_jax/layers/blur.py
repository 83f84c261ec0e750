"""BlurPool: a binomial filter before subsampling, against aliasing."""

import math

import jax
import numpy as np
from jax import lax

from kernsym_jax.layers.padding import check_map, check_window, pad_map


def binomial(size: int) -> np.ndarray:
    """Returns row ``size - 1`` of Pascal's triangle, scaled to sum 1, float32."""
    row = np.array([math.comb(size - 1, i) for i in range(size)], np.float64)
    return (row / row.sum()).astype(np.float32)


def blur_pool(
    x: jax.Array, size: int, stride: int, padding: str = "reflect", layer: str = "blur_pool"
) -> jax.Array:
    """Blurs each channel and keeps every ``stride``-th pixel.

    Args:
      x: map (batch, height, width, channels).
      size: taps of the binomial filter per axis, from 1 (plain subsampling) to 7.
      stride: step on both axes.
      padding: one of ``PADDINGS``; adds ⌊(size-1)/2⌋ pixels at the near and ⌈(size-1)/2⌉ at the far
        end of each axis.
      layer: name for error messages.

    Returns:
      Map (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels), of the type of ``x``.

    Raises:
      ValueError: if the size is not in 1..7, or the map is empty or too small for the padding.

    Reference: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 3.
    """
    if size not in range(1, 8):
        raise ValueError(f"{layer}: blur size must be 1 to 7, got {size}")
    near, far = (size - 1) // 2, size // 2
    amounts = ((near, far), (near, far))
    check_map((x.shape[1], x.shape[2]), layer)
    check_window((x.shape[1], x.shape[2]), (size, size), (1, 1), amounts, padding, layer)
    x = pad_map(x, amounts, padding)
    taps = binomial(size).astype(x.dtype)
    # Sums of shifted slices, one axis after the other, are much faster than a depthwise convolution
    # on CPUs and as fast elsewhere.
    for axis in (1, 2):
        end = x.shape[axis] - size + 1
        x = sum(lax.slice_in_dim(x, i, i + end, stride, axis) * tap for i, tap in enumerate(taps))
    return x
