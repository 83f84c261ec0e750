"""Random variation of training images, and their normalisation, inside the jitted step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

FLIPS = ("none", "horizontal", "vertical", "d4")


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied; static, so that a step is compiled for it.

    Attributes:
      shift: largest shift in pixels, per axis and image; what enters is black.
      flip: ``none``, ``horizontal``, ``vertical``, each applied to half of the images, or ``d4``,
        one of the eight symmetries of the square per image.

    Raises:
      ValueError: for a negative shift or an unknown flip.
    """

    shift: int = 0
    flip: str = "none"

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"the shift is a number of pixels ≥ 0, got {self.shift}")
        if self.flip not in FLIPS:
            raise ValueError(f"unknown flip {self.flip!r}; wanted one of {', '.join(FLIPS)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Augment":
        """What the keys under ``config.data`` of a resolved config ask for."""
        return cls(shift=config["shift"], flip=config["flip"])


def augment(images: jax.Array, key: jax.Array, how: Augment) -> jax.Array:
    """Shifts and flips every image by itself.

    Args:
      images: (batch, height, width, channels), any dtype.
      key: a JAX random key.
      how: the kind and range of variation.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if a shift could move an image out of sight, or ``d4`` meets images that are not
        square.
    """
    _, height, width, _ = images.shape
    if how.shift >= min(height, width):
        raise ValueError(f"a shift of {how.shift} pixels leaves nothing of {height}×{width} images")
    shift_key, flip_key = jax.random.split(key)
    if how.shift:
        images = _shift(images, shift_key, how.shift)
    if how.flip != "none":
        images = _flip(images, flip_key, how.flip)
    return images


def normalize(
    images: jax.Array, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> jax.Array:
    """Turns bytes into what a network sees, (pixel / 255 − mean) / deviation per channel.

    Args:
      images: (batch, height, width, channels) uint8.
      mean: per channel, on the scale where white is 1.
      deviation: per channel, on that scale.

    Returns:
      float32, same shape.
    """
    mean_row = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    deviation_row = jnp.asarray(deviation, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - mean_row) / deviation_row


def _shift(images: jax.Array, key: jax.Array, most: int) -> jax.Array:
    batch, *size = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    starts = jax.random.randint(key, (batch, 2), 0, 2 * most + 1)

    def window(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), size)

    return jax.vmap(window)(padded, starts)


def _flip(images: jax.Array, key: jax.Array, flip: str) -> jax.Array:
    across, down, diagonal = jax.random.bernoulli(key, 0.5, (3, len(images), 1, 1, 1))
    if flip in ("horizontal", "d4"):
        images = jnp.where(across, images[:, :, ::-1], images)
    if flip in ("vertical", "d4"):
        images = jnp.where(down, images[:, ::-1], images)
    if flip == "d4":
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"flip d4 needs square images, got {images.shape[1:3]}")
        images = jnp.where(diagonal, images.swapaxes(1, 2), images)
    return images
