"""Images under the eight symmetries of the square."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_ACTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "e": lambda images: images,
    "r90": lambda images: jnp.rot90(images, 1, (1, 2)),
    "r180": lambda images: jnp.rot90(images, 2, (1, 2)),
    "r270": lambda images: jnp.rot90(images, 3, (1, 2)),
    "fliplr": lambda images: images[:, :, ::-1],
    "flipud": lambda images: images[:, ::-1],
    "transpose": lambda images: images.swapaxes(1, 2),
    "antitranspose": lambda images: jnp.rot90(images, 2, (1, 2)).swapaxes(1, 2),
}

# The others undo themselves.
_INVERSES = {"r90": "r270", "r270": "r90"}

# Axes of the result along which an element runs backwards.
_BACKWARDS = {
    "r90": (1,),
    "r180": (1, 2),
    "r270": (2,),
    "fliplr": (2,),
    "flipud": (1,),
    "antitranspose": (1, 2),
}


@functools.partial(jax.jit, static_argnames=("name", "rolled"))
def flip(images: jax.Array, name: str, rolled: bool = False) -> jax.Array:
    """Applies an element of D4, as `symmetry.transform` does to a kernel.

    Args:
      images: (batch, height, width, channels).
      name: one of ``symmetry.D4``; on images that are not square one of ``symmetry.RECTANGLE``.
      rolled: rolls the result by one pixel along each axis of even size that the element turns
        around. Pixel 0 then stays pixel 0, so that a stride of 2 meets the same pixels as before;
        without it a flip swaps the even with the odd ones.

    Returns:
      Images of the same shape and dtype.
    """
    result = _ACTIONS[name](images)
    axes = _rolled_axes(name, images.shape[1], images.shape[2])
    return jnp.roll(result, (1,) * len(axes), axes) if rolled and axes else result


@functools.partial(jax.jit, static_argnames=("name", "rolled"))
def unflip(maps: jax.Array, name: str, rolled: bool = False) -> jax.Array:
    """Undoes `flip`.

    Args:
      maps: (batch, height, width, channels), what `flip` or a network on it has given.
      name: of the element.
      rolled: whether it came with the one-pixel roll.

    Returns:
      Maps of the same shape and dtype, pixel by pixel over the images before the flip.
    """
    axes = _rolled_axes(name, maps.shape[1], maps.shape[2])
    if rolled and axes:
        maps = jnp.roll(maps, (-1,) * len(axes), axes)
    return _ACTIONS[_INVERSES.get(name, name)](maps)


def roll_matters(name: str, height: int, width: int) -> bool:
    """Whether the one-pixel roll changes anything for an element and a size of images."""
    return bool(_rolled_axes(name, height, width))


def _rolled_axes(name: str, height: int, width: int) -> tuple[int, ...]:
    sizes = {1: height, 2: width}
    return tuple(axis for axis in _BACKWARDS.get(name, ()) if sizes[axis] % 2 == 0)
