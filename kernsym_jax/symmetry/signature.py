"""The size of the weights per tap, the way it leans, and the second moments of the slices.

Uneven padding leaves a mark on how large the weights are, not on their sign: the first moment of
the rms kernel, here called the padding signature, points away from the side on which the padding
is over-exposed. Under independent normal weights its null has a closed form, derived here.

With n = kh·kw taps and M = in·out slices, the root mean squares R_j of the taps are independent,
with mean μ and coefficient of variation κ, that of a χ distribution with M degrees of freedom:
κ² = (M/2)·(Γ(M/2)/Γ((M+1)/2))² − 1 ≈ 1/(2M). Write R_j = μ(1 + ε_j). The coordinates sum to 0, so
r_x = Σ x_j R_j / Σ R_j = Σ x_j ε_j / (n + Σ ε_j) ≈ Σ x_j ε_j / n, whose variance is Σ x_j² κ² / n².
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import (
    compiled,
    coordinates,
    first_moment,
    module_of,
    require_weight,
    root,
)
from kernsym_jax.symmetry.score import direction_p_of

# A variance below this share of the mean square is rounding error of one-pass sums.
_CONSTANT = 1e-6


@compiled
def rms_kernel(weight: jax.Array) -> jax.Array:
    """Returns the root mean square of the weights per tap, divided by its sum.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., kh, kw), summing to 1; NaN for a zero weight.

    Raises:
      ValueError: if the weight has fewer than four axes or an empty one.

    >>> import jax.numpy as jnp
    >>> weight = jnp.array([[3.0, -1.0], [0.0, 4.0]]).reshape(2, 2, 1, 1)
    >>> print(rms_kernel(weight))
    [[0.375 0.125]
     [0.    0.5  ]]
    """
    scaled, _ = _scaled(weight)
    sizes = root(jnp.mean(scaled**2, axis=(-2, -1)))
    return sizes / jnp.sum(sizes, axis=(-2, -1), keepdims=True)


@compiled
def padding_signature(weight: jax.Array) -> jax.Array:
    """Returns the first moment of the rms kernel about its centre, (Σ x R, Σ y R).

    It does not depend on the signs of the weights and is 0 on average for random weights.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., 2) in cells: x to the right, y down; NaN for a zero weight.

    Raises:
      ValueError: as in `rms_kernel`.

    >>> import jax.numpy as jnp
    >>> weight = jnp.array([[3.0, -1.0], [0.0, 4.0]]).reshape(2, 2, 1, 1)
    >>> print(padding_signature(weight))
    [0.125 0.   ]
    """
    sizes = rms_kernel(weight)
    kh, kw = sizes.shape[-2:]
    return first_moment(sizes.reshape(*sizes.shape[:-2], kh * kw), kh, kw)


def signature_sd(kh: int, kw: int, slices: int) -> tuple[float, float]:
    """Returns the standard deviation of the padding signature under independent normal weights.

    Args:
      kh: rows of the kernel.
      kw: columns of the kernel.
      slices: number of (in, out) slices, M = in·out.

    Returns:
      (sd_x, sd_y) in cells, √(Σx²)/(kh·kw)·κ with κ ≈ 1/√(2M) (see the module's docstring); 0 along
      an axis of one cell.

    >>> [round(400 * sd, 2) for sd in signature_sd(3, 3, 400 * 400)]
    [0.19, 0.19]
    """
    if slices > 1000:
        squared = 1 / (2 * slices) + 1 / (8 * slices**2)  # the series: lgamma loses digits here
    else:
        gammas = math.lgamma(slices / 2) - math.lgamma((slices + 1) / 2)
        squared = slices / 2 * math.exp(2 * gammas) - 1
    squares = np.sum(coordinates(kh, kw).astype(np.float64) ** 2, axis=1)
    sd_x, sd_y = np.sqrt(squares * squared) / (kh * kw)
    return float(sd_x), float(sd_y)


def shuffled_sd(kh: int, kw: int, energy: float, spread: float) -> tuple[float, float]:
    """Returns the standard deviation of the padding signature when slices are shuffled.

    This is the spread of `permutation_null` with `padding_signature`, without its draws. Shuffling
    a slice gives the squares of its cells the covariance v·(δ_ij − 1/n), v their sample variance;
    the sums over many slices are normal, and r_x ≈ Σ x_j δE_j / (2 n E), E the sum per tap.

    Args:
      kh: rows of the kernel.
      kw: columns of the kernel.
      energy: sum of all squared weights.
      spread: sum over the slices of the sample variance of their squared cells.

    Returns:
      (sd_x, sd_y) in cells; NaN for a zero weight.

    >>> import numpy as np
    >>> from kernsym_jax import symmetry
    >>> squares = np.square(np.random.default_rng(0).standard_normal((3, 3, 512)))
    >>> sd = symmetry.shuffled_sd(3, 3, squares.sum(), squares.var((0, 1), ddof=1).sum())
    >>> print(f"{sd[0]:.4f}")  # 0.0083 = 0.19 / √512 for normal weights
    0.0082
    """
    if not energy > 0:
        return math.nan, math.nan
    squares = np.sum(coordinates(kh, kw).astype(np.float64) ** 2, axis=1)
    sd_x, sd_y = np.sqrt(squares * spread) / (2 * energy)
    return float(sd_x), float(sd_y)


@compiled
def signature_z(weight: jax.Array) -> jax.Array:
    """Returns the padding signature in standard deviations of its null.

    Under independent normal weights of one variance each component is standard normal, whatever
    the shape. `two_sided_p` gives its p-value, `direction_p` that of both. The spread
    of heavy-tailed weights is larger; for those use `permutation_null` with `padding_signature`.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., 2), x and y; NaN along an axis of one cell and for a zero weight.

    Raises:
      ValueError: as in `rms_kernel`.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> weight = jnp.ones((3, 3, 4, 4)).at[:, 2].set(1.5)  # larger at the right
    >>> print("{:.1f} {:.1f}".format(*abs(symmetry.signature_z(weight))))
    2.9 0.0
    """
    signature = padding_signature(weight)
    kh, kw, channels_in, channels_out = jnp.shape(weight)[-4:]
    return signature / _divisor(signature_sd(kh, kw, channels_in * channels_out), signature.ndim)


@compiled
def odd_moment_z(weight: jax.Array) -> jax.Array:
    """Returns the first moment of the mean kernel in standard deviations of its null.

    (Σ x K, Σ y K) / (σ_w·√(Σx²)/√(in·out)), with σ_w the standard deviation of all weights. Under
    independent normal weights of one variance each component is standard normal, and a common
    offset of the weights changes nothing. Like `skew` its sign is that of the weights.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., 2), x and y; NaN along an axis of one cell and for constant weights.

    Raises:
      ValueError: as in `rms_kernel`.

    >>> import jax.numpy as jnp
    >>> print(odd_moment_z(jnp.array([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)))
    [1.4142135       nan]
    """
    scaled, (_, _, slices) = _scaled(weight)
    overall = jnp.mean(scaled, axis=(-4, -3, -2, -1), keepdims=True)
    variance = jnp.mean((scaled - overall) ** 2, axis=(-4, -3, -2, -1))
    sums = jnp.sum(scaled - overall, axis=(-2, -1))
    mean_square = jnp.mean(scaled**2, axis=(-4, -3, -2, -1))
    return _odd_z(sums, jnp.where(variance <= _CONSTANT**2 * mean_square, 0.0, variance), slices)


def signature_figures(
    sums: jax.Array,
    square_sums: jax.Array,
    slices: jax.Array | np.ndarray,
    deviations: jax.Array | np.ndarray,
) -> jax.Array:
    """Returns the figures that follow from the sums of the weights and of their squares per tap.

    Args:
      sums: (..., kh, kw) float32, the sums over the slices.
      square_sums: (..., kh, kw) float32, the sums of squares over the slices.
      slices: (...) float32, the number of slices.
      deviations: (..., 2) float32, `signature_sd` of that number.

    Returns:
      float32 (..., 5): the padding signature x and y, the `direction_p` of `signature_z`, and
      `odd_moment_z` x and y. NaN where the squares under- or overflow float32.
    """
    xp, nan = module_of(sums), np.float32(np.nan)
    kh, kw = sums.shape[-2:]
    sizes = root(square_sums)
    sizes = sizes.reshape(*sizes.shape[:-2], kh * kw)
    total = xp.sum(sizes, axis=-1, keepdims=True)
    signature = first_moment(sizes, kh, kw) / xp.where(total > 0, total, nan)
    z = signature / xp.where(deviations > 0, deviations, nan)

    mean_square = xp.mean(square_sums, axis=(-2, -1)) / slices
    mean = xp.mean(sums, axis=(-2, -1)) / slices
    variance = mean_square - mean**2
    variance = xp.where(variance <= _CONSTANT * mean_square, np.float32(0), variance)
    odd_z = _odd_z(sums, variance, slices)
    return xp.concatenate([signature, direction_p_of(z)[..., None], odd_z], axis=-1)


@compiled
def slice_moments(weight: jax.Array) -> jax.Array:
    """Returns the second moments of the slices, C = mean over (in, out) of w wᵀ.

    The mean kernel averages over slices and so over both signs; C keeps which taps vary together.
    The diagonal of C is the square of the rms kernel, up to scale.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., kh·kw, kh·kw), symmetric; cells are counted row by row.

    Raises:
      ValueError: as in `rms_kernel`.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> symmetry.slice_moments(jnp.ones((3, 3, 4, 8))).shape
    (9, 9)
    """
    require_weight(weight)
    weight = jnp.asarray(weight, jnp.float32)
    *batch, kh, kw, channels_in, channels_out = weight.shape
    slices = weight.reshape(*batch, kh * kw, channels_in * channels_out)
    products = jnp.einsum("...im,...jm->...ij", slices, slices, precision="highest")
    return products / (channels_in * channels_out)


@compiled
def moment_distances(weight: jax.Array) -> jax.Array:
    """Returns how far the second moments of the slices are from each of their D4 images.

    d_T = ½‖T C Tᵀ − C‖ / ‖C‖ with C of `slice_moments`. It is 0 if the slices come in equal numbers
    with their images, and small for random weights of many slices; `moment_null` gives its null.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., 8) in [0, √½], in the order of `D4`; NaN where a transform does not apply
      (kh ≠ kw) and for a zero weight.

    Raises:
      ValueError: as in `rms_kernel`.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> edges = jnp.array([[1.0, 0.0, -1.0]] * 3)[:, :, None, None]
    >>> both = jnp.concatenate([edges, jnp.rot90(edges)], axis=-1)  # vertical and horizontal edges
    >>> print(f"{symmetry.moment_distances(edges)[1]:.3f}")  # under r90
    0.707
    >>> print(f"{symmetry.moment_distances(both)[1]:.3f}")
    0.000
    """
    scaled, (kh, kw, _) = _scaled(weight)
    return group.spread_over_d4(_moment_distances(slice_moments(scaled), kh, kw), kh, kw)


def moment_null(weight: jax.Array, name: str, draws: int, key: jax.Array) -> jax.Array:
    """Returns `moment_distances` of one element after applying it to randomly chosen slices.

    If each slice is as likely as its image, exchanging the two changes no distribution. So each
    slice is replaced by its image with probability ½ (under r90 and r270 by one of its four turns).
    Compare with `p_value`.

    Args:
      weight: (kh, kw, in, out).
      name: an element of `D4` that applies to the kernel, other than the identity.
      draws: number of draws.
      key: a JAX random key.

    Returns:
      float32 (draws,).

    Raises:
      ValueError: if the element does not apply, or is the identity.

    >>> import jax
    >>> from kernsym_jax import symmetry
    >>> weight = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    >>> symmetry.moment_null(weight, "fliplr", 20, jax.random.key(1)).shape
    (20,)
    """
    scaled, (kh, kw, slices) = _scaled(weight)
    names = group.elements(kh, kw)
    if name == "e" or name not in names:
        raise ValueError(f"choose one of {', '.join(names[1:])} for a {kh}×{kw} kernel, not {name}")
    orders = group.cell_permutations(kh, kw)[group.places([name], kh, kw)]
    images = scaled.reshape(kh * kw, slices)[orders]
    index = names.index(name)

    def one_draw(draw_key: jax.Array) -> jax.Array:
        chosen = jax.random.randint(draw_key, (1, 1, slices), 0, len(orders))
        mixed = jnp.take_along_axis(images, chosen, axis=0).reshape(kh, kw, slices, 1)
        return _moment_distances(slice_moments(mixed), kh, kw)[index]

    return jax.lax.map(one_draw, jax.random.split(key, draws))


def _moment_distances(moments: jax.Array, kh: int, kw: int) -> jax.Array:
    orders = group.cell_permutations(kh, kw)
    images = moments[..., orders[:, :, None], orders[:, None, :]]
    differences = jnp.sum((images - moments[..., None, :, :]) ** 2, axis=(-2, -1))
    whole = jnp.sum(moments**2, axis=(-2, -1))
    return 0.5 * root(differences / jnp.where(whole > 0, whole, jnp.nan)[..., None])


def _scaled(weight: jax.Array) -> tuple[jax.Array, tuple[int, int, int]]:
    """Returns the weight scaled to a largest size of 1 (NaN if zero), and kh, kw and in·out."""
    require_weight(weight)
    weight = jnp.asarray(weight).astype(jnp.float32)
    # Constant for differentiation: the figures do not depend on the scale.
    largest = jnp.max(jnp.abs(weight), axis=(-4, -3, -2, -1), keepdims=True)
    largest = jax.lax.stop_gradient(largest)
    zero = largest == 0
    scaled = jnp.where(zero, jnp.nan, weight / jnp.where(zero, 1.0, largest))
    kh, kw, channels_in, channels_out = weight.shape[-4:]
    return scaled, (kh, kw, channels_in * channels_out)


def _odd_z(sums: jax.Array, variance: jax.Array, slices: jax.Array | np.ndarray | int) -> jax.Array:
    """Returns Σ x·sum / (√M·σ_w·√Σx²), x and y; NaN where the variance is 0 or not finite.

    σ_w² is the unbiased estimate of the variance: z then has variance 1 however few weights.
    """
    xp, (kh, kw) = module_of(sums), sums.shape[-2:]
    count = kh * kw * xp.asarray(slices, np.float32)
    variance = variance * count / (count - 1)
    moment = first_moment(sums.reshape(*sums.shape[:-2], kh * kw), kh, kw)
    known = (variance > 0) & xp.isfinite(variance)
    root_of = xp.sqrt(xp.where(known, variance, np.float32(1)))
    deviation = xp.where(known, root_of, np.float32(np.nan))
    deviation = deviation * xp.sqrt(xp.asarray(slices, np.float32))
    spread = np.sqrt(np.sum(coordinates(kh, kw) ** 2, axis=1))
    return moment / (deviation[..., None] * _divisor(spread, moment.ndim))


def _divisor(pair: Sequence[float] | np.ndarray, ndim: int) -> np.ndarray:
    """Returns two numbers with 0 replaced by NaN, as float32 with leading axes of size 1."""
    values = np.array(pair)
    replaced = np.where(values > 0, values, np.nan).astype(np.float32)
    return replaced.reshape((1,) * (ndim - 1) + (2,))
