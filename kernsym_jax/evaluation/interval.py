"""Confidence intervals over images."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
_CELLS = 2**22


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images with its confidence interval, all as shares of 1.

    Attributes:
      value: the mean; NaN without images.
      low: lower end of the interval.
      high: upper end.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name, for JSON."""
        return dataclasses.asdict(self)


def wilson(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share.

    Args:
      successes: counts, any shape.
      trials: counts, same shape; NaN results where there are none.

    Returns:
      The lower and the upper ends, float64, of the same shape.

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22, 1927.

    >>> low, high = wilson(8, 10)
    >>> print(f"{low:.4f} {high:.4f}")
    0.4902 0.9433
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + z**2 / 2) / (n + z**2)
        half = z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    # These ends are exact, but for rounding.
    low, high = np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def normal(sums: Any, squares: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
    """The normal interval of a mean of shares, cut to 0 to 1.

    Args:
      sums: of the shares, any shape.
      squares: sums of their squares, same shape.
      counts: of the shares, same shape; NaN results where there are none.

    Returns:
      The lower and the upper ends, float64, of the same shape.

    >>> low, high = normal(4.5, 4.25, 5)
    >>> print(f"{low:.4f} {high:.4f}")
    0.7247 1.0000
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    n = np.asarray(counts, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.asarray(sums, np.float64) / n
        variance = np.maximum(np.asarray(squares, np.float64) / n - mean**2, 0)
        half = z * np.sqrt(variance / n)
    return np.maximum(mean - half, 0), np.minimum(mean + half, 1)


def share(successes: np.ndarray) -> Estimate:
    """A share of images with Wilson's interval.

    Args:
      successes: (n,) bool, one per image.
    """
    count, total = int(np.sum(successes)), len(successes)
    low, high = wilson(count, total)
    return Estimate(count / total if total else float("nan"), float(low), float(high))


def bootstrap(
    values: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Estimate]:
    """Means over images with percentile intervals of the bootstrap over images.

    All columns share their resamples. Where every image has the same value the interval is that
    value: a bootstrap knows of nothing that was not seen.

    Args:
      values: (n, k) floats, a row per image.
      resamples: how many.
      seed: of the resamples.
      of: what is estimated instead of the means themselves, a function of them from (r, k) to
        (r, m). A resample for which it is NaN does not count.

    Returns:
      k estimates, or m.

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, np.float64)
    total, columns = values.shape
    if not total:
        wanted = columns if of is None else of(np.full((1, columns), np.nan)).shape[1]
        return [Estimate(*[float("nan")] * 3)] * wanted
    random, even = np.random.default_rng(seed), np.full(total, 1 / total)
    means: list[np.ndarray] = []
    at_once = max(1, _CELLS // total)
    for start in range(0, resamples, at_once):
        counts = random.multinomial(total, even, min(at_once, resamples - start))
        means.append(counts @ values / total)
    resampled, middle = np.concatenate(means), values.mean(axis=0)
    if of is not None:
        resampled, middle = of(resampled), of(middle[None])[0]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.full((2, *middle.shape), np.nan)
    known = np.isfinite(middle) & np.isfinite(resampled).any(axis=0)
    low[known], high[known] = np.nanquantile(resampled[:, known], (tail, 1 - tail), axis=0)
    # A column without spread has a mean that its resamples equal but for rounding.
    low, high = np.minimum(low, middle), np.maximum(high, middle)
    return [Estimate(*map(float, row)) for row in zip(middle, low, high, strict=True)]
