"""The mean kernel of a convolution, its constant offset and its first moment."""

import jax
import jax.numpy as jnp
import numpy as np

# A centred kernel whose cells are all below this share of the largest cell is rounding error.
_CENTRING_ROUNDING = 8 * float(jnp.finfo(jnp.float32).eps)


def mean_kernel(weight: jax.Array) -> jax.Array:
    """Averages a convolution's weight over its input and output channels.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., kh, kw).

    Raises:
      ValueError: if the weight has fewer than four axes or an empty one.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.
    """
    require_weight(weight)
    return jnp.mean(weight, axis=(-2, -1), dtype=jnp.float32)


def require_weight(weight: jax.Array) -> None:
    """Raises `ValueError` unless an array has the axes (..., kh, kw, in, out), none empty."""
    shape = jnp.shape(weight)
    if len(shape) < 4 or 0 in shape[-4:]:
        raise ValueError(f"a weight has the axes (..., kh, kw, in, out), none empty; got {shape}")


def scaled_cells(kernel: jax.Array) -> tuple[jax.Array, int, int]:
    """Returns the kernel in float32, its cells on one axis, scaled so that the largest is 1.

    Every figure of a mean kernel is free of scale, so the scale is taken out first: squares then
    neither overflow nor vanish. A zero kernel becomes NaN.

    Args:
      kernel: (..., kh, kw), any real dtype.

    Returns:
      (..., kh * kw) float32, kh and kw.

    Raises:
      ValueError: if the kernel has fewer than two axes or an empty one.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2 or 0 in kernel.shape[-2:]:
        raise ValueError(f"a kernel has the axes (..., kh, kw), none empty; got {kernel.shape}")
    kh, kw = kernel.shape[-2:]
    cells = kernel.astype(jnp.float32).reshape(*kernel.shape[:-2], kh * kw)
    # Constant for differentiation: figures do not depend on the scale.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(cells), axis=-1, keepdims=True))
    zero = largest == 0
    # Divided by 1 and then replaced, so that no gradient passes through a division by 0.
    return jnp.where(zero, jnp.nan, cells / jnp.where(zero, 1.0, largest)), kh, kw


def energy(cells: jax.Array, *, centered: bool = False) -> jax.Array:
    """Returns the sum of squares of scaled cells.

    Args:
      cells: (..., kh * kw), from `scaled_cells`.
      centered: subtracts the mean over the cells first.

    Returns:
      float32 (...); NaN for constant cells if ``centered``.
    """
    if not centered:
        return jnp.sum(cells**2, axis=-1)
    shape = cells - jnp.mean(cells, axis=-1, keepdims=True)
    constant = jnp.max(jnp.abs(shape), axis=-1) <= _CENTRING_ROUNDING
    return jnp.where(constant, jnp.nan, jnp.sum(shape**2, axis=-1))


def coordinates(kh: int, kw: int) -> np.ndarray:
    """Returns the centred coordinates of the cells of a (kh, kw) kernel, counted row by row.

    Args:
      kh: number of rows.
      kw: number of columns.

    Returns:
      float32 (2, kh * kw) in cells: x to the right, then y down; each row sums to 0.
    """
    y, x = np.mgrid[:kh, :kw].reshape(2, -1)
    return np.stack([x - (kw - 1) / 2, y - (kh - 1) / 2]).astype(np.float32)


def first_moment(cells: jax.Array, kh: int, kw: int) -> jax.Array:
    """Returns (Σ x·cell, Σ y·cell) of (..., kh * kw) cells, as float32 (..., 2)."""
    axes = coordinates(kh, kw).reshape((1,) * (cells.ndim - 1) + (2, kh * kw))
    # A product and a sum, because accelerators round matrix products to bfloat16.
    return jnp.sum(cells[..., None, :] * axes, axis=-1)


def dc_share(kernel: jax.Array) -> jax.Array:
    """Returns the share of a kernel's energy in its constant offset, kh·kw·mean(K)² / ‖K‖².

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (...) in [0, 1]; NaN for a zero kernel.
    """
    cells, kh, kw = scaled_cells(kernel)
    return kh * kw * jnp.mean(cells, axis=-1) ** 2 / energy(cells)


def skew(kernel: jax.Array) -> jax.Array:
    """Returns the first moment of a kernel about its centre, (Σ x·K, Σ y·K) / Σ|K|.

    It points to the side on which the cells are more positive. Its sign therefore depends on the
    sign of the weights: K and −K skew to opposite sides. `padding_signature` does not.

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (..., 2) in cells: x to the right, y down; NaN for a zero kernel.
    """
    cells, kh, kw = scaled_cells(kernel)
    return first_moment(cells, kh, kw) / jnp.sum(jnp.abs(cells), axis=-1, keepdims=True)
