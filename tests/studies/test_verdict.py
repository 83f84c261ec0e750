import dataclasses
import itertools

import numpy as np
import pytest

from kernsym_jax.studies import Contrast, load_study, statistics, verdict
from kernsym_jax.studies.results import decide
from kernsym_jax.studies.statistics import Estimate


def contrast(expected, smallest=0.1):
    return Contrast("E4", "", ((1.0, "a", "m"),), expected, smallest)


@pytest.mark.parametrize(
    ("expected", "interval", "p", "outcome"),
    [
        ("above", (0.1, 0.3), 0.01, "supported"),
        ("above", (0.1, 0.3), 0.06, "undecided"),
        ("above", (-0.3, -0.1), 0.01, "differs"),
        ("below", (-0.3, -0.1), 0.01, "supported"),
        ("below", (0.1, 0.3), 0.01, "differs"),
        ("above", (-0.05, 0.05), 0.9, "not supported"),
        ("above", (-0.3, 0.05), 0.1, "not supported"),
        ("below", (-0.05, 0.3), 0.1, "not supported"),
        ("above", (-0.3, 0.5), 0.6, "undecided"),
        # Certain to be there, and too small to matter.
        ("above", (0.01, 0.05), 0.001, "not supported"),
        ("above", (0.03, 0.15), 0.001, "undecided"),
        ("zero", (-0.05, 0.05), 0.9, "supported"),
        ("zero", (0.01, 0.05), 0.001, "supported"),
        ("zero", (-0.2, 0.2), 0.9, "undecided"),
        ("zero", (0.1, 0.3), 0.01, "differs"),
    ],
)
def test_the_rule_decides(expected, interval, p, outcome):
    low, high = interval
    estimate = Estimate((low + high) / 2, low, high, p=p, n=5)
    assert verdict.decide(contrast(expected), estimate, p, 0.05) == outcome


def test_two_seeds_decide_nothing():
    estimate = dataclasses.replace(statistics.paired([0.5, 0.5001]), n=2)
    assert verdict.decide(contrast("above"), estimate, 1e-6, 0.05) == "undecided"


def test_a_claim_needs_all_of_its_tests():
    yes, no, differs, open_ = "supported", "not supported", "differs", "undecided"
    assert verdict.combine([yes, yes]) == yes
    assert verdict.combine([yes, open_]) == open_
    assert verdict.combine([yes, no, open_]) == no
    assert verdict.combine([yes, no, differs]) == differs


def test_the_rule_is_told_with_its_own_numbers():
    text = verdict.rule(contrast("below", 0.03), 0.1, 0.9)
    assert "p ≤ 0.1 and the effect is ≤ −0.03" in text
    assert "90 % interval rules out" in text


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", ["downsampling", "emergence"])
def test_shuffled_labels_of_variants_support_nothing_and_contradict_nothing(
    repository, name, seeds
):
    study = load_study(repository / f"configs/studies/{name}.py", "smoke")
    # Claims that nothing differs are right about noise.
    directed = {k: c for k, c in study.contrasts.items() if c.expected != "zero"}
    claims = {c.claim: study.claims[c.claim] for c in directed.values()}
    study = dataclasses.replace(study, contrasts=directed, claims=claims, seeds=tuple(range(seeds)))
    rng = np.random.default_rng(11)
    quiet = 0
    for _ in range(100):
        seed_effect = rng.normal(0, 0.1, (seeds, len(study.measures)))
        values = {}
        for variant, seed in itertools.product(study.variants, study.seeds):
            row = seed_effect[seed] + rng.normal(0, 0.1, len(study.measures))
            values[variant, seed] = dict(zip(study.measures, map(float, row), strict=True))
        found = set(decide(study, values).verdicts.values())
        quiet += found <= {"not supported", "undecided"}
    assert quiet >= 95


def test_holding_the_variants_fixed_leaves_what_the_seeds_say(micro_study):
    study = load_study(micro_study, "smoke")
    pooled = study.correlations["helps"]
    tests = {"pooled": pooled, "within": dataclasses.replace(pooled, within=True)}
    study = dataclasses.replace(study, correlations=tests, seeds=tuple(range(10)))
    rng = np.random.default_rng(4)
    values = {}
    for variant, seed in itertools.product(study.variants, study.seeds):
        row = dict.fromkeys(study.measures, float(rng.normal()))
        for name in ("score", "accuracy"):
            row[name] = 10.0 * (variant == "odd") + float(rng.normal())
        values[variant, seed] = row
    pooled, within = (test.estimate for test in decide(study, values).tests[-2:])
    assert pooled.effect > 0.6
    assert pooled.p < 0.01
    assert abs(within.effect) < 0.4
    assert within.p > 0.1


def test_a_large_effect_is_supported_and_its_opposite_differs(repository):
    study = load_study(repository / "configs/studies/downsampling.py", "smoke")
    rng = np.random.default_rng(5)
    for sign, outcome in ((1, "supported"), (-1, "differs")):
        values = {}
        for variant, seed in itertools.product(study.variants, study.seeds):
            even = sign * (variant == "even12")
            row = {name: float(rng.normal(0, 0.01)) for name in study.measures}
            row["skew_strided"] += 0.3 * even
            row["E_strided"] += 0.3 * even
            row["score_strided"] -= 0.3 * even
            row["deficit"] += 0.3 * even
            values[variant, seed] = row
        found = decide(study, values).verdicts
        assert found["E4-skew"] == outcome
        assert found["E4-score"] == outcome
