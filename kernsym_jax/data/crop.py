"""Windows of images, scaled to one size: random ones to train on, the middle to test on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_TRIES = 10
DRAWS = 2 * _TRIES + 2
"""How many uniform random numbers a random window takes."""

Box = tuple[Any, Any, Any, Any]


def random_box(
    draws: Any, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> Box:
    """A random window of an image.

    The share of the area is uniform, the logarithm of width over height too; of ten such sizes the
    first that fits is taken, and if none does, the largest in the middle with an allowed shape.

    Args:
      draws: (DRAWS,) NumPy or JAX floats, uniform from 0 to 1.
      height: of the image in pixels.
      width: of the image in pixels.
      scale: least and largest share of the area.
      ratio: least and largest width over height.

    Returns:
      The window's top, left, height and width in pixels, as scalars like the draws.

    Reference: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """
    xp = draws.__array_namespace__()
    share, shape = draws[:_TRIES], draws[_TRIES : 2 * _TRIES]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    low, high = (xp.log(xp.asarray(bound, dtype=draws.dtype)) for bound in ratio)
    aspect = xp.exp(low + (high - low) * shape)
    wide, tall = xp.sqrt(area * aspect), xp.sqrt(area / aspect)
    fits = (wide <= width) & (tall <= height)
    first, found = xp.argmax(fits), xp.any(fits)
    allowed = min(max(width / height, ratio[0]), ratio[1])
    tall_box = xp.where(found, tall[first], min(height, width / allowed))
    wide_box = xp.where(found, wide[first], min(width, height * allowed))
    down, right = draws[-2], draws[-1]
    top = xp.where(found, down, 0.5) * (height - tall_box)
    left = xp.where(found, right, 0.5) * (width - wide_box)
    return top, left, tall_box, wide_box


def central_box(height: int, width: int, share: float) -> Box:
    """The square in the middle of an image whose side is a share of the image's shorter side."""
    side = share * min(height, width)
    return (height - side) / 2, (width - side) / 2, side, side


def crop(
    images: jax.Array,
    key: jax.Array,
    size: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    nearest: bool = False,
) -> jax.Array:
    """Cuts a random window out of every image by itself and scales it to a square.

    Args:
      images: (batch, height, width, channels), any dtype.
      key: a JAX random key.
      size: of the square in pixels.
      scale: least and largest share of the area.
      ratio: least and largest width over height.
      nearest: take the nearest pixels and no others, as masks need it.

    Returns:
      (batch, size, size, channels) of the same dtype, interpolated linearly, averaging where a
      window shrinks; whole numbers are rounded. The same key cuts the same windows out of masks.
    """
    batch, height, width, channels = images.shape
    draws = jax.random.uniform(key, (batch, DRAWS), jnp.float32)

    def one(image: jax.Array, drawn: jax.Array) -> jax.Array:
        top, left, tall, wide = random_box(drawn, height, width, scale, ratio)
        zoom = jnp.stack([size / tall, size / wide])
        return jax.image.scale_and_translate(
            image.astype(jnp.float32),
            (size, size, channels),
            (0, 1),
            zoom,
            -jnp.stack([top, left]) * zoom,
            "linear",
        )

    def nearest_one(image: jax.Array, drawn: jax.Array) -> jax.Array:
        top, left, tall, wide = random_box(drawn, height, width, scale, ratio)
        middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        rows = jnp.clip(jnp.floor(top + middles * tall), 0, height - 1).astype(jnp.int32)
        columns = jnp.clip(jnp.floor(left + middles * wide), 0, width - 1).astype(jnp.int32)
        return image[rows][:, columns]

    if nearest:
        return jax.vmap(nearest_one)(images, draws)
    windows = jax.vmap(one)(images, draws)
    if jnp.issubdtype(images.dtype, jnp.integer):
        # Interpolation stays between its neighbours but for rounding errors.
        windows = jnp.clip(jnp.round(windows), 0, jnp.iinfo(images.dtype).max)
    return windows.astype(images.dtype)
