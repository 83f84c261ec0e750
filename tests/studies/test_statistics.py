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
    found = statistics.paired(values, 0.8)
    assert found.bootstrap_low == pytest.approx(np.quantile(exact, 0.1), abs=0.02)
    assert found.bootstrap_high == pytest.approx(np.quantile(exact, 0.9), abs=0.02)
    assert statistics.paired(values, 0.8) == found


@pytest.mark.parametrize("method", ["mean", "pearson"])
def test_the_bootstrap_of_many_is_scipys(method):
    rng = np.random.default_rng(3)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    if method == "mean":
        found = statistics.paired(x)
        sample, statistic = (x,), np.mean
    else:
        found = statistics.correlation(x, y, method="pearson")
        sample, statistic = (x, y), lambda a, b: stats.pearsonr(a, b).statistic
    theirs = stats.bootstrap(
        sample, statistic, method="percentile", paired=True, vectorized=method == "mean",
        n_resamples=2000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ends = (found.bootstrap_low, found.bootstrap_high)
    assert ends == pytest.approx((theirs.low, theirs.high), abs=0.03)


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


def test_intervals_at_holms_levels_exclude_zero_exactly_where_holm_rejects():
    rng = np.random.default_rng(7)
    for _ in range(200):
        shifts = rng.choice([0.0, 0.5, 1.0], 5)
        effects = [statistics.paired(rng.normal(shift, 1, 9)) for shift in shifts]
        p_values = [effect.p for effect in effects]
        levels = statistics.holm_levels(p_values, 0.05)
        for effect, level, corrected in zip(
            effects, levels, statistics.holm(p_values), strict=True
        ):
            low, high = effect.interval(1 - level)
            assert (low > 0 or high < 0) == (corrected <= 0.05)
    assert statistics.holm_levels([0.001, 0.03, 0.02, None], 0.05) == pytest.approx(
        [0.05 / 4, 0.05 / 3, 0.05 / 3, 0.05 / 3]
    )


def test_two_one_sided_tests_go_with_the_interval_of_twice_the_error():
    found = statistics.paired([0.01, -0.02, 0.03, 0.0, 0.01])
    for margin in (0.02, 0.05, 0.1):
        p = found.equivalence_p(margin)
        low, high = found.interval(1 - 2 * p)
        assert max(abs(low), abs(high)) == pytest.approx(margin)
    # By hand: the nearer bound lies t standard errors away.
    t = (0.05 - found.effect) / found.error
    assert found.equivalence_p(0.05) == pytest.approx(stats.t.sf(t, 4))
    r = statistics.correlation(np.arange(30), np.random.default_rng(0).normal(size=30))
    low, high = r.interval(1 - 2 * r.equivalence_p(0.6))
    assert max(abs(low), abs(high)) == pytest.approx(0.6)


@pytest.mark.parametrize(("n", "smallest"), [(2, 0.01), (4, 0.5), (8, 0.01), (8, 1.5)])
def test_a_contrast_of_the_detectable_size_is_found_in_four_of_five_simulations(n, smallest):
    pilot, level, sd = statistics.Pilot(0.9, 0.8, "made up"), 0.0125, 0.8
    power = statistics.contrast_power(pilot, n, level, "above", smallest)
    rng = np.random.default_rng(n)

    def found(effect):
        values = rng.normal(effect, sd, (40_000, n))
        error = values.std(axis=1, ddof=1) / np.sqrt(n)
        mean = values.mean(axis=1)
        needed = stats.t.ppf(1 - level / 2, n - 1) * error
        return np.mean(mean >= np.maximum(needed, smallest))

    assert found(power.detectable) == pytest.approx(0.8, abs=0.01)
    assert found(0.9) == pytest.approx(power.power, abs=0.01)
    assert found(0.5 * power.detectable) < 0.6
    mirrored = statistics.contrast_power(
        statistics.Pilot(-0.9, 0.8, ""), n, level, "below", smallest
    )
    assert mirrored.power == pytest.approx(power.power)


def test_the_margin_of_an_equivalence_claim_is_confirmed_in_four_of_five_simulations():
    n, level, sd = 6, 0.01, 0.3
    power = statistics.contrast_power(statistics.Pilot(0, sd, ""), n, level, "zero", 0.5)
    values = np.random.default_rng(1).normal(0, sd, (40_000, n))
    error = values.std(axis=1, ddof=1) / np.sqrt(n)
    reach = np.abs(values.mean(axis=1)) + stats.t.ppf(1 - level, n - 1) * error
    assert np.mean(reach < power.detectable) == pytest.approx(0.8, abs=0.01)
    assert np.mean(reach < 0.5) == pytest.approx(power.power, abs=0.01)


@pytest.mark.parametrize("smallest", [0.1, 0.5])
def test_a_correlation_of_the_detectable_size_is_found_in_four_of_five_simulations(smallest):
    n, level = 28, 0.025
    power = statistics.correlation_power(n - 2, level, "above", smallest, rank=False)
    rng = np.random.default_rng(2)
    r = power.detectable
    x = rng.normal(size=(4000, n))
    y = r * x + np.sqrt(1 - r**2) * rng.normal(size=(4000, n))
    measured = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    t = measured * np.sqrt((n - 2) / (1 - measured**2))
    found = (stats.t.sf(t, n - 2) <= level / 2) & (measured >= smallest)
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_a_correlation_with_a_constant_is_undefined_and_few_runs_have_none():
    assert statistics.correlation(np.arange(9), np.ones(9)).effect is None
    assert statistics.correlation([1.0, 2, 3], [3.0, 1, 2]).effect is None
