"""The report stays small and quick whatever the sizes and the number of the kernels are."""

import json
import warnings

import hostile
import numpy as np
import pytest
import writers

from kernsym_jax import report, weights
from kernsym_jax.report.layer_table import measurable


@pytest.mark.usefixtures("within_a_gigabyte")
def test_a_kernel_of_a_million_cells_has_a_small_null_and_says_so(tmp_path):
    path = hostile.kernel_of_a_million_cells(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables, failed = report.analyze([path], tmp_path / "out")
    assert not failed
    (row,) = tables[0].rows
    assert row["shape"] == "1000×1000×1×1"
    assert row["note"] == "chance is that of 20 random kernels only"
    assert row["p_value"] >= 1 / 21
    # A picture has 64 by 64 cells at most.
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000


def test_kernels_of_usual_sizes_have_a_full_null():
    tables = report.table({"conv.weight": np.ones((2, 3, 7, 7), np.float32)})
    assert "random kernels" not in tables.rows[0]["note"]


def test_of_many_sizes_the_commonest_are_measured_and_the_others_are_named(tmp_path):
    path = hostile.kernels_of_many_sizes(tmp_path)
    tables, _ = report.analyze([path], tmp_path / "out")
    (table,) = tables
    assert len({row["shape"] for row in table.rows}) == len(table.rows) == 12
    left_out = json.loads((tmp_path / "out" / "layers.json").read_text())[0]["skipped"]
    assert len(left_out) == 49 - 12
    assert set(left_out.values()) == {"not measured: its size is none of the 12 commonest of 49"}
    assert "37 kernels of rare sizes are not measured" in table.weights.notes


def test_what_would_take_minutes_is_left_out_and_named(tmp_path):
    few = np.zeros((1, 1, 1000, 1000), np.float32)
    many = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    state = {"a.weight": np.zeros((1, 1, 1000, 1001), np.float32)}
    state |= {f"b{n}.weight": few for n in range(5)} | {f"c{n}.weight": many for n in range(5000)}
    found = measurable(weights.read(state))
    assert list(found.kernels) == [*(f"b{n}" for n in range(4)), *(f"c{n}" for n in range(4996))]
    assert found.skipped["a"] == "not measured: its 1001000 cells are more than 1000000"
    assert (
        found.skipped["b4"] == "not measured: with it, large kernels have more than 4000000 cells"
    )
    assert found.skipped["c4999"] == "not measured: 5000 layers come before it"
    assert found.notes == ("6 kernels beyond what a report can hold are not measured",)
    path = writers.write_torch(tmp_path / "net.pt", {"a.weight": state["a.weight"]})
    with pytest.raises(ValueError, match=r"net\.pt: no kernel of 1000000 cells or fewer"):
        report.table(path)


def test_thousands_of_layers_are_listed_in_the_files_and_not_on_the_terminal(tmp_path, capsys):
    rng = np.random.default_rng(0)
    state = {f"c{n}.weight": rng.normal(size=(2, 1, 3, 3)).astype(np.float32) for n in range(450)}
    np.savez(tmp_path / "net.npz", **state)
    report.analyze([tmp_path / "net.npz"], tmp_path / "out", report.Options(layout="OIHW"))
    assert "… 50 more in layers.csv" in capsys.readouterr().out
    assert len((tmp_path / "out" / "layers.csv").read_text().splitlines()) == 451


def test_names_that_utf_8_cannot_hold_reach_every_file(tmp_path):
    path = hostile.surrogate_names(tmp_path)
    report.analyze([path], tmp_path / "out", report.Options(layout="OIHW"))
    assert "a\\ud800" in (tmp_path / "out" / "layers.csv").read_text(encoding="utf-8")
