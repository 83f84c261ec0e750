import json
import math

import numpy as np
import pytest
from scipy import stats

from kernsym_jax.evaluation import Shifts, bootstrap, share, wilson


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 10), (1, 10), (8, 10), (10, 10), (812, 1000)]
)
def test_wilsons_interval_is_that_of_scipy(successes, trials):
    low, high = wilson(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=1e-12)


def test_no_trials_have_no_interval():
    low, high = wilson([0, 1], [0, 2])
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, False]
    assert math.isnan(share(np.zeros(0, bool)).value)
    assert math.isnan(bootstrap(np.zeros((0, 2)))[1].value)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_large_sample():
    values = np.random.default_rng(1).uniform(size=(2000, 2)) ** [1, 3]
    for column, estimate in zip(values.T, bootstrap(values), strict=True):
        half = 1.96 * column.std() / math.sqrt(len(column))
        assert estimate.value == pytest.approx(column.mean(), abs=1e-12)
        assert estimate.low == pytest.approx(column.mean() - half, abs=0.15 * half)
        assert estimate.high == pytest.approx(column.mean() + half, abs=0.15 * half)


def test_bootstrap_intervals_are_the_same_every_time():
    values = np.random.default_rng(1).uniform(size=(50, 1))
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)


def test_values_without_spread_have_no_width():
    (estimate,) = bootstrap(np.full((7, 1), 0.1))
    assert estimate.as_dict() == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert estimate.low <= estimate.value <= estimate.high


def test_the_figures_of_classes_add_up_to_those_of_all_images(results):
    found = results(Shifts("zero", -2, 2))
    classes = found["classes"]
    assert list(classes) == ["[bold]cat", "\x1b[31mdog"]
    for path in (["accuracy"], ["shift_consistency"], ["flip_consistency", "r90", "soft"]):
        values = []
        for figures in (found, *classes.values()):
            for key in path:
                figures = figures[key]
            assert figures["low"] <= figures["value"] <= figures["high"]
            values.append(figures["value"])
        assert values[0] == pytest.approx((4 * values[1] + 2 * values[2]) / 6)
    agreement = np.array(found["shift_consistency"]["map"]["agreement"])
    assert found["shift_consistency"]["value"] == pytest.approx(agreement.mean())


def test_only_what_was_asked_for_is_there_and_all_of_it_is_json(results):
    found = results(None, flips=False)
    assert not {"shift_consistency", "flip_consistency"} & set(found)
    found = results(Shifts("circular", -1, 1, draws=2, per="batch"))
    # As text, since a difference that no pair has is NaN, which equals nothing.
    assert json.dumps(json.loads(json.dumps(found))) == json.dumps(found)
    assert found["shift_consistency"]["settings"]["per"] == "batch"
