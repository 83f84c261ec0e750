import csv
import dataclasses
import html.parser
import io
import json
import os
import re
import shutil
import urllib.parse

import numpy as np
import pytest

from kernsym_jax import evaluation, studies, training
from kernsym_jax.studies import figures, load_study
from kernsym_jax.studies import measures as m
from kernsym_jax.studies.claims_page import BEGIN, END
from kernsym_jax.studies.results import collect, decide

COMMAND = ["-m", "kernsym_jax.study", "--study=micro.py", "--size=smoke", "--workdir=runs"]
TABLES = (
    "results.csv", "layers.csv", "claims.json", "study.html", "figures/effects.svg",
    "figures/scatter_1.svg",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(request):
    return load_study(request.path.with_name("micro_study.py"), "smoke")


@pytest.fixture(scope="module")
def conducted(study, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    return workdir, studies.conduct(study, workdir, COMMAND)


@pytest.fixture
def copy(conducted, tmp_path):
    return shutil.copytree(conducted[0], tmp_path / "copy")


def tables(workdir):
    return {name: (workdir / name).read_bytes() for name in TABLES}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_pilot_has_seeds_that_do_not_count_and_tells_their_spread(study, conducted):
    pilot = study.as_pilot(3)
    assert pilot.seeds == (100, 101, 102)
    values = {
        (variant, seed): dict.fromkeys(study.measures, 0.0) | {"E_strided": value}
        for variant, found in (("even", (0.3, 0.5, 0.7)), ("odd", (0.1, 0.1, 0.1)))
        for seed, value in zip(pilot.seeds, found, strict=True)
    }
    table = studies.pilot_table(decide(pilot, values))
    assert (
        table == 'PILOTS = {\n    "odd_part": Pilot(0.4, 0.2, "seeds 100 to 102 of size smoke"),\n}'
    )
    with pytest.raises(ValueError, match="two seeds or more"):
        study.as_pilot(1)
    with pytest.raises(ValueError, match="itself"):
        dataclasses.replace(study, seeds=(100, 101)).as_pilot(2)


def test_every_run_measure_and_layer_is_kept_raw(conducted, study):
    workdir, _ = conducted
    found = rows(workdir / "results.csv")
    assert len(found) == 2 * 2 * len(study.measures)
    summary = json.loads((workdir / "runs/odd/seed_001/summary.json").read_text())
    (accuracy,) = [
        row["value"] for row in found
        if (row["variant"], row["seed"], row["measure"]) == ("odd", "1", "accuracy")
    ]  # fmt: skip
    assert float(accuracy) == summary["eval_accuracy"]
    layers = rows(workdir / "layers.csv")
    assert len(layers) == 2 * 2 * 2
    uneven = {(row["variant"], row["uneven_h"]) for row in layers if row["role"] == "strided"}
    assert uneven == {("even", "1"), ("odd", "0")}


def test_a_contrast_is_the_mean_difference_over_the_seeds(conducted):
    workdir, _ = conducted
    found = rows(workdir / "layers.csv")
    e = {
        (row["variant"], row["seed"]): float(row["E"]) for row in found if row["role"] == "strided"
    }
    differences = {seed: e["even", seed] - e["odd", seed] for seed in ("0", "1")}
    claims = json.loads((workdir / "claims.json").read_text())
    (test,) = claims["claims"][0]["tests"]
    assert test["by_seed"] == pytest.approx(differences)
    assert test["effect"] == pytest.approx(sum(differences.values()) / 2)
    assert test["primary"] is True
    # After four steps both seeds agree on an effect far below the smallest that matters.
    assert test["corrected_high"] < test["smallest"] == 0.01
    assert claims["claims"][0]["verdict"] == "not supported"
    assert claims["provenance"]["versions"]
    assert claims["command"].startswith("python -m kernsym_jax.study --study=micro.py")


def test_measures_at_the_start_are_those_of_the_initialisation(conducted):
    _, results = conducted
    run = results.finished[0]
    first = run.history[0]
    assert first["step"] == 0
    expected = first["layers"]["conv2"]["score"] - run.table.rows[1]["null_mean"]
    assert results.values["even", 0]["over_chance_start"] == pytest.approx(expected)


def test_nothing_finished_is_trained_again_and_the_tables_stay_the_same(copy, study):
    before = tables(copy)
    times = {path: path.stat().st_mtime_ns for path in copy.glob("runs/*/*/*.json")}
    studies.conduct(study, copy, COMMAND)
    assert {path: path.stat().st_mtime_ns for path in copy.glob("runs/*/*/*.json")} == times
    assert tables(copy) == before


def test_a_study_killed_in_the_middle_of_a_run_ends_with_the_same_tables(copy, study):
    before = tables(copy)
    # One run died after its first checkpoint, in the middle of a line; one had not begun.
    broken = copy / "runs" / "odd" / "seed_000"
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "4")
    lines = (broken / "metrics.jsonl").read_text().splitlines(True)
    kept = [line for line in lines if json.loads(line)["step"] <= 2]
    (broken / "metrics.jsonl").write_text("".join(kept) + '{"step": 4, "spl')
    shutil.rmtree(copy / "runs" / "odd" / "seed_001")
    finished = copy / "runs" / "even" / "seed_001" / "summary.json"
    time = finished.stat().st_mtime_ns
    for name in TABLES:
        (copy / name).unlink()
    studies.conduct(study, copy, COMMAND)
    assert finished.stat().st_mtime_ns == time
    assert tables(copy) == before


def test_gathering_tells_which_runs_are_missing(copy, study):
    shutil.rmtree(copy / "runs" / "odd" / "seed_001")
    results = studies.gather(study, copy, COMMAND)
    assert results.missing == ["odd/seed_001"]
    claims = json.loads((copy / "claims.json").read_text())
    assert claims["claims"][0]["tests"][0]["n"] == 1
    assert "1 runs are not finished" in (copy / "study.html").read_text()


def test_a_directory_of_another_study_is_refused(copy, study):
    path = copy / "runs" / "even" / "seed_000" / "config.json"
    config = json.loads(path.read_text())
    config["epochs"] = 7.0
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"another config \(epochs: 7.0 → 0.18"):
        studies.conduct(study, copy, COMMAND)


def test_a_rule_that_is_changed_after_the_first_run_is_told(copy, study):
    import dataclasses

    looser = dataclasses.replace(study.contrasts["odd_part"], smallest=1e-6)
    changed = dataclasses.replace(study, contrasts={"odd_part": looser})
    studies.gather(changed, copy, COMMAND)
    assert json.loads((copy / "claims.json").read_text())["plan_changed"] == ["tests"]
    assert "Changed since before the first run: tests" in (copy / "study.html").read_text()


def test_the_rest_goes_on_when_a_run_fails(copy, study, monkeypatch):
    import dataclasses

    variants = {**study.variants, "wild": {"optimizer.learning_rate": 1e30}}
    wild = dataclasses.replace(study, variants=variants)
    shutil.rmtree(copy / "runs" / "odd" / "seed_001")
    with pytest.raises(ValueError, match=r"2 of 6 runs failed: wild/seed_000: .*finite"):
        studies.conduct(wild, copy, COMMAND)
    assert (copy / "runs" / "odd" / "seed_001" / "summary.json").exists()
    missing = json.loads((copy / "claims.json").read_text())["missing"]
    assert missing == ["wild/seed_000", "wild/seed_001"]


def test_the_dry_run_tells_states_and_costs(copy, study, tmp_path):
    shutil.rmtree(copy / "runs" / "odd" / "seed_001")
    os.remove(copy / "runs" / "even" / "seed_001" / "summary.json")
    before = sorted(copy.rglob("*"))
    text = studies.dry_run(study, copy)
    assert "even/seed_000  finished" in text
    assert "even/seed_001  started" in text
    assert "odd/seed_001   missing" in text
    assert "as 1 runs of odd took at" in text
    assert "2 of 4 runs to do" in text
    assert sorted(copy.rglob("*")) == before
    fresh = studies.dry_run(study, tmp_path / "none")
    assert "4 of 4 runs to do, one after another: unknown" in fresh
    assert not (tmp_path / "none").exists()


def test_the_page_is_one_offline_file_with_names_as_text(conducted):
    text = (conducted[0] / "study.html").read_text()
    assert "default-src 'none'" in text
    assert "Is &lt;this&gt; a study?" in text
    tags = set()
    sources = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.add(tag)
            sources.extend(v for k, v in attributes if k in ("src", "href", "xlink:href"))

    Reader().feed(text)
    assert "svg" in tags
    assert not tags & {"script", "iframe", "img", "this"}
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "prefers-color-scheme: dark" in text
    for word in ("strided", "skew_x", "mean of chance", "difference in accuracy", "Rules"):
        assert word in text


def test_every_figure_of_the_page_has_its_data_a_click_away(conducted):
    text = (conducted[0] / "study.html").read_text()
    links = re.findall(r'<a download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)"', text)
    assert len(links) == text.count("<figure") >= 3
    files = {
        name: list(csv.DictReader(io.StringIO(urllib.parse.unquote(found))))
        for name, found in links
    }
    claims = json.loads((conducted[0] / "claims.json").read_text())
    tests = {test["test"]: test for claim in claims["claims"] for test in claim["tests"]}
    effects = {row["test"]: row for row in files["effects.csv"]}
    assert set(effects) == set(tests)
    test, row = tests["odd_part"], effects["odd_part"]
    assert float(row["effect"]) == pytest.approx(test["effect"])
    for seed, value in test["by_seed"].items():
        assert float(row[f"seed {seed}"]) == pytest.approx(value)
    results = {
        (row["variant"], row["seed"], row["measure"]): row["value"]
        for row in csv.DictReader(io.StringIO((conducted[0] / "results.csv").read_text()))
    }
    assert len(files["scatter_1.csv"]) == 4
    for row in files["scatter_1.csv"]:
        for name in ("score", "accuracy"):
            value = float(results[row["variant"], row["seed"], name])
            assert float(row[name]) == pytest.approx(value)
    assert {row["step"] for row in files["steps_score.csv"]} == {"0", "2", "4"}


def test_one_run_by_itself_is_the_run_of_the_study(conducted, study, tmp_path):
    studies.train_one(study, tmp_path, "odd/seed_001")
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.name[0] != "."] == ["odd"]
    metrics = "runs/odd/seed_001/metrics.jsonl"
    assert (tmp_path / metrics).read_text() == (conducted[0] / metrics).read_text()
    time = (tmp_path / metrics).stat().st_mtime_ns
    studies.train_one(study, tmp_path, "odd/seed_001")
    assert (tmp_path / metrics).stat().st_mtime_ns == time
    with pytest.raises(ValueError, match="no run 'odd/seed_009'; it has even/seed_000"):
        studies.train_one(study, tmp_path, "odd/seed_009")


def test_another_study_of_the_same_runs_trains_none_and_adds_what_it_measures(
    copy, study, tmp_path
):
    evaluated = dataclasses.replace(
        study,
        runs=copy / "runs",
        consistency=studies.Consistency(evaluation.Shifts("circular", 0, 1), limit=40),
        measures=dict(study.measures)
        | {"shift": m.shift_consistency(), "mirror": m.flip_consistency("fliplr", "soft")},
    )
    run = copy / "runs/odd/seed_001"
    assert "odd/seed_001   trained " in studies.dry_run(evaluated, tmp_path / "other")
    trained = (run / "metrics.jsonl").stat().st_mtime_ns
    results = studies.conduct(evaluated, tmp_path / "other", COMMAND)
    assert (run / "metrics.jsonl").stat().st_mtime_ns == trained
    found = json.loads((run / "consistency.json").read_text())
    assert found["images"] == 40
    assert results.values["odd", 1]["shift"] == found["shift_consistency"]["value"]
    mirror = found["flip_consistency"]["fliplr"]["soft"]["value"]
    assert results.values["odd", 1]["mirror"] == mirror
    # Evaluated once, unless another evaluation is asked for.
    before = (run / "consistency.json").stat().st_mtime_ns
    studies.conduct(evaluated, tmp_path / "other", COMMAND)
    assert (run / "consistency.json").stat().st_mtime_ns == before
    fewer = dataclasses.replace(evaluated.consistency, limit=20)
    studies.train_one(
        dataclasses.replace(evaluated, consistency=fewer), tmp_path / "third", "odd/seed_001"
    )
    assert json.loads((run / "consistency.json").read_text())["images"] == 20


def test_the_seeds_of_a_population_are_runs_of_the_study(conducted, study, tmp_path):
    # What an accelerator trains as one program lies where single runs would.
    config = study.config("even", 0)
    population = training.default()
    population.update(config)
    population.seeds = 2
    training.train_and_evaluate(population, tmp_path / "runs" / "even")
    results = studies.gather(study, tmp_path, COMMAND)
    assert [run.seed for run in results.finished] == [0, 1]
    assert results.values["even", 1] == conducted[1].values["even", 1]


def test_the_signature_is_drawn_over_the_kernels(conducted, study):
    asked = dataclasses.replace(study, layer_figures=("sig_x",))
    results = collect(asked, conducted[0])
    drawn = figures.draw(results)["kernels"]
    (layer,) = {row["layer"] for row in results.layers() if row["role"] == "strided"}
    assert [axis.get_title() for axis in drawn.axes] == [layer, ""]
    for axis, variant in zip(drawn.axes, ("even", "odd"), strict=True):
        assert axis.get_ylabel() == variant
        rows = [r for r in results.layers() if (r["variant"], r["layer"]) == (variant, layer)]
        means = [np.mean([row[figure] for row in rows]) for figure in ("sig_x", "sig_y")]
        shown = axis.get_xlabel().replace("−", "-").split(", ")
        assert [float(text) for text in shown] == pytest.approx(means, abs=6e-4)


def test_small_results_are_kept_and_make_the_table_of_claims(conducted, study, tmp_path):
    kept = studies.keep(study, conducted[0], tmp_path / "results")
    assert kept == tmp_path / "results" / "micro" / "smoke"
    assert sorted(path.name for path in kept.iterdir()) == [
        "claims.json", "figures", "layers.csv", "results.csv", "study.json",
    ]  # fmt: skip
    assert (kept / "figures" / "effects.svg").stat().st_size < 100_000
    configs = tmp_path / "configs"
    configs.mkdir()
    shutil.copy(__file__.replace("test_conduct", "micro_study"), configs / "micro.py")
    count = studies.write_claims_page(tmp_path / "claims.md", studies=configs)
    page = (tmp_path / "claims.md").read_text()
    assert count == 1
    row, detail = [line for line in page.splitlines() if line.startswith("| E4 |")]
    assert row.endswith("| [micro, smoke](#micro-smoke) | **not supported** |")
    assert "## micro, smoke\n\nIs <this> a study? On digits, 4 runs, " in page
    assert "| odd part |" in detail
    (row,) = [line for line in page.splitlines() if line.startswith("| E10 |")]
    assert row.endswith("| not run |")
    (row,) = [line for line in page.splitlines() if "--size=cpu" in line]
    assert row.startswith("| E4, E6 | micro, cpu | digits | 2 |")
    assert "--size=smoke --workdir=runs/micro" not in page
    with pytest.raises(FileNotFoundError, match=r"no claims.json below"):
        studies.write_claims_page(tmp_path / "empty" / "claims.md")


def test_the_page_of_a_claim_gets_its_results_and_keeps_its_words(conducted, study, tmp_path):
    studies.keep(study, conducted[0], tmp_path / "results")
    own = tmp_path / "claims" / "E4.md"
    own.parent.mkdir()
    own.write_text(f"# E4\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    studies.write_claims_page(tmp_path / "claims.md", studies=tmp_path)
    first = own.read_text()
    assert first.startswith(
        f"# E4\n\nBefore.\n\n{BEGIN}\n\n[micro, smoke](../claims.md#micro-smoke)"
    )
    assert first.endswith(f"\n{END}\n\nAfter.\n")
    assert "old" not in first
    assert "| E4 | odd part |" in first
    assert "| E6 |" not in first
    assert "| [E4](claims/E4.md) | Uneven padding skews. |" in (tmp_path / "claims.md").read_text()
    studies.write_claims_page(tmp_path / "claims.md", studies=tmp_path)
    assert own.read_text() == first
    own.write_text("# E4\n")
    with pytest.raises(ValueError, match="no space for the results"):
        studies.write_claims_page(tmp_path / "claims.md", studies=tmp_path)
