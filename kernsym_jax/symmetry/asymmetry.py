"""How far kernels are from a chosen symmetry, as a term of a loss."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.score import root, squared_distances

# Below this distance two kernels differ by no more than the rounding of their cells.
_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)


def asymmetry(
    kernel: jax.Array, elements: Sequence[str] = (), negligible: jax.Array | float = 0.0
) -> jax.Array:
    """One minus the score over a chosen group: the mean of d_T, the identity counted.

    For all of D4 it is ``1 - symmetry_score(kernel)``, with the same convention on the identity.
    It is meant to be minimised: its gradient is finite everywhere, which takes three exceptions.
    d_T has a kink at 0, as all norms have; there, and where it is rounding, it is 0 with the
    gradient 0. A zero kernel has no distances; it is as good as any. And since its neighbours turn
    over at the least change, so is what around it is ``negligible``.

    Args:
      kernel: (..., kh, kw).
      elements: of D4; the group that they generate is meant, or what of it applies to the kernel's
        shape. Empty for all of D4.
      negligible: (...), or one number; kernels with no cell larger than that count as zero.

    Returns:
      float32 (...), from 0 to below 1; 0 for a zero kernel, NaN for one that is not finite.

    Raises:
      ValueError: for an unknown element.
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    # At the least float there is, the slope is as large as the largest.
    least = jnp.maximum(negligible, jnp.finfo(jnp.float32).tiny)
    nothing = jnp.max(jnp.abs(kernel), axis=(-2, -1)) <= least
    # Replaced before and not after, so that no gradient passes through a division by 0.
    kernel = jnp.where(nothing[..., None, None], 1.0, kernel)
    chosen = group.places(elements, *kernel.shape[-2:])
    squares = squared_distances(kernel)[..., chosen]
    distances = root(jnp.where(squares <= _ROUNDING**2, 0.0, squares))
    return jnp.mean(distances, axis=-1)
