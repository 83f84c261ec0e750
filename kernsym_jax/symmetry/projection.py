"""Making kernels symmetric: projections of a weight, and a term of the loss."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import mean_kernel, require_weight
from kernsym_jax.symmetry.score import root, squared_distances

# Two kernels at a distance below this differ by no more than the rounding of their cells.
_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)


def invariant_part(kernel: jax.Array, elements: Sequence[str] = ()) -> jax.Array:
    """Returns the part of a kernel that a group leaves unchanged: its mean over the group.

    Args:
      kernel: (..., kh, kw), any real dtype.
      elements: elements of D4 that generate the group; those that do not apply to the kernel's
        shape are left out. Empty for all of D4.

    Returns:
      float32 (..., kh, kw). The mean over a group of cell permutations is the orthogonal
      projection, so no invariant kernel is nearer.

    Raises:
      ValueError: if an element is unknown.

    >>> import jax.numpy as jnp
    >>> print(invariant_part(jnp.array([[1.0, 2.0], [3.0, 5.0]]), ["fliplr"]))
    [[1.5 1.5]
     [4.  4. ]]
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    return kernel - _excess(kernel, elements)


def invariant_slices(weight: jax.Array, elements: Sequence[str] = ()) -> jax.Array:
    """Returns the nearest weight of which every (in, out) slice is invariant under a group.

    Cells that the group maps onto each other get their mean, the same number to the last bit.
    This ties whole slices; `project_mean_kernel` changes their mean only.

    Args:
      weight: (..., kh, kw, in, out), any float dtype.
      elements: as in `invariant_part`.

    Returns:
      The weight, same shape and dtype; linear in the weight.

    Raises:
      ValueError: if an element is unknown, or the weight has fewer than four axes or an empty one.

    >>> import jax.numpy as jnp
    >>> weight = jnp.array([[1.0, 2.0], [3.0, 5.0]]).reshape(2, 2, 1, 1)
    >>> print(invariant_slices(weight, ["fliplr"]).reshape(2, 2))
    [[1.5 1.5]
     [4.  4. ]]
    """
    require_weight(weight)
    weight = jnp.asarray(weight)
    *batch, kh, kw, channels_in, channels_out = weight.shape
    orders = group.cell_permutations(kh, kw)[group.places(elements, kh, kw), :]
    first_cells, orbit_of_cell = np.unique(orders.min(axis=0), return_inverse=True)
    cells = weight.astype(jnp.float32).reshape(*batch, kh * kw, channels_in, channels_out)
    orbits = jnp.mean(cells[..., orders[:, first_cells], :, :], axis=-4)
    return orbits[..., orbit_of_cell, :, :].reshape(weight.shape).astype(weight.dtype)


def project_mean_kernel(weight: jax.Array, elements: Sequence[str] = ()) -> jax.Array:
    """Returns the nearest weight whose mean kernel is invariant under a group.

    With K the mean kernel and P K its `invariant_part`, every (in, out) slice loses the same
    K − P K. This is the smallest change that gives the mean kernel P K: the changes of the slices
    must average to K − P K, and numbers of a given mean have the smallest sum of squares when they
    are equal. And P K is the invariant mean kernel nearest to K.

    Where the change is small, float32 weights cannot all take it: it would vanish in rounding, or
    round to the same side in all weights of similar size. So slices move by whole steps of the grid
    of the largest weight, some by one step more than others, and the mean gets the exact change.
    The distances of the new mean kernel are below 1e-6 as long as its invariant part is at least a
    hundredth of what random weights have on average. A kernel without any invariant part (a Sobel
    filter under all of D4) keeps only rounding error, whose distances mean nothing. (`measure` adds
    the rounding of its own sums, about 1e-7 of that size.)

    Args:
      weight: (kh, kw, in, out), any float dtype; use `jax.vmap` for leading axes.
      elements: as in `invariant_part`.

    Returns:
      The weight, same shape and dtype. Derivatives are those of the exact linear projection.

    Raises:
      ValueError: if an element is unknown, or the weight has another shape or no channels.
    """
    weight = jnp.asarray(weight)
    if weight.ndim != 4 or not jnp.issubdtype(weight.dtype, jnp.floating):
        raise ValueError(
            "a weight has the axes (kh, kw, in, out) and a float dtype, got "
            f"{weight.shape} {weight.dtype}"
        )
    return _project(weight, group.generated(elements))


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
      elements: as in `invariant_part`.
      negligible: (...), or one number; a kernel counts as zero if no cell exceeds it.

    Returns:
      float32 (...), from 0 to below 1; 0 for a zero kernel, NaN for one that is not finite.

    Raises:
      ValueError: if an element is unknown.
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _project(weight: jax.Array, elements: tuple[str, ...]) -> jax.Array:
    digits = jnp.finfo(weight.dtype).nmant + 1
    # The first pass removes all but rounding error; the second removes the far smaller rest.
    for mean in (mean_kernel, _exact_mean_kernel):
        step = _unit(weight, -digits)
        steps = _excess(mean(weight), elements) / step
        whole = jnp.floor(steps[..., None, None] + _spread(weight.shape[2:])[None, None])
        weight = (weight.astype(jnp.float32) - step * whole).astype(weight.dtype)
    return weight


@_project.defjvp
def _project_jvp(
    elements: tuple[str, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (weight,), (tangent,) = primals, tangents
    excess = _excess(mean_kernel(tangent), elements)[..., None, None]
    moved = tangent.astype(jnp.float32) - excess
    return _project(weight, elements), moved.astype(tangent.dtype)


def _excess(kernel: jax.Array, elements: Sequence[str]) -> jax.Array:
    """Returns the part of a kernel that is not invariant; exactly 0 if there is none."""
    kh, kw = kernel.shape[-2:]
    orders = group.cell_permutations(kh, kw)[group.places(elements, kh, kw), :]
    cells = kernel.reshape(*kernel.shape[:-2], kh * kw)
    differences = cells[..., None, :] - cells[..., orders]
    return jnp.mean(differences, axis=-2).reshape(kernel.shape)


def _exact_mean_kernel(weight: jax.Array) -> jax.Array:
    """Returns the mean kernel almost without rounding in its sums, at several times the cost."""
    slices = weight.shape[2] * weight.shape[3]
    # The upper digits of the weights, so few that they add up exactly in any order.
    unit = _unit(weight, math.ceil(math.log2(slices)) - 23)
    weight = weight.astype(jnp.float32)
    upper = jnp.round(weight / unit) * unit
    return (jnp.sum(upper, axis=(2, 3)) + jnp.sum(weight - upper, axis=(2, 3))) / slices


def _unit(weight: jax.Array, shift: int) -> jax.Array:
    """Returns 2**shift times the smallest power of two above all weights."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(weight)).astype(jnp.float32))
    # Kept in the range of normal floats; below it, weights cannot be told from 0.
    return jnp.ldexp(jnp.float32(1), jnp.maximum(exponent + shift, -125))


def _spread(shape: tuple[int, ...]) -> jax.Array:
    """Returns multiples of the golden ratio modulo 1: every run of them is spread evenly."""
    channels_in, channels_out = shape
    index = jnp.arange(channels_in * channels_out, dtype=jnp.uint32)
    fraction = index * jnp.uint32(0x9E3779B9) + jnp.uint32(1 << 31)
    return ((fraction >> 8).astype(jnp.float32) / 2**24).reshape(shape)
