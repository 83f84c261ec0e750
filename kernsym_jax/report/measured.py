"""The figures of many kernels at once, and of random ones to hold them against."""

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from kernsym_jax import symmetry
from kernsym_jax.weights import Weights

NULL_DRAWS = 20_000
_NULL_SEED = 0
# Kernels are measured so many cells at a time: one compiled program for each kernel shape, working
# on pieces small enough for the processor's cache.
_BATCH_CELLS = 36_864


def measure_layers(weights: Weights) -> dict[str, dict[str, float | None]]:
    """Measures a network's mean kernels, the kernels of its single outputs, and its single kernels.

    Args:
      weights: from `weights.read`.

    Returns:
      layer -> `symmetry.FIELDS` of its mean kernel, ``neuron_score`` and ``single_score``; None
      where undefined.
    """
    by_shape: dict[tuple[int, int], list[str]] = {}
    for layer, kernel in weights.kernels.items():
        by_shape.setdefault(kernel.shape[:2], []).append(layer)
    measured = {}
    for shape, layers in by_shape.items():
        kernels = (weights.kernels[layer].weight for layer in layers)
        blocks = itertools.chain.from_iterable(map(_kernels_of, kernels))
        figures = iter(_measure_blocks(blocks, *shape))
        for layer in layers:
            of_mean, of_neurons, of_singles = itertools.islice(figures, 3)
            row = dict(zip(symmetry.FIELDS, map(_number, of_mean[0]), strict=True))
            row["neuron_score"] = _mean_score(of_neurons)
            row["single_score"] = _mean_score(of_singles)
            measured[layer] = row
    return measured


def mean_kernel(weight: np.ndarray) -> np.ndarray:
    """The mean kernel (kh, kw) float32 of a weight in host memory, added up in double precision."""
    # Weights of a run that diverged are infinite or NaN, and so is their mean.
    with np.errstate(invalid="ignore", over="ignore"):
        return weight.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)


@functools.lru_cache(maxsize=64)
def null_scores(kh: int, kw: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted scores of `NULL_DRAWS` random kernels, plain and centred; always the same ones.

    Args:
      kh: rows.
      kw: columns.

    Returns:
      Two sorted float32 arrays.
    """
    kernels = np.random.default_rng(_NULL_SEED).normal(size=(NULL_DRAWS, kh, kw))
    block = kernels.astype(np.float32), len(symmetry.FIELDS)
    (figures,) = _measure_blocks([block], kh, kw)
    names = ("score", "score_centered")
    plain, centred = (np.sort(figures[:, symmetry.FIELDS.index(name)]) for name in names)
    return plain, centred


def beside_null(score: float | None, kh: int, kw: int) -> dict[str, float | None]:
    """The null of a kernel shape, and the p-value of a score under it.

    Args:
      score: of a mean kernel; None if undefined.
      kh: rows.
      kw: columns.

    Returns:
      ``null_mean``, ``null_q95`` and ``p_value``.
    """
    null, _ = null_scores(kh, kw)
    # How many of the sorted draws lie below the score, from which the p-value follows.
    below = None if score is None else int(np.searchsorted(null, np.float32(score)))
    return {
        "null_mean": float(null.mean()),
        "null_q95": float(np.quantile(null, 0.95)),
        "p_value": None if below is None else (1 + len(null) - below) / (1 + len(null)),
    }


def _kernels_of(weight: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The mean kernel, those of single outputs and the single kernels, each (n, kh, kw), and how
    many of the leading `symmetry.FIELDS` are wanted: of all but the first only the score."""
    yield mean_kernel(weight)[None], len(symmetry.FIELDS)
    yield np.moveaxis(weight.mean(axis=2, dtype=np.float32), -1, 0), 1
    yield np.moveaxis(weight, (2, 3), (1, 0)).reshape(-1, *weight.shape[:2]), 1


def _measure_blocks(
    blocks: Iterable[tuple[np.ndarray, int]], kh: int, kw: int
) -> Iterator[np.ndarray]:
    """Measures blocks of kernels (n, kh, kw), giving (n, wanted) leading fields for each."""
    size = max(64, _BATCH_CELLS // (kh * kw))
    batch, filled = np.zeros((size, kh, kw), np.float32), 0
    # Blocks that are not finished: rows still missing, fields wanted, and the rows so far.
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


def _mean_score(figures: np.ndarray) -> float | None:
    """The mean over the kernels whose score is defined."""
    scores = figures[:, 0].astype(np.float64)
    defined = ~np.isnan(scores)
    return float(scores[defined].mean()) if defined.any() else None


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
