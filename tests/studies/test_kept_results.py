"""The results in docs/ are what the tables beside them say."""

import csv
import json
import pathlib
import shutil

import pytest

from kernsym_jax import studies
from kernsym_jax.studies.results import decide
from kernsym_jax.studies.statistics import Effect

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEPT = sorted(ROOT.glob("docs/results/*/*/claims.json"))


def measured(path, study):
    values = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            unit = row[study.unit] if study.networks else int(row[study.unit])
            found = values.setdefault((row["variant"], unit), {})
            found[row["measure"]] = float(row["value"]) if row["value"] else None
    return values


@pytest.mark.parametrize("path", KEPT, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_verdicts_and_effects_recompute_from_the_raw_measures(path):
    kept = json.loads(path.read_text())
    file = ROOT / "configs" / "studies" / f"{kept['study']}.py"
    study = studies.load_study(file, kept["size"])
    results = decide(study, measured(path.with_name("results.csv"), study))
    tests = {test.name: test for test in results.tests}
    assert {claim["claim"]: claim["verdict"] for claim in kept["claims"]} == results.verdicts
    for claim in kept["claims"]:
        for one in claim["tests"]:
            assert one["effect"] == pytest.approx(tests[one["test"]].effect.effect, abs=1e-6)
            low, high = tests[one["test"]].interval
            assert one["corrected_low"] == (low if low is None else pytest.approx(low, abs=1e-6))
            assert one["corrected_high"] == (
                high if high is None else pytest.approx(high, abs=1e-6)
            )


def test_the_pages_of_claims_are_what_the_command_writes(tmp_path, monkeypatch):
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.svg", "*.png")
    )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    studies.write_claims_page("docs/claims.md")
    for page in [ROOT / "docs" / "claims.md", *(ROOT / "docs" / "claims").glob("*.md")]:
        copy = tmp_path / page.relative_to(ROOT)
        assert copy.read_text() == page.read_text(), f"run the command again: {page}"


def test_secondary_claims_of_no_difference_agree_with_their_intervals():
    # Two one-sided tests at 5 % are passed exactly if the interval of 90 % lies within the margin.
    lines = (ROOT / "docs" / "claims.md").read_text().splitlines()
    seen = {True: 0, False: 0}
    for path in KEPT:
        for claim in json.loads(path.read_text())["claims"]:
            for one in claim["tests"]:
                if one["primary"] or one["expected"] != "zero" or one["error"] is None:
                    continue
                effect = Effect(one["effect"], error=one["error"], freedom=one["freedom"])
                within = max(map(abs, effect.interval(0.9))) < one["smallest"]
                words = f"{'shown' if within else 'not shown'} within ±{one['smallest']:g}, p = "
                start = f"| {claim['claim']} | {one['meaning']} | "
                assert any(line.startswith(start) and f"| {words}" in line for line in lines)
                seen[within] += 1
    assert all(seen.values())
