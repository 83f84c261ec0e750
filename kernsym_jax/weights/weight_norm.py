"""Weights that a file keeps as a direction and a length, put together again."""

from collections.abc import Mapping

import numpy as np

from kernsym_jax.weights.stored_array import StoredArray

# PyTorch's older and newer way of naming (length, direction), and the weight's own name.
_PAIRS = (
    ("weight_g", "weight_v", "weight"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1", "weight"),
)


def merge(
    arrays: Mapping[str, StoredArray],
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Replaces the two parts of each weight-normalised kernel by the kernel.

    Args:
      arrays: name -> array.

    Returns:
      The arrays with ``weight`` in place of its direction, and the lengths' names -> why they are
      left out.

    Reference: Salimans & Kingma, "Weight Normalization", 2016.
    """
    merged: dict[str, StoredArray] = {}
    lengths: dict[str, str] = {}
    for name, array in arrays.items():
        parts = next((pair for pair in _PAIRS if name.endswith(pair[1])), None)
        length = arrays.get(name.removesuffix(parts[1]) + parts[0]) if parts else None
        if parts and length is not None and _goes_with(length, array):
            lengths[name.removesuffix(parts[1]) + parts[0]] = "part of a normalised weight"
            merged[name.removesuffix(parts[1]) + parts[2]] = _product(length, array)
        else:
            merged[name] = array
    return {n: a for n, a in merged.items() if n not in lengths}, lengths


def _goes_with(length: StoredArray, direction: StoredArray) -> bool:
    return len(length.shape) == len(direction.shape) and all(
        one in (1, size) for one, size in zip(length.shape, direction.shape, strict=True)
    )


def _product(length: StoredArray, direction: StoredArray) -> StoredArray:
    def read() -> np.ndarray:
        values = direction.read().astype(np.float32)
        scale = length.read().astype(np.float32)
        axes = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
        norm = np.sqrt(np.sum(values**2, axis=axes, keepdims=True))
        return values * (scale / np.where(norm == 0, np.float32(1), norm))

    return StoredArray(direction.shape, np.dtype(np.float32), read)
