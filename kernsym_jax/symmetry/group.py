"""D4, the symmetry group of the square grid, acting on the last two axes of a kernel."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

D4 = ("e", "r90", "r180", "r270", "fliplr", "flipud", "transpose", "antitranspose")
"""The eight elements: rotations counter-clockwise, then the four reflections."""

RECTANGLE = ("e", "r180", "fliplr", "flipud")
"""The four elements that map a kernel with kh ≠ kw onto its own grid."""

# Each acts on the two axes (kh, kw) of one NumPy array; everything else is derived from these.
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
    """Returns the elements of D4 that apply to a (kh, kw) kernel: all eight only if kh = kw.

    >>> from kernsym_jax import symmetry
    >>> symmetry.elements(3, 3)
    ('e', 'r90', 'r180', 'r270', 'fliplr', 'flipud', 'transpose', 'antitranspose')
    >>> symmetry.elements(1, 7)
    ('e', 'r180', 'fliplr', 'flipud')
    """
    return D4 if kh == kw else RECTANGLE


def cell_permutations(kh: int, kw: int) -> np.ndarray:
    """Returns the elements as permutations of the cells of a (kh, kw) grid, counted row by row.

    Args:
      kh: number of rows.
      kw: number of columns.

    Returns:
      int32 (len(elements(kh, kw)), kh * kw). Indexing ``kernel.reshape(..., kh * kw)`` with one row
      on its last axis gives the transformed kernel.
    """
    cells = np.arange(kh * kw, dtype=np.int32).reshape(kh, kw)
    return np.stack([_ACTIONS[name](cells).ravel() for name in elements(kh, kw)])


@functools.lru_cache(maxsize=64)
def exchanged_pairs(kh: int, kw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pairs of cells that elements of D4 exchange.

    Args:
      kh: number of rows.
      kw: number of columns.

    Returns:
      The two cells of each pair, (pairs,) and (pairs,); how often a pair's squared difference
      counts in ‖T K − K‖², (pairs, elements) float32; and for how many elements T each of these
      columns stands, (elements,) float32. The identity has no column.
    """
    orders = cell_permutations(kh, kw)
    here = np.broadcast_to(np.arange(kh * kw), orders.shape)
    codes = np.minimum(orders, here) * (kh * kw) + np.maximum(orders, here)
    known, index = np.unique(codes[orders != here], return_inverse=True)
    weights = np.zeros((len(orders), len(known)), np.float32)
    np.add.at(weights, (np.nonzero(orders != here)[0], index), 1)
    rows, times = np.unique(weights, axis=0, return_counts=True)
    moved = rows.any(axis=1)
    columns = np.ascontiguousarray(rows[moved].T)
    return *np.divmod(known, kh * kw), columns, times[moved].astype(np.float32)


def generated(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the subgroup of D4 that the given elements generate.

    Args:
      names: elements of D4; an empty sequence stands for all of D4.

    Returns:
      The names of the subgroup's elements, in the order of `D4`.

    Raises:
      ValueError: if a name is unknown.

    >>> generated(["r90"])
    ('e', 'r90', 'r180', 'r270')
    """
    for name in names:
        _require_known(name)
    if not names:
        return D4
    # A 2×2 grid is enough: every element but the identity changes it.
    orders = {name: tuple(row) for name, row in zip(D4, cell_permutations(2, 2), strict=True)}
    found, new = {orders["e"]}, {orders[name] for name in names}
    while not new <= found:
        found |= new
        new = {tuple(one[cell] for cell in other) for one in found for other in found}
    return tuple(name for name in D4 if orders[name] in found)


def places(names: Sequence[str], kh: int, kw: int) -> np.ndarray:
    """Returns the indices of a generated subgroup within ``elements(kh, kw)``.

    Args:
      names: as in `generated`.
      kh: number of rows.
      kw: number of columns.

    Returns:
      Indices, the identity's first. Elements that do not apply to the kernel's shape are left out;
      the others form a group again.
    """
    group, known = generated(names), elements(kh, kw)
    return np.array([known.index(name) for name in group if name in known])


def transform(kernel: jax.Array, name: str) -> jax.Array:
    """Applies one element of D4 to a kernel.

    Args:
      kernel: (..., k, k), any dtype; (..., kh, kw) with kh ≠ kw for the elements of `RECTANGLE`.
      name: one of `D4`.

    Returns:
      The transformed kernel, same shape and dtype.

    Raises:
      ValueError: if the name is unknown or does not apply to a kernel of this shape.

    >>> import numpy as np
    >>> transform(np.array([[1, 2], [3, 4]]), "r90")
    Array([[2, 4],
           [1, 3]], dtype=int32)
    """
    _require_known(name)
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has the axes (..., kh, kw), got shape {kernel.shape}")
    kh, kw = kernel.shape[-2:]
    names = elements(kh, kw)
    if name not in names:
        raise ValueError(f"{name} needs a square kernel, got {kh}×{kw}; {', '.join(names)} apply")
    order = cell_permutations(kh, kw)[names.index(name)]
    return kernel.reshape(*kernel.shape[:-2], kh * kw)[..., order].reshape(kernel.shape)


def spread_over_d4(values: jax.Array, kh: int, kw: int) -> jax.Array:
    """Expands one value per applicable element to one per element of D4, NaN for the others.

    Args:
      values: (..., len(elements(kh, kw))) float32.
      kh: number of rows.
      kw: number of columns.

    Returns:
      (..., 8) float32, in the order of `D4`.
    """
    if kh == kw:
        return values
    missing = jnp.full((*values.shape[:-1], 1), jnp.nan, values.dtype)
    index = [RECTANGLE.index(name) if name in RECTANGLE else len(RECTANGLE) for name in D4]
    return jnp.concatenate([values, missing], axis=-1)[..., np.array(index)]


def _require_known(name: str) -> None:
    if name not in D4:
        raise ValueError(f"unknown transform {name!r}; the elements of D4 are {', '.join(D4)}")
