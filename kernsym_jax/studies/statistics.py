"""Estimates from a few seeds or runs, each with its interval and p-value, and Holm's correction.

A handful of seeds is all that a study has. The paired t test decides: it is exact for normal
differences, and measures are averages over many weights and images. Exact sign flips, which assume
nothing but symmetry, cannot fall below p = 2/2ⁿ, 0.25 of three seeds and 0.06 of five; their
p-value and the percentile bootstrap, which is too narrow for so few, are beside it as checks.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

_DRAWS = 5_000
_FLIPS_UP_TO = 16
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An effect with what speaks for and against it; None where there is too little to tell.

    Attributes:
      effect: the mean difference, or the correlation.
      low: lower end of its interval, by the distribution that gives the p-value.
      high: upper end.
      bootstrap_low: lower end of the percentile bootstrap's interval.
      bootstrap_high: upper end.
      p: two-sided.
      p_sign_flip: two-sided, of a contrast.
      n: seeds or runs.
      same_sign: how many of the differences have the sign of their mean.
    """

    effect: float | None
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    p: float | None = None
    p_sign_flip: float | None = None
    n: int = 0
    same_sign: int | None = None


def paired(differences: Sequence[float], coverage: float = 0.95) -> Estimate:
    """The mean of differences, one for each seed, and a paired t test of it against 0.

    Args:
      differences: (n,) one number per seed.
      coverage: of the intervals.

    Returns:
      The estimate. Without variation over the seeds there is nothing to test with, so no p-value.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    n = len(values)
    if n == 0:
        return Estimate(None)
    effect = float(values.mean())
    same = int((np.sign(values) == np.sign(effect)).sum())
    error = float(values.std(ddof=1)) / np.sqrt(n) if n > 1 else 0.0
    # Rounding alone makes differences that are equal differ in their last digits.
    if error <= 1e-12 * max(abs(effect), 1e-300):
        return Estimate(effect, n=n, same_sign=same)
    half = float(stats.t.ppf((1 + coverage) / 2, n - 1)) * error
    low, high = bootstrap(lambda x: x.mean(axis=-1), [values], coverage)
    return Estimate(
        effect,
        effect - half,
        effect + half,
        low,
        high,
        float(2 * stats.t.sf(abs(effect) / error, n - 1)),
        sign_flip_p(values),
        n,
        same,
    )


def sign_flip_p(differences: np.ndarray) -> float:
    """The share of sign patterns whose mean is at least as far from 0; exact up to 16 differences.

    Args:
      differences: (n,).

    Returns:
      The two-sided p-value; by 5,000 random patterns where there are more than 16 differences.
    """
    n = len(differences)
    if n <= _FLIPS_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        drawn = np.random.default_rng(_SEED).choice((1.0, -1.0), (_DRAWS, n))
        signs = np.concatenate([np.ones((1, n)), drawn])
    means = np.abs(signs @ differences)
    return float((means >= abs(differences.sum()) * (1 - 1e-12)).mean())


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    given: Sequence[Sequence[float]] = (),
    method: str = "spearman",
    coverage: float = 0.95,
) -> Estimate:
    """A correlation over runs, partial if something is held fixed.

    Args:
      x: (n,) a measure.
      y: (n,) another.
      given: (k, n) what is held fixed: its linear part is removed from both (of ranks, from the
        ranks).
      method: ``pearson`` or ``spearman``.
      coverage: of the intervals.

    Returns:
      The estimate: its interval by Fisher's z, its p-value by t with n − 2 − k degrees of freedom.

    Reference: Fisher, "The distribution of the partial correlation coefficient", Metron 1924.
    """
    from scipy import stats

    columns = [np.asarray(column, np.float64) for column in (x, y, *given)]
    n = len(columns[0])
    rank = method == "spearman"
    fixed = np.linalg.matrix_rank(np.stack([np.ones(n), *columns[2:]])) - 1 if n else 0
    freedom = n - 2 - int(fixed)
    if freedom < 2:
        return Estimate(None, n=n)
    r = float(_correlate(rank, *columns))
    if np.isnan(r):
        return Estimate(None, n=n)
    low, high = bootstrap(lambda *c: _correlate(rank, *c), columns, coverage)
    if abs(r) > 1 - 1e-12:
        return Estimate(r, r, r, low, high, 0.0, None, n)
    # Ranks vary a little more than values do (Fieller, Hartley and Pearson, Biometrika 1957).
    half = stats.norm.ppf((1 + coverage) / 2) * np.sqrt((1.06 if rank else 1.0) / (freedom - 1))
    t = abs(r) * np.sqrt(freedom / (1 - r**2))
    return Estimate(
        r,
        float(np.tanh(np.arctanh(r) - half)),
        float(np.tanh(np.arctanh(r) + half)),
        low,
        high,
        float(2 * stats.t.sf(t, freedom)),
        None,
        n,
    )


def bootstrap(
    statistic: Callable[..., np.ndarray], samples: Sequence[np.ndarray], coverage: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap's interval; the same one every time.

    Args:
      statistic: takes the samples, each (..., n), and gives (...).
      samples: (n,) each; the same elements are drawn from all of them.
      coverage: of the interval.

    Returns:
      Its ends; draws in which the statistic is undefined do not count.
    """
    n = len(samples[0])
    chosen = np.random.default_rng(_SEED).integers(0, n, (_DRAWS, n))
    drawn = statistic(*(sample[chosen] for sample in samples))
    low, high = np.nanquantile(drawn, ((1 - coverage) / 2, (1 + coverage) / 2))
    return float(low), float(high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p-values of one family.

    Args:
      p_values: None for tests that could not be made: they are counted, lest leaving runs out make
        the others easier.

    Returns:
      The corrected p-values, in the same order.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def _correlate(rank: bool, x: np.ndarray, y: np.ndarray, *given: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where a column is constant."""
    from scipy import stats

    columns = [stats.rankdata(c, axis=-1) if rank else c for c in (x, y, *given)]
    centred = [column - column.mean(axis=-1, keepdims=True) for column in columns]
    basis: list[np.ndarray] = []
    # Gram and Schmidt: what is held fixed first, so that x and y keep what it does not explain.
    for column in (*centred[2:], *centred[:2]):
        left = column
        for unit in basis[: len(given)]:
            left = left - (left * unit).sum(axis=-1, keepdims=True) * unit
        norm = np.sqrt((left**2).sum(axis=-1, keepdims=True))
        whole = np.sqrt((column**2).sum(axis=-1, keepdims=True))
        unit = np.divide(left, norm, out=np.zeros_like(left), where=norm > 1e-9 * whole)
        basis.append(unit)
    defined = [(unit**2).sum(axis=-1) > 0.5 for unit in basis[-2:]]
    r = np.clip((basis[-2] * basis[-1]).sum(axis=-1), -1, 1)
    return np.where(defined[0] & defined[1], r, np.nan)
