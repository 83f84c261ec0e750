"""Verdicts: the rule case by case, and what whole studies of noise and of effects come out as."""

import dataclasses
import itertools

import numpy as np
import pytest

from kernsym_jax.studies import (
    Claim,
    Contrast,
    Measure,
    Pilot,
    Study,
    load_study,
    results,
    statistics,
)
from kernsym_jax.studies.results import decide
from kernsym_jax.studies.statistics import Effect

QUIET = {"not supported", "undecided", "too few seeds"}


def verdict_of(expected, interval, p, n=5, fewest=2):
    low, high = interval
    effect = Effect((low + high) / 2, n=n)
    return results.verdict_of(
        effect, interval, p, expected=expected, smallest=0.1, level=0.05, fewest=fewest
    )


@pytest.mark.parametrize(
    ("expected", "interval", "p", "outcome"),
    [
        ("above", (0.1, 0.3), 0.01, "supported"),
        ("above", (-0.01, 0.3), 0.06, "too few seeds"),
        ("above", (-0.3, -0.1), 0.01, "differs"),
        ("below", (-0.3, -0.1), 0.01, "supported"),
        ("below", (0.1, 0.3), 0.01, "differs"),
        ("above", (-0.05, 0.05), 0.9, "not supported"),
        ("above", (-0.3, 0.05), 0.1, "not supported"),
        ("below", (-0.05, 0.3), 0.1, "not supported"),
        ("above", (-0.3, 0.5), 0.6, "too few seeds"),
        ("above", (-0.03, 0.15), 0.2, "undecided"),
        # Certain to be there, and too small to matter.
        ("above", (0.01, 0.05), 0.001, "not supported"),
        ("above", (0.03, 0.15), 0.001, "undecided"),
        ("zero", (-0.05, 0.05), 0.001, "supported"),
        ("zero", (0.01, 0.05), 0.001, "supported"),
        ("zero", (-0.2, 0.2), 0.9, "too few seeds"),
        ("zero", (-0.05, 0.12), 0.2, "undecided"),
        ("zero", (0.1, 0.3), 0.9, "differs"),
    ],
)
def test_the_rule_decides(expected, interval, p, outcome):
    assert verdict_of(expected, interval, p) == outcome


def test_fewer_cases_than_needed_decide_nothing():
    assert verdict_of("above", (0.5, 0.6), 1e-6, n=1) == "too few seeds"
    assert verdict_of("above", (0.5, 0.6), 1e-6, n=2) == "supported"
    assert verdict_of("above", (0.5, 0.6), 1e-6, n=2, fewest=3) == "too few seeds"


def test_the_rule_is_told_with_its_own_numbers():
    text = results.rule("below", 0.03, 0.1)
    assert "excludes 0 and the effect is ≤ −0.03; differs if it is ≥ 0.03" in text
    assert "half the interval is wider than 0.03" in text
    assert "family-wise error 10 %" in text
    assert "two one-sided tests show the effect within ±0.03" in results.rule("zero", 0.03, 0.05)


SD = 0.2


def made_up(seeds, effects):
    """A study with one claim per expected direction: name -> (expected, smallest)."""
    names = [f"m{index}" for index in range(len(effects))]
    return Study(
        name="made-up",
        size="smoke",
        title="",
        data="",
        variants={"a": {}},
        seeds=tuple(range(seeds)),
        measures={name: Measure("", lambda run: None) for name in names},
        claims={name: Claim("", "E4") for name in names},
        contrasts={
            name: Contrast(name, "", ((1.0, "a", name),), expected, smallest)
            for name, (expected, smallest) in zip(names, effects, strict=True)
        },
        pilots=dict.fromkeys(names, Pilot(0.0, SD, "made up")),
    )


def draw(study, means, rng):
    return {
        ("a", seed): {name: float(rng.normal(mean, SD)) for name, mean in means.items()}
        for seed in study.seeds
    }


@pytest.mark.parametrize(("seeds", "smallest"), [(2, 0.01), (3, 0.2), (8, 0.01), (8, 0.2)])
def test_a_study_of_pure_noise_comes_out_loud_in_five_of_a_hundred_at_most(seeds, smallest):
    study = made_up(seeds, [("above", smallest), ("below", smallest)] * 3)
    rng = np.random.default_rng(seeds)
    loud = 0
    for _ in range(100):
        found = decide(study, draw(study, dict.fromkeys(study.measures, 0.0), rng))
        loud += not set(found.verdicts.values()) <= QUIET
    assert loud <= 5


def test_equivalence_claims_are_not_supported_by_effects_that_matter():
    study = made_up(8, [("zero", 0.2)] * 4)
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        found = decide(study, draw(study, dict.fromkeys(study.measures, 0.2), rng))
        wrong += "supported" in found.verdicts.values()
    assert wrong <= 5


@pytest.mark.parametrize(("seeds", "smallest"), [(2, 0.01), (4, 0.3), (8, 0.01)])
def test_a_planted_effect_of_the_stated_detectable_size_is_found_in_eighty_of_a_hundred(
    seeds, smallest
):
    study = made_up(seeds, [("above", smallest), ("below", smallest), ("zero", 0.2)])
    power = study.power()
    rng = np.random.default_rng(seeds)
    means = {"m0": power["m0"].detectable, "m1": -power["m1"].detectable, "m2": 0.0}
    assert power["m0"].level == pytest.approx(0.05 / 3)
    assert power["m0"].detectable >= smallest
    counts = dict.fromkeys(means, 0)
    for _ in range(100):
        for name, verdict in decide(study, draw(study, means, rng)).verdicts.items():
            counts[name] += verdict == "supported"
    # Holm's procedure is at least as strong as the level for which the power is computed.
    assert counts["m0"] >= 80
    assert counts["m1"] >= 80


def test_secondary_tests_have_no_verdict_and_make_primary_ones_no_harder():
    study = made_up(6, [("above", 0.1)])
    more = {f"extra{index}": dataclasses.replace(study.contrasts["m0"]) for index in range(20)}
    claims = {"m0": dataclasses.replace(study.claims["m0"], primary="m0")}
    larger = dataclasses.replace(study, contrasts={**study.contrasts, **more}, claims=claims)
    values = draw(study, {"m0": 0.4}, np.random.default_rng(3))
    alone, among = decide(study, values), decide(larger, values)
    assert among.tests[0].p_holm == alone.tests[0].p_holm == alone.tests[0].effect.p
    assert among.verdicts == alone.verdicts
    assert [test.verdict for test in among.tests[1:]] == [""] * 20
    assert all(test.p_holm is None for test in among.tests[1:])


def test_a_claim_with_several_tests_names_the_one_that_decides():
    study = made_up(3, [("above", 0.1)])
    contrasts = {**study.contrasts, "other": study.contrasts["m0"]}
    with pytest.raises(
        ValueError, match="m0: primary names the test that decides, one of m0, other"
    ):
        dataclasses.replace(study, contrasts=contrasts)


def test_a_variant_counts_once_in_a_correlation_by_the_mean_of_its_seeds(micro_study):
    study = load_study(micro_study, "smoke")
    pooled = dataclasses.replace(study.correlations["helps"], method="pearson")
    claims = {"E6": dataclasses.replace(study.claims["E6"], primary="pooled")}
    tests = {"pooled": pooled, "within": dataclasses.replace(pooled, within=True)}
    variants = {f"v{index}": {} for index in range(8)}
    study = dataclasses.replace(
        study, variants=variants, contrasts={}, correlations=tests, claims=claims,
        seeds=tuple(range(10)),
    )  # fmt: skip
    rng = np.random.default_rng(4)
    values, means = {}, []
    for index, variant in enumerate(variants):
        rows = rng.normal(3.0 * index, 1, (10, 2))
        means.append(rows.mean(axis=0))
        for seed in study.seeds:
            row = dict.fromkeys(study.measures, 0.0)
            row["score"], row["accuracy"] = map(float, rows[seed])
            values[variant, seed] = row
    pooled, within = (test.effect for test in decide(study, values).tests)
    assert pooled.n == 8
    assert pooled.effect == pytest.approx(np.corrcoef(np.array(means).T)[0, 1])
    assert pooled.effect > 0.9
    # Within a variant the seeds say nothing: what differs between variants is held fixed.
    assert within.n == 80
    assert abs(within.effect) < 0.3


def test_a_large_effect_is_supported_and_its_opposite_differs(repository):
    study = load_study(repository / "configs/studies/downsampling.py", "smoke")
    rng = np.random.default_rng(5)
    for sign, outcome in ((1, "supported"), (-1, "differs")):
        values = {}
        for variant, seed in itertools.product(study.variants, study.seeds):
            row = {name: float(rng.normal(0, 0.002)) for name in study.measures}
            row["signature"] += sign * {"zero16": 0.03, "same16": -0.03}.get(variant, 0.0)
            values[variant, seed] = row
        assert decide(study, values).verdicts == {"E4-signature": outcome}


def test_power_of_a_primary_test_without_a_pilot_is_unknown():
    study = made_up(8, [("above", 0.1), ("above", 0.1)])
    power = dataclasses.replace(study, pilots={"m0": study.pilots["m0"]}).power()
    assert list(power) == ["m0"]
    assert power["m0"].n == 8
    assert power["m0"].source == "made up"
    assert statistics.TARGET_POWER == 0.8
