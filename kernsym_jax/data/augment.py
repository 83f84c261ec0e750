"""Random variation of training images, and their normalisation, inside the jitted step."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from kernsym_jax.data.decode import DRAWS, random_box
from kernsym_jax.data.image_set import VOID

FLIPS = ("none", "horizontal", "vertical", "d4")


@dataclasses.dataclass(frozen=True)
class Augment:
    """The random variation of training images; static, so that a step is compiled for it.

    Images are cropped, then shifted, then flipped.

    Attributes:
      crop_size: a random window of every image is scaled to a square of that size; 0 for none.
      crop_scale: least and largest share of the area of a window.
      crop_ratio: least and largest width over height of a window.
      shift: largest shift in pixels, per axis and image; pixels that enter are black, or void in
        masks.
      flip: ``none``, ``horizontal``, ``vertical``, each applied to half of the images, or ``d4``,
        one of the eight symmetries of the square per image.

    Raises:
      ValueError: for a negative shift or an unknown flip.

    >>> from kernsym_jax import data
    >>> data.Augment(shift=2, flip="horizontal", crop_size=32).crop_scale
    (0.08, 1.0)
    >>> data.Augment(flip="sideways")
    Traceback (most recent call last):
        ...
    ValueError: unknown flip 'sideways'; wanted one of none, horizontal, vertical, d4
    """

    shift: int = 0
    flip: str = "none"
    crop_size: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"the shift is a number of pixels ≥ 0, got {self.shift}")
        if self.flip not in FLIPS:
            raise ValueError(f"unknown flip {self.flip!r}; wanted one of {', '.join(FLIPS)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Augment":
        """Returns the variation that ``config.data`` of a resolved config asks for."""
        return cls(
            shift=config["shift"],
            flip=config["flip"],
            crop_size=config["crop_size"],
            crop_scale=tuple(config["crop_scale"]),
            crop_ratio=tuple(config["crop_ratio"]),
        )


@overload
def augment(images: jax.Array, key: jax.Array, how: Augment) -> jax.Array: ...


@overload
def augment(
    images: jax.Array, key: jax.Array, how: Augment, masks: jax.Array
) -> tuple[jax.Array, jax.Array]: ...


def augment(
    images: jax.Array, key: jax.Array, how: Augment, masks: jax.Array | None = None
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Crops, shifts and flips each image independently, and its mask like it.

    Args:
      images: (batch, height, width, channels), any dtype.
      key: a JAX random key.
      how: the kind and range of variation.
      masks: (batch, height, width) uint8 labels of the images' pixels, or ``None``.

    Returns:
      Images of the same dtype, and of the same shape unless they are cropped; with masks, a pair of
      the images and their masks. A mask gets no values that it did not have, except `VOID`.

    Raises:
      ValueError: if a shift could move an image out of sight, or if ``d4`` is asked for and the
        images are not square.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import data
    >>> images = jnp.array([1, 2, 3, 4], jnp.uint8).reshape(1, 2, 2, 1)
    >>> how = data.Augment(flip="horizontal")
    >>> [data.augment(images, jax.random.key(seed), how).ravel().tolist() for seed in (0, 1, 2)]
    [[2, 1, 4, 3], [2, 1, 4, 3], [1, 2, 3, 4]]
    """
    if masks is None:
        return _varied(images, key, how, fill=0)
    # The same key draws the same windows, shifts and flips.
    varied = _varied(masks[..., None], key, how, fill=VOID, nearest=True)
    return _varied(images, key, how, fill=0), varied[..., 0]


def crop(
    images: jax.Array,
    key: jax.Array,
    size: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    *,
    nearest: bool = False,
) -> jax.Array:
    """Cuts a random window out of every image and scales it to a square.

    Args:
      images: (batch, height, width, channels), any dtype.
      key: a JAX random key.
      size: of the square in pixels.
      scale: least and largest share of the area.
      ratio: least and largest width over height.
      nearest: whether to take the nearest pixels, as masks need it, instead of interpolating.

    Returns:
      (batch, size, size, channels) of the same dtype, interpolated linearly, or averaged if a
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
        # Interpolated values lie between their neighbours up to rounding errors.
        windows = jnp.clip(jnp.round(windows), 0, jnp.iinfo(images.dtype).max)
    return windows.astype(images.dtype)


def normalize(
    images: jax.Array, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> jax.Array:
    """Turns bytes into a network's input, (pixel / 255 − mean) / deviation per channel.

    Args:
      images: (batch, height, width, channels) uint8.
      mean: per channel, on the scale where white is 1.
      deviation: per channel, on that scale.

    Returns:
      float32, same shape.

    >>> import numpy as np
    >>> from kernsym_jax import data
    >>> images = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    >>> data.normalize(images, mean=(0.5,), deviation=(0.25,)).ravel().tolist()
    [-2.0, 2.0]
    """
    mean_row = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    deviation_row = jnp.asarray(deviation, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - mean_row) / deviation_row


def _varied(
    images: jax.Array, key: jax.Array, how: Augment, *, fill: int, nearest: bool = False
) -> jax.Array:
    shift_key, flip_key, crop_key = jax.random.split(key, 3)
    if how.crop_size:
        scale, ratio = how.crop_scale, how.crop_ratio
        images = crop(images, crop_key, how.crop_size, scale, ratio, nearest=nearest)
    _, height, width, _ = images.shape
    if how.shift >= min(height, width):
        raise ValueError(f"a shift of {how.shift} pixels leaves nothing of {height}×{width} images")
    if how.shift:
        images = _shift(images, shift_key, how.shift, fill)
    if how.flip != "none":
        images = _flip(images, flip_key, how.flip)
    return images


def _shift(images: jax.Array, key: jax.Array, most: int, fill: int) -> jax.Array:
    batch, *size = images.shape
    widths = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(images, widths, constant_values=fill)
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
