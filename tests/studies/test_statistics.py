import itertools

import numpy as np
import pytest
from scipy import stats

from kernsym_jax.studies import statistics


def test_holm_gives_the_values_of_a_worked_example():
    # 4 tests: .01·4, .02·3, .03·2 (raised to what came before), .04·1 (likewise).
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_counts_tests_that_could_not_be_made():
    assert statistics.holm([None, 0.01, None]) == [None, pytest.approx(0.03), None]


def test_a_paired_estimate_is_scipys_t_test_of_the_differences():
    differences = [0.3, 0.1, 0.25, 0.4, -0.05]
    found = statistics.paired(differences)
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    assert found.effect == pytest.approx(0.2)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.n, found.same_sign) == (5, 4)


def test_sign_flips_are_counted_exactly():
    # Of the 2⁵ patterns only all plus and all minus reach the sum of five positive differences.
    assert statistics.paired([1.0, 2, 3, 4, 5]).p_sign_flip == pytest.approx(2 / 32)
    # ±1 ±1 ±2 reaches 2 in absolute value in every pattern but those that sum to 0.
    assert statistics.sign_flip_p(np.array([1.0, -1, 2])) == pytest.approx(6 / 8)
    many = np.random.default_rng(0).normal(1.0, 1.0, 30)
    assert statistics.sign_flip_p(many) < 0.01


def test_differences_that_are_all_the_same_have_no_p_value():
    found = statistics.paired([0.1 + 0.2, 0.3, 0.3])
    assert found.effect == pytest.approx(0.3)
    assert found.p is None
    assert found.low is None
    assert statistics.paired([]).effect is None
    assert statistics.paired([0.5]).p is None


def test_the_bootstrap_of_three_seeds_is_near_the_exact_one():
    values = np.array([0.1, 0.5, 0.9])
    exact = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    low, high = statistics.bootstrap(lambda x: x.mean(axis=-1), [values], 0.8)
    assert low == pytest.approx(np.quantile(exact, 0.1), abs=0.02)
    assert high == pytest.approx(np.quantile(exact, 0.9), abs=0.02)
    assert statistics.bootstrap(lambda x: x.mean(axis=-1), [values], 0.8) == (low, high)


def test_the_bootstrap_of_many_is_scipys():
    values = np.random.default_rng(3).normal(size=60)
    low, high = statistics.bootstrap(lambda x: x.mean(axis=-1), [values])
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_correlations_are_scipys(method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = 0.6 * x + rng.normal(size=20)
    found = statistics.correlation(x, y, method=method)
    theirs = (stats.pearsonr if method == "pearson" else stats.spearmanr)(x, y)
    assert found.effect == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    if method == "pearson":
        interval = theirs.confidence_interval()
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_a_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(1)
    z = rng.normal(size=40)
    x, y = z + 0.3 * rng.normal(size=40), z + 0.3 * rng.normal(size=40)
    plain, partial = (statistics.correlation(x, y, given, "pearson") for given in ([], [z]))
    design = np.stack([np.ones(40), z], axis=1)
    residuals = [v - design @ np.linalg.lstsq(design, v)[0] for v in (x, y)]
    r = np.corrcoef(residuals)[0, 1]
    assert plain.effect > 0.8
    assert partial.effect == pytest.approx(r)
    t = abs(r) * np.sqrt(37 / (1 - r**2))
    assert partial.p == pytest.approx(2 * stats.t.sf(t, 37))


def test_holding_fixed_what_is_constant_changes_nothing():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 12))
    assert statistics.correlation(x, y, [np.ones(12)]) == statistics.correlation(x, y)


def test_a_correlation_with_a_constant_is_undefined_and_few_runs_have_none():
    assert statistics.correlation(np.arange(9), np.ones(9)).effect is None
    assert statistics.correlation([1.0, 2, 3], [3.0, 1, 2]).effect is None
