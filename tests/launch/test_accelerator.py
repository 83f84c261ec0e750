"""The measurements for accelerators, at the sizes of a test."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import compiler
import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


def accelerator(*arguments, **variables):
    return subprocess.run(
        ["bash", str(LAUNCH / "accelerator.sh"), *arguments],
        env=os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": compiler.one_device()} | variables,
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the two parts leave that a first visit to an accelerator runs."""
    folder = tmp_path_factory.mktemp("accelerator")
    ran = accelerator("--tiny", "--only=parity,bench", f"--out={folder}")
    assert ran.returncode == 0, ran.stderr
    return folder


def test_losses_and_figures_are_those_of_the_stored_run(results):
    rows = json.loads((results / "accelerator.json").read_text())["parts"]["parity"]["tables"]
    assert len(rows["parity"]) == 11
    for row in rows["parity"]:
        assert row["holds"]
        assert row["largest difference"] <= row["band"]


def test_every_measurement_leaves_a_row_in_each_file(results):
    found = json.loads((results / "accelerator.json").read_text())["parts"]["bench"]
    assert found["left out"] == found["failed"] == []
    rows = {"resnet18": 1, "loop": 2, "measure": 2, "consistency": 1, "scan": 2}
    assert {name: len(table) for name, table in found["tables"].items()} == rows
    page = (results / "README.md").read_text()
    assert found["machine"]["devices"] in page
    for name, table in found["tables"].items():
        with (results / f"{name}.csv").open() as file:
            assert [row.keys() for row in csv.DictReader(file)] == [row.keys() for row in table]
        assert all(f"| {heading} |" in page for heading in table[0])
    first, second = found["tables"]["scan"][0]["losses"].split(" / ")
    assert first == second


def test_what_does_not_fit_is_left_out_and_earlier_parts_stay(results):
    ran = accelerator("--only=population", "--budget=1", f"--out={results}")
    assert ran.returncode == 0, ran.stderr
    parts = json.loads((results / "accelerator.json").read_text())["parts"]
    assert set(parts) == {"parity", "bench", "population"}
    assert len(parts["population"]["left out"]) == 10
    assert "8 networks, vmap: takes" in (results / "README.md").read_text()


def test_packages_that_are_missing_are_named_with_the_command_that_fetches_them():
    names = subprocess.run(
        [
            sys.executable, "-c",
            "import accelerator as a; print(a.missing({'numpy': 'numpy', 'gone': 'gone.part'}));"
            "print(a.fetch_command(['gone']))",
        ],
        cwd=LAUNCH, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert names[0] == "['gone']"
    assert names[1].startswith("pip download --no-deps")
    assert names[1].endswith(" gone")


def test_unknown_parts_are_bad_usage():
    assert accelerator("--only=speed").returncode != 0
