"""Random numbers that are the same on every machine and with every version of NumPy."""

import enum
import math
from collections.abc import Sequence

import numpy as np


class Purpose(enum.IntEnum):
    """What numbers are drawn for; streams of different purposes share nothing."""

    ORDER = 0
    CROP = 1
    LABELS = 2
    NOISE = 3
    TEXTURE = 4
    TEXTURE_CLASS = 5


def words(count: int, purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws 64-bit words.

    Args:
      count: how many.
      purpose: of the stream.
      seed: of the stream, 0 to 2⁶⁴ − 1.
      index: of the stream among those of the seed.

    Returns:
      (count,) uint64.
    """
    # Raw words, because NumPy promises their stream for ever, but not that of its distributions.
    generator = np.random.Philox(
        key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, purpose], np.uint64)
    )
    return generator.random_raw(count)


def uniforms(shape: Sequence[int], purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws float64 numbers of a shape from 0 to 1, 1 excluded, from the stream of `words`."""
    drawn = words(math.prod(shape), purpose, seed, index) >> np.uint64(11)
    return drawn.reshape(shape) * 2.0**-53


def permutation(size: int, purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws an order of ``size`` things, (size,) int32, from the stream of `words`."""
    return np.argsort(words(size, purpose, seed, index), kind="stable").astype(np.int32)
