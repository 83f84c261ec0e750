"""The kernels of a network, the mean kernel of each, its moments, and projections onto a group."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group

# A centred kernel whose cells are all below this share of the largest cell is rounding error.
_CENTRING_ROUNDING = 8 * float(jnp.finfo(jnp.float32).eps)

compiled = functools.partial(jax.jit, inline=True)
"""Makes one program of a function that is called by itself, and changes nothing within another."""


@compiled
def mean_kernel(weight: jax.Array) -> jax.Array:
    """Averages a convolution's weight over its input and output channels.

    Args:
      weight: (..., kh, kw, in, out), any real dtype.

    Returns:
      float32 (..., kh, kw).

    Raises:
      ValueError: if the weight has fewer than four axes or an empty one.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> weight = jnp.stack([jnp.ones((3, 3, 1)), 3 * jnp.ones((3, 3, 1))], axis=-1)
    >>> print(symmetry.mean_kernel(weight))
    [[2. 2. 2.]
     [2. 2. 2.]
     [2. 2. 2.]]
    """
    require_weight(weight)
    return jnp.mean(weight, axis=(-2, -1), dtype=jnp.float32)


def conv_kernels(params: Any) -> dict[str, jax.Array]:
    """Finds the convolution kernels in a weight pytree.

    A convolution kernel is a leaf named ``kernel`` with the four axes (kh, kw, in, out), as
    ``flax.linen`` and ``flax.nnx`` store it. (`nn.ConvLocal` stores another kind of weight under
    the same name and with four axes; it would be counted too.)

    Args:
      params: nested dicts or FrozenDicts of parameters, variables with a ``params`` collection, a
        TrainState or anything else with ``params``, an NNX state or module. Leaves may be
        arrays, tracers or `jax.ShapeDtypeStruct`.

    Returns:
      ``{"block/conv/kernel": weight}`` in the order of the tree; a ``params`` collection is not
      part of the path.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "head": {"kernel": jnp.ones((8, 10))}}
    >>> {path: weight.shape for path, weight in symmetry.conv_kernels(params).items()}
    {'conv/kernel': (3, 3, 1, 8)}
    """
    tree = getattr(params, "params", params)
    if isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):
        tree = tree["params"]
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [_key_name(key) for key in path]
        # Both Flax APIs may box a leaf, which adds an attribute to its path.
        if names and names[-1] in ("value", "raw_value"):
            names.pop()
        if names and names[-1] == "kernel" and len(getattr(leaf, "shape", ())) == 4:
            found["/".join(names)] = leaf
    return found


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


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


def module_of(array: Any) -> Any:
    """Returns ``numpy`` for an array of NumPy's, else ``jax.numpy``.

    NumPy computes the figures of weights in a file, because compiling a program for each kernel
    size takes longer. The functions of scaled cells are the same for both.
    """
    return np if isinstance(array, np.ndarray) else jnp


def energy(cells: jax.Array, *, centered: bool = False) -> jax.Array:
    """Returns the sum of squares of scaled cells.

    Args:
      cells: (..., kh * kw), from `scaled_cells`.
      centered: subtracts the mean over the cells first.

    Returns:
      float32 (...); NaN for constant cells if ``centered``.
    """
    xp = module_of(cells)
    if not centered:
        return xp.sum(cells**2, axis=-1)
    shape = cells - xp.mean(cells, axis=-1, keepdims=True)
    constant = xp.max(xp.abs(shape), axis=-1) <= _CENTRING_ROUNDING
    return xp.where(constant, np.float32(np.nan), xp.sum(shape**2, axis=-1))


def root(squares: jax.Array) -> jax.Array:
    """Returns the square root, with slope 0 at 0, where the square root has none.

    Training tends to arrive at symmetric kernels. Their distances are 0 and their score is at its
    maximum, so 0 is the slope that the score needs there.
    """
    if isinstance(squares, np.ndarray):  # without a slope
        return np.sqrt(squares)
    zero = squares == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


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
    return module_of(cells).sum(cells[..., None, :] * axes, axis=-1)


@compiled
def dc_share(kernel: jax.Array) -> jax.Array:
    """Returns the share of a kernel's energy in its constant offset, kh·kw·mean(K)² / ‖K‖².

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (...) in [0, 1]; NaN for a zero kernel.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> float(symmetry.dc_share(jnp.ones((3, 3))))
    1.0
    """
    return dc_share_of(scaled_cells(kernel)[0])


def dc_share_of(cells: jax.Array) -> jax.Array:
    """Returns `dc_share` of scaled cells (..., kh * kw)."""
    return cells.shape[-1] * module_of(cells).mean(cells, axis=-1) ** 2 / energy(cells)


@compiled
def skew(kernel: jax.Array) -> jax.Array:
    """Returns the first moment of a kernel about its centre, (Σ x·K, Σ y·K) / Σ|K|.

    It points to the side on which the cells are more positive. Its sign therefore depends on the
    sign of the weights: K and −K skew to opposite sides. `padding_signature` does not.

    Args:
      kernel: (..., kh, kw).

    Returns:
      float32 (..., 2) in cells: x to the right, y down; NaN for a zero kernel.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> print(symmetry.skew(jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])))
    [1. 0.]
    """
    return skew_of(*scaled_cells(kernel))


def skew_of(cells: jax.Array, kh: int, kw: int) -> jax.Array:
    """Returns `skew` of scaled cells (..., kh * kw)."""
    xp = module_of(cells)
    return first_moment(cells, kh, kw) / xp.sum(xp.abs(cells), axis=-1, keepdims=True)


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

    >>> import jax
    >>> from kernsym_jax import symmetry
    >>> weight = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))
    >>> projected = symmetry.project_mean_kernel(weight)
    >>> print(f"{symmetry.symmetry_score(symmetry.mean_kernel(projected)):.3f}")
    1.000
    """
    weight = jnp.asarray(weight)
    if weight.ndim != 4 or not jnp.issubdtype(weight.dtype, jnp.floating):
        raise ValueError(
            "a weight has the axes (kh, kw, in, out) and a float dtype, got "
            f"{weight.shape} {weight.dtype}"
        )
    return _project(weight, group.generated(elements))


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
