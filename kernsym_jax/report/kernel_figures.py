"""Figures of many kernels of one shape at once, and the scores of random kernels beside them."""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kernsym_jax import symmetry

NULL_DRAWS = 20_000
"""Random kernels that make up a null."""

# Kernels of 20×20 cells have a full null. Larger ones would take seconds and gigabytes each.
_NULL_CELLS = NULL_DRAWS * 20 * 20
_FEWEST_DRAWS = 20
_NULL_SEED = 0
# A compiled program measures kernels in pieces of this many cells, which fit the processor's cache,
# or up to 64 of larger kernels.
_BATCH_CELLS = 36_864
_LARGEST_BATCH = 1 << 20


def null_draws(kh: int, kw: int) -> int:
    """Returns how many random kernels of kh rows and kw columns make up a null."""
    return max(_FEWEST_DRAWS, min(NULL_DRAWS, _NULL_CELLS // (kh * kw)))


def few_draws(kh: int, kw: int) -> str:
    """Returns a note on the null of a kernel so large that the null is small; else nothing."""
    draws = null_draws(kh, kw)
    return f"chance is that of {draws} random kernels only" if draws < NULL_DRAWS else ""


@functools.lru_cache(maxsize=64)
def chance_scores(kh: int, kw: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scores of `null_draws` random kernels, plain and centred; always the same ones.

    Args:
      kh: rows.
      kw: columns.

    Returns:
      Two sorted float32 arrays.
    """
    kernels = np.random.default_rng(_NULL_SEED).normal(size=(null_draws(kh, kw), kh, kw))
    block = kernels.astype(np.float32), len(symmetry.FIELDS)
    (figures,) = measure_blocks([block], kh, kw)
    names = ("score", "score_centered")
    plain, centred = (np.sort(figures[:, symmetry.FIELDS.index(name)]) for name in names)
    return plain, centred


class ChanceLevels(NamedTuple):
    """Levels of the scores of random kernels.

    Attributes:
      mean: mean score.
      q95: 95 % point of the score.
      centred_q95: 95 % point of the centred score.
    """

    mean: float
    q95: float
    centred_q95: float


@functools.lru_cache(maxsize=64)
def chance_levels(kh: int, kw: int) -> ChanceLevels:
    """Returns the levels of `chance_scores` for kernels of kh rows and kw columns."""
    plain, centred = chance_scores(kh, kw)
    quantiles = (float(np.quantile(scores, 0.95)) for scores in (plain, centred))
    return ChanceLevels(float(plain.mean()), *quantiles)


def beside_chance(score: float | None, kh: int, kw: int) -> dict[str, float | None]:
    """Describes the null of a kernel shape, and computes the p-value of a score under it.

    Args:
      score: score of a mean kernel; None if undefined.
      kh: rows.
      kw: columns.

    Returns:
      ``null_mean``, ``null_q95`` and ``p_value``.
    """
    (null, _), levels = chance_scores(kh, kw), chance_levels(kh, kw)
    # The draws are sorted, so a search counts those below the score.
    below = None if score is None else int(np.searchsorted(null, np.float32(score)))
    return {
        "null_mean": levels.mean,
        "null_q95": levels.q95,
        "p_value": None if below is None else (1 + len(null) - below) / (1 + len(null)),
    }


def measure_blocks(
    blocks: Iterable[tuple[np.ndarray, int]], kh: int, kw: int
) -> Iterator[np.ndarray]:
    """Measures kernels of one shape with one compiled program.

    Args:
      blocks: kernels (n, kh, kw) float32, each with the number of leading `symmetry.FIELDS` that
        are wanted.
      kh: rows.
      kw: columns.

    Yields:
      The figures of each block, (n, wanted) float32.
    """
    size = max(1, _BATCH_CELLS // (kh * kw), min(64, _LARGEST_BATCH // (kh * kw)))
    batch, filled = np.zeros((size, kh, kw), np.float32), 0
    # Unfinished blocks: number of missing rows, wanted fields, and the rows so far.
    waiting: collections.deque[list[Any]] = collections.deque()

    def measure_batch() -> Iterator[np.ndarray]:
        rows, start = np.asarray(_figure_rows(batch)), 0
        while waiting and start < filled:
            missing, wanted, parts = waiting[0]
            taken = min(missing, filled - start)
            parts.append(rows[start : start + taken, :wanted].copy())
            start, waiting[0][0] = start + taken, missing - taken
            if taken == missing:
                yield np.concatenate(waiting.popleft()[2])

    for block, wanted in blocks:
        waiting.append([len(block), wanted, []])
        while len(block):
            taken = min(size - filled, len(block))
            batch[filled : filled + taken] = block[:taken]
            filled, block = filled + taken, block[taken:]
            if filled == size:
                yield from measure_batch()
                filled = 0
    if filled:
        yield from measure_batch()


@jax.jit
def _figure_rows(kernels: jax.Array) -> jax.Array:
    return symmetry.kernel_symmetry(kernels).row
