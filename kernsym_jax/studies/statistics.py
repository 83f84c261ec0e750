"""Effects over a few seeds: intervals, p-values, Holm's correction and power.

Each claim has one primary test, and Holm's correction is over the primary tests of a study. The
paired t test decides: it is exact for normal differences, and measures are averages over many
weights and images. Two checks that assume less stand beside it: exact sign flips, which cannot fall
below p = 2/2ⁿ, and the percentile bootstrap, which is too narrow for a few seeds.

An effect is expected above 0, below 0, or zero. "Zero" is an equivalence claim, tested by two
one-sided t tests against the smallest effect that matters (Schuirmann 1987). Every primary test has
an interval at the level at which Holm's procedure tests it, so that interval and verdict agree.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from kernsym_jax.evaluation.estimates import bootstrap

TARGET_POWER = 0.8
_RESAMPLES = 5_000
_FLIPS_UP_TO = 16
_SEED = 0
_NODES = 400


@dataclasses.dataclass(frozen=True)
class Effect:
    """An effect with its uncertainty; None where there are too few cases.

    Attributes:
      effect: the mean difference, or the correlation.
      low: lower end of its interval, by the distribution that gives the p-value.
      high: upper end.
      bootstrap_low: lower end of the percentile bootstrap's interval.
      bootstrap_high: upper end.
      p: two-sided p-value.
      p_sign_flip: two-sided, of a contrast.
      n: number of seeds, variants or families.
      same_sign: number of differences with the sign of their mean.
      error: standard error; of a correlation, that of Fisher's z.
      freedom: degrees of freedom of a contrast; None for a correlation, whose z is normal.
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
    error: float | None = None
    freedom: int | None = None

    def interval(self, coverage: float) -> tuple[float | None, float | None]:
        """Returns the interval of another coverage."""
        from scipy import stats

        if self.effect is None or self.error is None:
            return None, None
        if self.freedom is not None:
            half = float(stats.t.ppf((1 + coverage) / 2, self.freedom)) * self.error
            return self.effect - half, self.effect + half
        half = float(stats.norm.ppf((1 + coverage) / 2)) * self.error
        middle = np.arctanh(self.effect)
        return float(np.tanh(middle - half)), float(np.tanh(middle + half))

    def equivalence_p(self, margin: float) -> float | None:
        """Returns the p-value of two one-sided tests: is the effect within ±margin?"""
        from scipy import stats

        if self.effect is None or self.error is None:
            return None
        if self.freedom is not None:
            room = (margin - abs(self.effect)) / self.error
            return float(stats.t.sf(room, self.freedom))
        room = (np.arctanh(min(margin, 1 - 1e-12)) - abs(np.arctanh(self.effect))) / self.error
        return float(stats.norm.sf(room))


@dataclasses.dataclass(frozen=True)
class Pilot:
    """An effect in runs before the study, which do not count in it.

    Attributes:
      mean: the effect.
      sd: its standard deviation from seed to seed (or from family to family).
      source: which runs these were.

    >>> from kernsym_jax import studies
    >>> studies.Pilot(mean=0.03, sd=0.01, source="seeds 100 to 102 of size cpu").sd
    0.01
    """

    mean: float
    sd: float
    source: str


@dataclasses.dataclass(frozen=True)
class Power:
    """The power of a primary test, computed before the runs.

    Attributes:
      n: number of seeds, variants or families.
      level: two-sided level of the test, corrected for the other primary tests.
      detectable: the smallest effect that is found with a power of 80 %; of an equivalence claim,
        the smallest margin that is confirmed with that power if there is no effect.
      power: chance that the claim is supported if the pilot's effect is the true one, or of an
        equivalence claim if there is no effect; None for a correlation.
      sd: the pilot's standard deviation; None for a correlation.
      source: where that comes from.
    """

    n: int
    level: float
    detectable: float | None
    power: float | None = None
    sd: float | None = None
    source: str = ""


def paired(differences: Sequence[float], coverage: float = 0.95) -> Effect:
    """Returns the mean of differences with a paired t test against 0.

    Args:
      differences: (n,) one number per seed.
      coverage: coverage of the intervals.

    Returns:
      The effect. Without variation over the seeds there is no p-value and no interval.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    n = len(values)
    if n == 0:
        return Effect(None)
    mean = float(values.mean())
    same = int((np.sign(values) == np.sign(mean)).sum())
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    # Rounding makes equal differences vary in their last digits.
    if error <= 1e-12 * max(abs(mean), 1e-300):
        return Effect(mean, n=n, same_sign=same)
    resampled = bootstrap(values[:, None], _RESAMPLES, _SEED, confidence=coverage)[0]
    found = Effect(
        mean,
        bootstrap_low=resampled.low,
        bootstrap_high=resampled.high,
        p=float(2 * stats.t.sf(abs(mean) / error, n - 1)),
        p_sign_flip=sign_flip_p(values),
        n=n,
        same_sign=same,
        error=error,
        freedom=n - 1,
    )
    low, high = found.interval(coverage)
    return dataclasses.replace(found, low=low, high=high)


def sign_flip_p(differences: np.ndarray) -> float:
    """Returns the share of sign patterns whose mean is at least as far from 0.

    Args:
      differences: (n,).

    Returns:
      The two-sided p-value: exact up to 16 differences, else from 5,000 random patterns.
    """
    n = len(differences)
    if n <= _FLIPS_UP_TO:
        signs = _sign_patterns(n)
    else:
        drawn = np.random.default_rng(_SEED).choice((1.0, -1.0), (_RESAMPLES, n))
        signs = np.concatenate([np.ones((1, n)), drawn])
    means = np.abs(signs @ differences)
    return float((means >= abs(differences.sum()) * (1 - 1e-12)).mean())


@functools.lru_cache(maxsize=_FLIPS_UP_TO)
def _sign_patterns(n: int) -> np.ndarray:
    """Returns all 2ⁿ patterns of signs, (2ⁿ, n)."""
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    given: Sequence[Sequence[float]] = (),
    method: str = "spearman",
    coverage: float = 0.95,
) -> Effect:
    """Returns a correlation, partial if something is held fixed.

    Args:
      x: (n,) a measure.
      y: (n,) another measure.
      given: (k, n) what is held fixed: its linear part is removed from both (from the ranks, if the
        correlation is of ranks).
      method: ``pearson`` or ``spearman``.
      coverage: coverage of the intervals.

    Returns:
      The correlation with an interval by Fisher's z and a p-value by t with n − 2 − k degrees of
      freedom.

    Reference: Fisher, "The distribution of the partial correlation coefficient", Metron 1924.
    """
    from scipy import stats

    columns = [np.asarray(column, np.float64) for column in (x, y, *given)]
    n, rank = len(columns[0]), method == "spearman"
    fixed = np.linalg.matrix_rank(np.stack([np.ones(n), *columns[2:]])) - 1 if n else 0
    freedom = n - 2 - int(fixed)
    if freedom < 2:
        return Effect(None, n=n)
    table = np.stack([stats.rankdata(c) if rank else c for c in columns], axis=1)
    # Standardised, so that products neither vanish nor lose their digits.
    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    r = float(_partial(table.T @ table / n)[()])
    if np.isnan(r):
        return Effect(None, n=n)
    resampled = _resampled_correlation(table, coverage)
    if abs(r) > 1 - 1e-12:
        return Effect(r, r, r, *resampled, p=0.0, n=n)
    # Ranks vary a little more than values do (Fieller, Hartley and Pearson, Biometrika 1957).
    error = float(np.sqrt((1.06 if rank else 1.0) / (freedom - 1)))
    t = abs(r) * np.sqrt(freedom / (1 - r**2))
    p = float(2 * stats.t.sf(t, freedom))
    found = Effect(r, None, None, *resampled, p=p, n=n, error=error)
    low, high = found.interval(coverage)
    return dataclasses.replace(found, low=low, high=high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Applies Holm's step-down correction to the p-values of one family.

    Args:
      p_values: None for a test that could not be made. It still counts, so that leaving runs out
        does not make the other tests easier.

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


def holm_levels(p_values: Sequence[float | None], level: float) -> list[float]:
    """Returns the level at which Holm's procedure tests each member of a family.

    Args:
      p_values: as in `holm`.
      level: family-wise error.

    Returns:
      ``level`` / (m − r) for the test with the r-th smallest p-value while tests are rejected, and
      the level of the first that is not for all others. A two-sided interval of coverage 1 − level
      excludes 0 exactly if Holm rejects.
    """
    count = len(p_values)
    corrected = holm(p_values)
    rejected = sum(p is not None and p <= level for p in corrected)
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    ranks = {index: rank for rank, (_, index) in enumerate(order)}
    return [level / (count - min(ranks.get(i, count), rejected, count - 1)) for i in range(count)]


def contrast_power(pilot: Pilot, n: int, level: float, expected: str, smallest: float) -> Power:
    """Computes the power of a paired contrast by the rule of `decide`.

    Args:
      pilot: mean and sd of the contrast over seeds, from runs that do not count.
      n: number of seeds.
      level: two-sided level of the test.
      expected: ``above``, ``below`` or ``zero``.
      smallest: the smallest effect that matters.

    Returns:
      The power.
    """
    if n < 2:
        return Power(n, level, None, None, pilot.sd, pilot.source)
    if expected == "zero":
        power = _equivalence_chance(smallest, pilot.sd, n, level)
        found = _smallest(lambda margin: _equivalence_chance(margin, pilot.sd, n, level), pilot.sd)
    else:
        sign = -1 if expected == "below" else 1
        power = _chance(sign * pilot.mean, pilot.sd, n, level, smallest)
        found = _smallest(lambda e: _chance(e, pilot.sd, n, level, smallest), pilot.sd)
    return Power(n, level, found, power, pilot.sd, pilot.source)


def correlation_power(
    freedom: int, level: float, expected: str, smallest: float, *, rank: bool
) -> Power:
    """Computes the smallest correlation that is found with a power of 80 %, by Fisher's z.

    Args:
      freedom: degrees of freedom, n − 2 without anything held fixed.
      level: two-sided level of the test.
      expected: ``above``, ``below`` or ``zero``.
      smallest: the smallest correlation that matters.
      rank: whether the correlation is Spearman's.

    Returns:
      The power, without a pilot.
    """
    from scipy import stats

    if freedom < 2:
        return Power(freedom + 2, level, None)
    error = np.sqrt((1.06 if rank else 1.0) / (freedom - 1))
    if expected == "zero":
        # |z| < margin − z_crit·error with probability 0.8.
        room = stats.norm.ppf(1 - level) + stats.norm.ppf((1 + TARGET_POWER) / 2)
    else:
        needed = max(float(stats.norm.ppf(1 - level / 2)), float(np.arctanh(smallest)) / error)
        room = needed + stats.norm.ppf(TARGET_POWER)
    return Power(freedom + 2, level, float(np.tanh(room * error)))


def _chance(effect: float, sd: float, n: int, level: float, smallest: float) -> float:
    """Returns the chance that the interval excludes 0 and the mean is at least the smallest."""
    from scipy import stats

    errors = _errors(sd, n)
    needed = np.maximum(smallest, stats.t.ppf(1 - level / 2, n - 1) * errors)
    return float(np.mean(stats.norm.sf((needed - effect) * np.sqrt(n) / sd)))


def _equivalence_chance(margin: float, sd: float, n: int, level: float) -> float:
    """Returns the chance that two one-sided tests show the effect within the margin if it is 0."""
    from scipy import stats

    room = margin - stats.t.ppf(1 - level, n - 1) * _errors(sd, n)
    return float(np.mean(np.maximum(0, 2 * stats.norm.cdf(room * np.sqrt(n) / sd) - 1)))


def _errors(sd: float, n: int) -> np.ndarray:
    """Returns evenly spread quantiles of the estimated standard error of a mean."""
    from scipy import stats

    at = (np.arange(_NODES) + 0.5) / _NODES
    return sd * np.sqrt(stats.chi2.ppf(at, n - 1) / (n - 1) / n)


def _smallest(chance: Callable[[float], float], scale: float) -> float:
    """Returns, by bisection, the smallest positive number whose chance is `TARGET_POWER`."""
    low, high = 0.0, scale
    while chance(high) < TARGET_POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if chance(middle) < TARGET_POWER:
            low = middle
        else:
            high = middle
    return high


def _resampled_correlation(table: np.ndarray, coverage: float) -> tuple[float, float]:
    """Returns the bootstrap's interval of a correlation of the first two columns."""
    columns = table.shape[1]
    i, j = np.triu_indices(columns)
    products = table[:, i] * table[:, j]

    def of(means: np.ndarray) -> np.ndarray:
        first, second = means[:, :columns], means[:, columns:]
        moments = np.zeros((len(means), columns, columns))
        moments[:, i, j] = moments[:, j, i] = second
        return _partial(moments - first[:, :, None] * first[:, None, :])[:, None]

    rows = np.concatenate([table, products], axis=1)
    found = bootstrap(rows, _RESAMPLES, _SEED, of=of, confidence=coverage)[0]
    return found.low, found.high


def _partial(covariance: np.ndarray) -> np.ndarray:
    """Returns the correlation of the first two of k variables given the others.

    Args:
      covariance: (..., k, k).

    Returns:
      (...) in [-1, 1]; NaN where one of the two has no variation of its own.
    """
    # What the others explain is removed one after another; a constant one explains nothing.
    left = np.array(covariance, np.float64)
    whole = np.einsum("...ii->...i", left).copy()
    for k in range(left.shape[-1] - 1, 1, -1):
        pivot = left[..., k, k]
        usable = pivot > 1e-9 * np.maximum(whole[..., k], 1e-300)
        column = left[..., :, k]
        scaled = column / np.where(usable, pivot, 1.0)[..., None]
        step = column[..., :, None] * scaled[..., None, :]
        left = left - np.where(usable[..., None, None], step, 0.0)
    x, y, xy = left[..., 0, 0], left[..., 1, 1], left[..., 0, 1]
    known = (x > 1e-9 * whole[..., 0]) & (y > 1e-9 * whole[..., 1])
    known &= (whole[..., 0] > 0) & (whole[..., 1] > 0)
    r = xy / np.sqrt(np.where(known, x * y, 1.0))
    return np.where(known, np.clip(r, -1, 1), np.nan)
