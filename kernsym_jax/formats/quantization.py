"""Weights kept as integers, made numbers again."""

import numpy as np

from kernsym_jax.formats.arrays import StoredArray


def dequantized(
    array: StoredArray, scale: np.ndarray, zero: np.ndarray | None, axis: int
) -> StoredArray:
    """(array − zero) · scale in float32, computed when it is read.

    Args:
      array: integers.
      scale: one number, or (n,), one for each index of the axis.
      zero: the integers that stand for 0, likewise; None for 0 itself.
      axis: which axis has scales of its own.

    Raises:
      ValueError: if there are more scales than one and not as many as the axis is long.
    """
    zero = np.zeros(1) if zero is None or not zero.size else zero
    for values in (scale, zero):
        fits = -len(array.shape) <= axis < len(array.shape) and array.shape[axis] == values.size
        if values.size != 1 and not fits:
            raise ValueError(f"{values.size} scales for axis {axis} of an array {array.shape}")

    def along(values: np.ndarray) -> np.ndarray:
        sizes = [1] * len(array.shape)
        if values.size > 1:
            sizes[axis] = values.size
        return values.astype(np.float32).reshape(sizes)

    def read() -> np.ndarray:
        return (array.read().astype(np.float32) - along(zero)) * along(scale)

    return StoredArray(array.shape, np.dtype(np.float32), read)
