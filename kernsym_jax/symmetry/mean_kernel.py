"""The mean kernel of a convolution, and what its scale and offset are."""

import jax
import jax.numpy as jnp

# Below this share of the largest cell, what is left after removing the mean is rounding, not shape.
_CENTRING_ROUNDING = 8 * float(jnp.finfo(jnp.float32).eps)


def mean_kernel(weight: jax.Array) -> jax.Array:
    """Averages a convolution's weight over its input and output channels.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., kh, kw).

    Raises:
      ValueError: if the weight has fewer than four axes or no channels.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.
    """
    _require_weight(weight)
    return jnp.mean(weight, axis=(-2, -1), dtype=jnp.float32)


def scaled_cells(kernel: jax.Array) -> tuple[jax.Array, int, int]:
    """The kernel in float32 with its cells on one axis, scaled so that the largest is 1.

    Every figure of this room except the mean kernel itself is free of scale, so the scale is taken
    out first: squares then neither overflow nor vanish. A zero kernel becomes NaN here.

    Args:
      kernel: (..., kh, kw), any real dtype.

    Returns:
      (..., kh * kw) float32, and kh, and kw.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2 or 0 in kernel.shape[-2:]:
        raise ValueError(f"a kernel has the axes (..., kh, kw), none empty; got {kernel.shape}")
    kh, kw = kernel.shape[-2:]
    cells = kernel.astype(jnp.float32).reshape(*kernel.shape[:-2], kh * kw)
    # A constant for differentiation: what is divided by it is free of scale anyway.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(cells), axis=-1, keepdims=True))
    nothing = largest == 0
    # Divided by 1 and then replaced, so that no gradient passes through a division by 0.
    return jnp.where(nothing, jnp.nan, cells / jnp.where(nothing, 1.0, largest)), kh, kw


def energy(cells: jax.Array, centered: bool = False) -> jax.Array:
    """The sum of squares of scaled cells, NaN for cells that are constant if ``centered``.

    Args:
      cells: (..., kh * kw), from `scaled_cells`.
      centered: removes the mean over the cells first.

    Returns:
      float32 (...).
    """
    if not centered:
        return jnp.sum(cells**2, axis=-1)
    shape = cells - jnp.mean(cells, axis=-1, keepdims=True)
    constant = jnp.max(jnp.abs(shape), axis=-1) <= _CENTRING_ROUNDING
    return jnp.where(constant, jnp.nan, jnp.sum(shape**2, axis=-1))


def dc_share(kernel: jax.Array) -> jax.Array:
    """The share of a kernel's energy that a constant offset explains, kh·kw·mean(K)² / ‖K‖².

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (...) in [0, 1]; NaN for a zero kernel.
    """
    cells, kh, kw = scaled_cells(kernel)
    return kh * kw * jnp.mean(cells, axis=-1) ** 2 / energy(cells)


def skew(kernel: jax.Array) -> jax.Array:
    """The first moment of a kernel about its centre, (Σ x·K, Σ y·K) / Σ|K|.

    It points to the side on which the weights are more positive. A kernel of negative weights that
    are largest at the top left so has a skew to the bottom right.

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (..., 2) in cells: x to the right, y down; NaN for a zero kernel.
    """
    cells, kh, kw = scaled_cells(kernel)
    x = jnp.tile(jnp.arange(kw, dtype=jnp.float32) - (kw - 1) / 2, kh)
    y = jnp.repeat(jnp.arange(kh, dtype=jnp.float32) - (kh - 1) / 2, kw)
    batch = (1,) * (cells.ndim - 1)
    moments = [jnp.sum(cells * axis.reshape(*batch, -1), axis=-1) for axis in (x, y)]
    return jnp.stack(moments, axis=-1) / jnp.sum(jnp.abs(cells), axis=-1, keepdims=True)


def _require_weight(weight: jax.Array) -> None:
    shape = jnp.shape(weight)
    if len(shape) < 4 or 0 in shape[-4:]:
        raise ValueError(f"a weight has the axes (..., kh, kw, in, out), none empty; got {shape}")
