"""Nulls: the figures of random kernels and of a layer's own values shuffled, and their p-values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernsym_jax.symmetry.mean_kernel import mean_kernel, require_weight
from kernsym_jax.symmetry.score import symmetry_score

# The smallest normal float32: p-values do not become 0 by underflow.
_SMALLEST_P = float(jnp.finfo(jnp.float32).tiny)


def null_scores(
    shape: tuple[int, int],
    draws: int,
    key: jax.Array,
    *,
    identity: bool = True,
    centered: bool = False,
) -> jax.Array:
    """Returns scores of random kernels: the null for mean kernels of that shape.

    The mean of independent zero-mean normal weights is an independent normal kernel whatever the
    number of channels, so the null depends on the kernel's shape alone.

    Args:
      shape: (kh, kw).
      draws: number of kernels.
      key: a JAX random key.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.

    Returns:
      float32 (draws,).
    """
    kernels = jax.random.normal(key, (draws, *shape), jnp.float32)
    return symmetry_score(kernels, identity=identity, centered=centered)


def permutation_null(
    weight: jax.Array,
    draws: int,
    key: jax.Array,
    *,
    identity: bool = True,
    centered: bool = False,
    statistic: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Returns a layer's figure after shuffling the cells of every single kernel, draw by draw.

    Each (in, out) slice keeps its values and loses their places, independently of the others. What
    remains is the symmetry that the values alone give, above all through a common offset. For the
    padding signature this null holds for heavy-tailed weights too, where `signature_z` does not.

    Args:
      weight: (kh, kw, in, out).
      draws: number of shuffles.
      key: a JAX random key.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.
      statistic: a function of a weight, for example `padding_signature`; by default the score of
        the mean kernel.

    Returns:
      float32 (draws,), or (draws, ...) if the statistic has axes.
    """
    require_weight(weight)
    kh, kw, *channels = jnp.shape(weight)
    slices = jnp.reshape(weight, (kh * kw, *channels)).astype(jnp.float32)

    def score(shuffled: jax.Array) -> jax.Array:
        return symmetry_score(mean_kernel(shuffled), identity=identity, centered=centered)

    def one_draw(draw_key: jax.Array) -> jax.Array:
        shuffled = jax.random.permutation(draw_key, slices, axis=0, independent=True)
        return (statistic or score)(shuffled.reshape(kh, kw, *channels))

    # One draw at a time: a batch of draws would hold that many copies of the layer.
    return jax.lax.map(one_draw, jax.random.split(key, draws))


def p_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """Returns the share of the null that is at least as high, (1 + #{null ≥ score}) / (1 + draws).

    Args:
      score: (...).
      null: (draws,), from `null_scores` or `permutation_null`.

    Returns:
      float32 (...), never 0; NaN where the score is.
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    # Sorted, the count is one search per score, without a (..., draws) array.
    below = jnp.searchsorted(jnp.sort(null), score.ravel(), side="left").reshape(score.shape)
    p = (1 + null.size - below).astype(jnp.float32) / (1 + null.size)
    return jnp.where(jnp.isnan(score), jnp.nan, p)


def z_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """Returns how many standard deviations of the null a score lies above the null's mean.

    Args:
      score: (...).
      null: (draws,).

    Returns:
      float32 (...); NaN where the score is.
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    return (score - jnp.mean(null)) / jnp.std(null, ddof=1)


def two_sided_p(z: jax.Array) -> jax.Array:
    """Returns the two-sided p-value of a standard normal z.

    Args:
      z: (...), for example one axis of `signature_z` or `odd_moment_z`.

    Returns:
      float32 (...), at least 1.2e-38; NaN where z is.

    >>> print(f"{two_sided_p(1.959964):.4f}")
    0.0500
    """
    z = jnp.abs(jnp.asarray(z, jnp.float32))
    return _clipped(jax.scipy.special.erfc(z / jnp.sqrt(jnp.float32(2))))


def direction_p(z: jax.Array) -> jax.Array:
    """Returns the p-value of a vector of two independent standard normal z, whatever its direction.

    Args:
      z: (..., 2), x and y; NaN for an axis on which the kernel has one cell only.

    Returns:
      float32 (...): exp(−(z_x² + z_y²) / 2), the tail of χ² with two degrees of freedom; the
      two-sided p of the other axis if one is NaN, NaN if both are. At least 1.2e-38.
    """
    z = jnp.asarray(z, jnp.float32)
    one_axis = jnp.where(jnp.isnan(z[..., 0]), z[..., 1], z[..., 0])
    both = _clipped(jnp.exp(-0.5 * jnp.sum(z**2, axis=-1)))
    return jnp.where(jnp.isnan(both), two_sided_p(one_axis), both)


def _clipped(p: jax.Array) -> jax.Array:
    return jnp.where(p < _SMALLEST_P, _SMALLEST_P, p)
