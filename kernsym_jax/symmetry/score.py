"""The symmetry score of a kernel with its relatives, and what scores chance gives."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import (
    compiled,
    energy,
    mean_kernel,
    module_of,
    require_weight,
    root,
    scaled_cells,
)

IRREPS = ("A1", "A2", "B1", "B2", "E")
"""A1 invariant, A2 chiral, B1 axis contrast, B2 diagonal contrast, E odd (gradients, skew)."""

# One row per irrep, one column per element: dim/|G| times the character of the element.
_D4_PROJECTORS = np.array(
    [
        # e, r90, r180, r270, fliplr, flipud, transpose, antitranspose
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, -1, -1, -1, -1],
        [1, -1, 1, -1, 1, 1, -1, -1],
        [1, -1, 1, -1, -1, -1, 1, 1],
        [4, 0, -4, 0, 0, 0, 0, 0],
    ],
    np.float32,
) / np.float32(8)
_RECTANGLE_PROJECTORS = np.array(
    [
        # e, r180, fliplr, flipud
        [1, 1, 1, 1],
        [1, 1, -1, -1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [2, -2, 0, 0],
    ],
    np.float32,
) / np.float32(4)

# Two kernels at a distance below this differ by no more than the rounding of their cells.
_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)
# The smallest normal float32: p-values do not become 0 by underflow.
_SMALLEST_P = float(jnp.finfo(jnp.float32).tiny)


@functools.partial(compiled, static_argnames="centered")
def transform_distances(kernel: jax.Array, *, centered: bool = False) -> jax.Array:
    """Returns the distance d_T = ½‖T K̂ − K̂‖ between a unit kernel and each of its images.

    Args:
      kernel: (..., kh, kw).
      centered: measures K − mean(K) instead of K.

    Returns:
      float32 (..., 8) in [0, 1], in the order of `D4`; NaN where a transform does not apply
      (kh ≠ kw) and for a zero kernel.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    >>> print(symmetry.transform_distances(sobel).round(2))
    [0.   0.71 1.   0.71 1.   0.   0.71 0.71]
    """
    distances = root(squared_distances(kernel, centered=centered))
    return group.spread_over_d4(distances, *jnp.shape(kernel)[-2:])


@functools.partial(compiled, static_argnames=("identity", "centered"))
def symmetry_score(
    kernel: jax.Array, *, identity: bool = True, centered: bool = False
) -> jax.Array:
    """Returns the symmetry of a kernel under D4: one minus its mean distance to its images.

    Args:
      kernel: (..., kh, kw); the mean runs over the transforms that apply, eight if kh = kw, else
        four.
      identity: counts the identity (whose distance is 0) among the transforms.
      centered: measures K − mean(K), so that a shared offset does not count as symmetry.

    Returns:
      float32 (...); at most 1, and for a square kernel at least 0.3386 (0.2441 without the
      identity); NaN for a zero kernel, and for a constant one if ``centered``.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.

    >>> import jax.numpy as jnp
    >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    >>> print(f"{symmetry_score(sobel):.4f} {symmetry_score(sobel, identity=False):.4f}")
    0.3964 0.3102
    """
    distances = root(squared_distances(kernel, centered=centered))
    # The identity comes first; its distance is 0, or NaN for a zero kernel.
    return 1 - jnp.mean(distances if identity else distances[..., 1:], axis=-1)


@functools.partial(compiled, static_argnames=("identity", "centered"))
def neuron_score(weight: jax.Array, *, identity: bool = True, centered: bool = False) -> jax.Array:
    """Returns the mean score of the per-neuron kernels, one per output channel.

    Args:
      weight: (..., kh, kw, in, out); every output channel is averaged over its inputs.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.

    Returns:
      float32 (...); output channels whose kernel is zero do not count, NaN if all are.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> print(symmetry.neuron_score(jnp.ones((3, 3, 4, 8))))
    1.0
    """
    require_weight(weight)
    kernels = jnp.moveaxis(jnp.mean(weight, axis=-2, dtype=jnp.float32), -1, -3)
    scores = symmetry_score(kernels, identity=identity, centered=centered)
    return jnp.nanmean(scores, axis=-1)


@functools.partial(compiled, static_argnames=("identity", "centered"))
def single_score(weight: jax.Array, *, identity: bool = True, centered: bool = False) -> jax.Array:
    """Returns the mean score of a layer's single two-dimensional kernels, one per channel pair.

    Args:
      weight: (..., kh, kw, in, out); every (in, out) slice is scored by itself.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.

    Returns:
      float32 (...); slices that are zero do not count, NaN if all are.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> opposite = jnp.stack([jnp.eye(3), -jnp.eye(3)], axis=-1)[:, :, None]
    >>> print(f"{symmetry.single_score(opposite):.4f}")  # of each slice; their mean is zero
    0.7113
    """
    require_weight(weight)
    kernels = jnp.moveaxis(jnp.asarray(weight), (-2, -1), (-4, -3))
    scores = symmetry_score(kernels, identity=identity, centered=centered)
    return jnp.nanmean(scores, axis=(-2, -1))


def asymmetry(
    kernel: jax.Array, elements: Sequence[str] = (), negligible: jax.Array | float = 0.0
) -> jax.Array:
    """Returns one minus the score over a chosen group: the mean of d_T, the identity counted.

    Over all of D4 it equals ``1 - symmetry_score(kernel)``. It is made for minimisation: its
    gradient is finite everywhere. Three cases need care. d_T has a kink at 0, as every norm has;
    where d_T is 0 or within rounding of it, both d_T and its gradient are 0. A zero kernel has no
    distances and counts as symmetric. The direction of an almost-zero kernel changes with the
    least step, so kernels up to ``negligible`` count as zero.

    Args:
      kernel: (..., kh, kw).
      elements: elements of D4 that generate the group, as in `invariant_part`.
      negligible: (...), or one number; a kernel counts as zero if no cell exceeds it.

    Returns:
      float32 (...), from 0 to below 1; 0 for a zero kernel, NaN for one that is not finite.

    Raises:
      ValueError: if an element is unknown.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> leaning = jnp.array([[1.0, 1.0, 2.0]] * 3)
    >>> print(f"{symmetry.asymmetry(leaning):.4f} {symmetry.asymmetry(leaning, ('flipud',)):.4f}")
    0.1900 0.0000
    >>> jax.grad(symmetry.asymmetry)(jnp.ones((3, 3))).max()  # finite, even at the minimum
    Array(0., dtype=float32)
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    # The slope near zero is about 1/‖K‖, so below the smallest normal float it would overflow.
    threshold = jnp.maximum(negligible, jnp.finfo(jnp.float32).tiny)
    zero = jnp.max(jnp.abs(kernel), axis=(-2, -1)) <= threshold
    # Replaced before the division, so that no gradient passes through a division by 0.
    kernel = jnp.where(zero[..., None, None], 1.0, kernel)
    chosen = group.places(elements, *kernel.shape[-2:])
    squares = squared_distances(kernel)[..., chosen]
    distances = root(jnp.where(squares <= _ROUNDING**2, 0.0, squares))
    return jnp.mean(distances, axis=-1)


@compiled
def irrep_energies(kernel: jax.Array) -> jax.Array:
    """Returns the shares of ‖K‖² in the five irreducible parts of D4.

    For kh ≠ kw the group has four elements: A1 and A2 are its invariant and its chiral part, E
    remains the odd part, B1 and B2 do not exist.

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (..., 5) in the order of `IRREPS`, summing to 1 over those that exist; NaN for B1 and
      B2 if kh ≠ kw, and everywhere for a zero kernel. The mean over the eight elements of d_T² is
      ½(1 − A1).

    >>> import jax.numpy as jnp
    >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    >>> [round(float(share), 3) for share in irrep_energies(sobel)]
    [0.0, 0.0, 0.0, 0.0, 1.0]
    """
    return energies_of(squared_distances(kernel), *jnp.shape(kernel)[-2:])


def energies_of(squares: jax.Array, kh: int, kw: int) -> jax.Array:
    """Returns the energies from the squared distances, on which they depend linearly.

    The part of K̂ in an irrep is P K̂ with P = Σ c_T T. P is a projection, so the energy of that
    part is ⟨P K̂, K̂⟩ = Σ c_T ⟨T K̂, K̂⟩ = Σ c_T (1 − 2 d_T²). Hence A1 = 1 − 2 mean(d_T²) and
    E = d_r180².

    Args:
      squares: (..., len(elements(kh, kw))), from `squared_distances`.
      kh: rows of the kernel.
      kw: columns of the kernel.

    Returns:
      As `irrep_energies`.
    """
    projectors = _D4_PROJECTORS if kh == kw else _RECTANGLE_PROJECTORS
    coefficients = projectors.reshape((1,) * (squares.ndim - 1) + projectors.shape)
    # A product and a sum, because accelerators round matrix products to bfloat16.
    xp = module_of(squares)
    lost = 2 * xp.sum(coefficients * squares[..., None, :], axis=-1)
    whole = projectors.sum(axis=-1).reshape((1,) * (squares.ndim - 1) + (-1,))
    exists = projectors.any(axis=-1).reshape(whole.shape)
    energies = whole - lost
    # Rounding can make an absent part slightly negative. `maximum` would not do: compiled for a
    # CPU it may replace NaN by 0.
    positive = xp.where(energies < 0, np.float32(0), energies)
    return xp.where(exists, positive, np.float32(np.nan))


def squared_distances(kernel: jax.Array, *, centered: bool = False) -> jax.Array:
    """Returns the squared distances, for the transforms that apply only.

    Subtracting the mean changes no difference between the kernel and its images, only the norm
    that divides them: both kinds of distance share one sum.

    Args:
      kernel: (..., kh, kw).
      centered: as in `transform_distances`.

    Returns:
      float32 (..., len(elements(kh, kw))).
    """
    return squared_distances_of(*scaled_cells(kernel), centered=centered)


def squared_distances_of(
    cells: jax.Array, kh: int, kw: int, *, centered: bool = False
) -> jax.Array:
    """Returns `squared_distances` of scaled cells (..., kh * kw)."""
    images = cells[..., group.cell_permutations(kh, kw)]
    differences = module_of(cells).sum((images - cells[..., None, :]) ** 2, axis=-1)
    return 0.25 * differences / energy(cells, centered=centered)[..., None]


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

    >>> import jax
    >>> from kernsym_jax import symmetry
    >>> null = symmetry.null_scores((3, 3), 20_000, jax.random.key(0))
    >>> print(f"{null.mean():.2f}")
    0.48
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

    >>> import jax
    >>> from kernsym_jax import symmetry
    >>> weight = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    >>> null = symmetry.permutation_null(weight, 50, jax.random.key(1))
    >>> null.shape
    (50,)
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


@compiled
def p_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """Returns the share of the null that is at least as high, (1 + #{null ≥ score}) / (1 + draws).

    Args:
      score: (...).
      null: (draws,), from `null_scores` or `permutation_null`.

    Returns:
      float32 (...), never 0; NaN where the score is.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> float(symmetry.p_value(jnp.float32(0.9), jnp.array([0.4, 0.5, 0.95])))  # (1 + 1) / (1 + 3)
    0.5
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    # Sorted, the count is one search per score, without a (..., draws) array.
    below = jnp.searchsorted(jnp.sort(null), score.ravel(), side="left").reshape(score.shape)
    p = (1 + null.size - below).astype(jnp.float32) / (1 + null.size)
    return jnp.where(jnp.isnan(score), jnp.nan, p)


@compiled
def z_value(score: jax.Array, null: jax.Array) -> jax.Array:
    """Returns how many standard deviations of the null a score lies above the null's mean.

    Args:
      score: (...).
      null: (draws,).

    Returns:
      float32 (...); NaN where the score is.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> print(symmetry.z_value(jnp.float32(0.8), jnp.array([0.4, 0.5, 0.6])).round(2))
    3.0
    """
    score, null = jnp.asarray(score, jnp.float32), jnp.asarray(null, jnp.float32)
    return (score - jnp.mean(null)) / jnp.std(null, ddof=1)


@compiled
def two_sided_p(z: jax.Array) -> jax.Array:
    """Returns the two-sided p-value of a standard normal z.

    Args:
      z: (...), for example one axis of `signature_z` or `odd_moment_z`.

    Returns:
      float32 (...), at least 1.2e-38; NaN where z is.

    >>> print(f"{two_sided_p(1.959964):.4f}")
    0.0500
    """
    return _both_tails(jnp.asarray(z, jnp.float32))


def _both_tails(z: jax.Array) -> jax.Array:
    x = module_of(z).abs(z) / np.float32(math.sqrt(2))
    if isinstance(x, np.ndarray):
        return _clipped(np.vectorize(math.erfc, [np.float32])(x))
    return _clipped(jax.scipy.special.erfc(x))


@compiled
def direction_p(z: jax.Array) -> jax.Array:
    """Returns the p-value of a vector of two independent standard normal z, whatever its direction.

    Args:
      z: (..., 2), x and y; NaN for an axis on which the kernel has one cell only.

    Returns:
      float32 (...): exp(−(z_x² + z_y²) / 2), the tail of χ² with two degrees of freedom; the
      two-sided p of the other axis if one is NaN, NaN if both are. At least 1.2e-38.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> print(f"{symmetry.direction_p(jnp.array([3.0, 4.0])):.1e}")
    3.7e-06
    """
    return direction_p_of(jnp.asarray(z, jnp.float32))


def direction_p_of(z: jax.Array) -> jax.Array:
    """Returns `direction_p` of a float32 array (..., 2)."""
    xp = module_of(z)
    one_axis = xp.where(xp.isnan(z[..., 0]), z[..., 1], z[..., 0])
    both = _clipped(xp.exp(-0.5 * xp.sum(z**2, axis=-1)))
    return xp.where(xp.isnan(both), _both_tails(one_axis), both)


def _clipped(p: jax.Array) -> jax.Array:
    return module_of(p).where(p < _SMALLEST_P, np.float32(_SMALLEST_P), p)
