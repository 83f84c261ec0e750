"""What score chance gives: random kernels of the same shape, and a layer's own values shuffled."""

import jax
import jax.numpy as jnp

from kernsym_jax.symmetry.mean_kernel import mean_kernel
from kernsym_jax.symmetry.score import symmetry_score


def null_scores(
    shape: tuple[int, int],
    draws: int,
    key: jax.Array,
    centered: bool = False,
    identity: bool = True,
) -> jax.Array:
    """Scores of random kernels, the null for the mean kernel of any layer with that kernel shape.

    The mean of independent zero-mean normal weights is itself an independent normal kernel
    whatever the number of channels, so the null depends on the kernel's shape alone.

    Args:
      shape: (kh, kw).
      draws: how many kernels.
      key: a JAX random key.
      centered: as in `symmetry_score`.
      identity: as in `symmetry_score`.

    Returns:
      float32 (draws,).
    """
    kernels = jax.random.normal(key, (draws, *shape), jnp.float32)
    return symmetry_score(kernels, identity, centered)


def permutation_null(
    weight: jax.Array,
    draws: int,
    key: jax.Array,
    centered: bool = False,
    identity: bool = True,
) -> jax.Array:
    """Scores of a layer's mean kernel after shuffling the cells of every single kernel.

    Each (in, out) slice keeps its values but loses their places, independently of the others: what
    remains is the symmetry that the values alone give, their common offset above all.

    Args:
      weight: (kh, kw, in, out).
      draws: how many shuffles.
      key: a JAX random key.
      centered: as in `symmetry_score`.
      identity: as in `symmetry_score`.

    Returns:
      float32 (draws,).
    """
    mean_kernel(weight)
    kh, kw, *channels = jnp.shape(weight)
    slices = jnp.reshape(weight, (kh * kw, *channels)).astype(jnp.float32)

    def shuffled_score(draw_key: jax.Array) -> jax.Array:
        shuffled = jax.random.permutation(draw_key, slices, axis=0, independent=True)
        return symmetry_score(mean_kernel(shuffled.reshape(kh, kw, *channels)), identity, centered)

    # One draw at a time: a batch of draws would hold that many copies of the layer.
    return jax.lax.map(shuffled_score, jax.random.split(key, draws))


def p_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """The chance that the null gives a score at least as high, (1 + #{null ≥ score}) / (1 + draws).

    Args:
      score: (...).
      null: (draws,), from `null_scores` or `permutation_null`.

    Returns:
      float32 (...), never 0; NaN where the score is.
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    # Sorted, the count is one search per score: no (..., draws) array is made.
    below = jnp.searchsorted(jnp.sort(null), score.ravel(), side="left").reshape(score.shape)
    p = (1 + null.size - below).astype(jnp.float32) / (1 + null.size)
    return jnp.where(jnp.isnan(score), jnp.nan, p)


def z_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """How many standard deviations of the null a score lies above the null's mean.

    Args:
      score: (...).
      null: (draws,).

    Returns:
      float32 (...); NaN where the score is.
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    return (score - jnp.mean(null)) / jnp.std(null, ddof=1)
