"""How far a kernel is from each of its D4 images, and the score that averages over them."""

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import energy, mean_kernel, scaled_cells


def transform_distances(kernel: jax.Array, centered: bool = False) -> jax.Array:
    """The distance d_T = ½‖T K̂ − K̂‖ between a unit kernel and each of its images.

    Args:
      kernel: (..., kh, kw).
      centered: measures K − mean(K) instead of K.

    Returns:
      float32 (..., 8) in [0, 1], in the order of `D4`; NaN where a transform does not apply
      (kh ≠ kw) and for a zero kernel.

    Reference: Alsallakh et al., "On Symmetries in Convolutional Weights", 2025.
    """
    distances = _distances(kernel, centered)
    kh, kw = jnp.shape(kernel)[-2:]
    if kh == kw:
        return distances
    applicable = [
        group.RECTANGLE.index(name) if name in group.RECTANGLE else 4 for name in group.D4
    ]
    missing = jnp.full((*distances.shape[:-1], 1), jnp.nan, distances.dtype)
    return jnp.concatenate([distances, missing], axis=-1)[..., np.array(applicable)]


def symmetry_score(kernel: jax.Array, identity: bool = True, centered: bool = False) -> jax.Array:
    """The symmetry of a kernel under D4: one minus its mean distance to its images.

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
    distances = _distances(kernel, centered)
    # The identity stands first, and its distance is 0 or, for a zero kernel, NaN.
    return 1 - jnp.mean(distances if identity else distances[..., 1:], axis=-1)


def neuron_score(weight: jax.Array, identity: bool = True, centered: bool = False) -> jax.Array:
    """The mean score of the kernels that belong to one output channel each.

    Args:
      weight: (..., kh, kw, in, out); every output channel is averaged over its inputs.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.

    Returns:
      float32 (...); output channels whose kernel is zero do not count, NaN if all are.
    """
    mean_kernel(weight)  # for its check of the shape; unused, so compiled away
    kernels = jnp.mean(weight, axis=-2, dtype=jnp.float32)
    scores = symmetry_score(jnp.moveaxis(kernels, -1, -3), identity, centered)
    return jnp.nanmean(scores, axis=-1)


def single_score(weight: jax.Array, identity: bool = True, centered: bool = False) -> jax.Array:
    """The mean score of a layer's single two-dimensional kernels, one per channel pair.

    Args:
      weight: (..., kh, kw, in, out); every (in, out) slice is scored by itself.
      identity: as in `symmetry_score`.
      centered: as in `symmetry_score`.

    Returns:
      float32 (...); slices that are zero do not count, NaN if all are.
    """
    mean_kernel(weight)
    kernels = jnp.moveaxis(jnp.asarray(weight), (-2, -1), (-4, -3))
    return jnp.nanmean(symmetry_score(kernels, identity, centered), axis=(-2, -1))


def squared_distances(kernel: jax.Array, centered: bool = False) -> jax.Array:
    """The squares of the distances, for the transforms that apply only.

    Taking the mean off a kernel changes no difference between the kernel and its images, only the
    norm that they are measured by: both kinds of distance are one sum, divided differently.

    Args:
      kernel: (..., kh, kw).
      centered: as in `transform_distances`.

    Returns:
      float32 (..., len(elements(kh, kw))).
    """
    cells, kh, kw = scaled_cells(kernel)
    images = cells[..., group.cell_permutations(kh, kw)]
    differences = jnp.sum((images - cells[..., None, :]) ** 2, axis=-1)
    return 0.25 * differences / energy(cells, centered)[..., None]


def root(squares: jax.Array) -> jax.Array:
    """The square root with the slope 0 at 0, where it has none.

    Symmetric kernels, at which training tends to arrive, have distances of 0; their score has its
    maximum there, and 0 is its slope from all sides taken together.
    """
    symmetric = squares == 0
    return jnp.where(symmetric, 0.0, jnp.sqrt(jnp.where(symmetric, 1.0, squares)))


def _distances(kernel: jax.Array, centered: bool) -> jax.Array:
    return root(squared_distances(kernel, centered))
