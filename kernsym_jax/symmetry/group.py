"""D4, the symmetry group of the square grid, acting on the last two axes of a kernel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

D4 = ("e", "r90", "r180", "r270", "fliplr", "flipud", "transpose", "antitranspose")
"""The eight elements: rotations counter-clockwise, then the four reflections."""

RECTANGLE = ("e", "r180", "fliplr", "flipud")
"""The four elements that map a kernel with kh ≠ kw onto its own grid."""

# Each works on the two axes (kh, kw) of one NumPy array; everything else is derived from these.
_ACTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "e": lambda grid: grid,
    "r90": lambda grid: np.rot90(grid, 1),
    "r180": lambda grid: np.rot90(grid, 2),
    "r270": lambda grid: np.rot90(grid, 3),
    "fliplr": lambda grid: grid[:, ::-1],
    "flipud": lambda grid: grid[::-1, :],
    "transpose": lambda grid: grid.T,
    "antitranspose": lambda grid: np.rot90(grid, 2).T,
}


def elements(kh: int, kw: int) -> tuple[str, ...]:
    """The elements of D4 that apply to a (kh, kw) kernel: all eight only if it is square."""
    return D4 if kh == kw else RECTANGLE


def cell_permutations(kh: int, kw: int) -> np.ndarray:
    """The elements as permutations of the cells of a (kh, kw) grid, counted row by row.

    Args:
      kh: rows.
      kw: columns.

    Returns:
      int32 array (len(elements(kh, kw)), kh * kw); ``kernel.reshape(..., kh * kw)[..., row]`` is
      the transformed kernel.
    """
    cells = np.arange(kh * kw, dtype=np.int32).reshape(kh, kw)
    return np.stack([_ACTIONS[name](cells).ravel() for name in elements(kh, kw)])


def transform(kernel: jax.Array, name: str) -> jax.Array:
    """Applies one element of D4 to a kernel.

    Args:
      kernel: (..., k, k), any dtype; (..., kh, kw) with kh ≠ kw for the elements of `RECTANGLE`.
      name: one of `D4`.

    Returns:
      The transformed kernel, same shape and dtype.

    Raises:
      ValueError: if the name is unknown, or does not apply to a kernel of this shape.

    >>> import numpy as np
    >>> transform(np.array([[1, 2], [3, 4]]), "r90")
    Array([[2, 4],
           [1, 3]], dtype=int32)
    """
    if name not in D4:
        raise ValueError(f"unknown transform {name!r}; the elements of D4 are {', '.join(D4)}")
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has the axes (..., kh, kw), got shape {kernel.shape}")
    kh, kw = kernel.shape[-2:]
    names = elements(kh, kw)
    if name not in names:
        raise ValueError(f"{name} needs a square kernel, got {kh}×{kw}; {', '.join(names)} apply")
    order = cell_permutations(kh, kw)[names.index(name)]
    return kernel.reshape(*kernel.shape[:-2], kh * kw)[..., order].reshape(kernel.shape)
