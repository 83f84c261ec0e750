"""A kernel's energy split over the irreducible representations of its symmetry group."""

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry.score import squared_distances

IRREPS = ("A1", "A2", "B1", "B2", "E")
"""A1 invariant, A2 chiral, B1 axis contrast, B2 diagonal contrast, E odd (gradients, skew)."""

# One row per irrep, one column per element, dim/|G| times the character of the element.
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


def irrep_energies(kernel: jax.Array) -> jax.Array:
    """The shares of ‖K‖² in the five irreducible parts of D4.

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
    """The energies from the squared distances, on which they depend linearly.

    The part of K̂ in an irrep is P K̂ with P = Σ c_T T, and since P is a projection its energy is
    ⟨P K̂, K̂⟩ = Σ c_T ⟨T K̂, K̂⟩ = Σ c_T (1 − 2 d_T²). So A1 = 1 − 2 mean(d_T²), and E = d_r180².

    Args:
      squares: (..., len(elements(kh, kw))), from `squared_distances`.
      kh: rows of the kernel.
      kw: columns of the kernel.

    Returns:
      As `irrep_energies`.
    """
    projectors = _D4_PROJECTORS if kh == kw else _RECTANGLE_PROJECTORS
    coefficients = projectors.reshape((1,) * (squares.ndim - 1) + projectors.shape)
    # A product and a sum, not a matrix product, which accelerators round to bfloat16.
    lost = 2 * jnp.sum(coefficients * squares[..., None, :], axis=-1)
    whole = projectors.sum(axis=-1).reshape((1,) * (squares.ndim - 1) + (-1,))
    exists = projectors.any(axis=-1).reshape(whole.shape)
    energies = whole - lost
    # Rounding may leave less than nothing of a part that is not there. Not by `maximum`, which
    # compiled for a CPU may take a number for the larger of it and NaN.
    return jnp.where(exists, jnp.where(energies < 0, 0.0, energies), jnp.nan)
