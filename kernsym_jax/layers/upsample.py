"""Upsampling by linear interpolation, aligned with the pixels that downsampling has kept."""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from kernsym_jax.layers.downsample import mix
from kernsym_jax.layers.padding import Pair, check_map, pad_map


def upsample(
    x: jax.Array,
    size: Pair,
    *,
    stride: int = 2,
    phases: jax.Array | None = None,
    first: float = 0.0,
    padding: str = "zero",
    layer: str = "upsample",
) -> jax.Array:
    """Enlarges a map bilinearly; its pixels end up ``stride`` pixels apart.

    Without ``phases`` the map lies in the middle of the result, so a flipped map gives a flipped
    result. With them pixel 0 lies where the kept polyphase component began, so downsampling by APS
    or LPS followed by this upsampling commutes with circular shifts.

    Args:
      x: map (batch, height, width, channels).
      size: height and width of the result.
      stride: the step on both axes.
      phases: weights (batch, stride**2) of the polyphase components, as ``Downsample`` returns
        them; the result is the mixture of those of every component.
      first: position of component 0, in pixels from the middle of the first pixel of the result: 0
        after a convolution, 1/2 after a 2×2 pooling.
      padding: padding of the network; ``circular`` wraps around, every other mode repeats the
        border.
      layer: name for error messages.

    Returns:
      Map (batch, *size, channels), of the type of ``x``.

    Raises:
      ValueError: if the map is empty.

    Reference: Rojas-Gomez et al., "Learnable Polyphase Sampling", NeurIPS 2022, section 4.3, for
      the way up by phase.
    """
    height, width = x.shape[1:3]
    check_map((height, width), layer)
    beyond = "circular" if padding == "circular" else "replicate"
    if phases is None:
        rows, columns = (
            (wanted - 1 - stride * (given - 1)) / 2
            for wanted, given in zip(size, (height, width), strict=True)
        )
        return _spread(
            _spread(x, 1, size[0], stride, rows, beyond), 2, size[1], stride, columns, beyond
        )
    taller = [_spread(x, 1, size[0], stride, first + i, beyond) for i in range(stride)]
    return mix(
        [
            _spread(tall, 2, size[1], stride, first + j, beyond)
            for tall, j in itertools.product(taller, range(stride))
        ],
        phases,
    )


def _spread(
    x: jax.Array, axis: int, size: int, stride: int, first: float, padding: str
) -> jax.Array:
    """Moves pixel i of an axis to ``first + stride * i`` of ``size`` and interpolates linearly."""
    # Every stride-th pixel of the result divides the distance between its neighbours in the same
    # ratio, so two slices make it. A gather would have a slow scatter as its gradient.
    count = -(-size // stride)
    places = [(phase - first) / stride for phase in range(stride)]
    lows = [math.floor(place) for place in places]
    near, far = max(0, -min(lows)), max(0, max(lows) + 1 + count - x.shape[axis])
    amounts = ((near, far), (0, 0)) if axis == 1 else ((0, 0), (near, far))
    x = pad_map(x, amounts, padding)

    def between(low: int, share: float) -> jax.Array:
        start = low + near
        pixels = lax.slice_in_dim(x, start, start + count, axis=axis)
        if share == 0:
            return pixels
        after = lax.slice_in_dim(x, start + 1, start + 1 + count, axis=axis)
        return pixels * (1 - share) + after * share

    parts = [between(low, place - low) for low, place in zip(lows, places, strict=True)]
    joined = jnp.stack(parts, axis + 1)
    shape = (*x.shape[:axis], count * stride, *x.shape[axis + 1 :])
    return lax.slice_in_dim(joined.reshape(shape), 0, size, axis=axis)
