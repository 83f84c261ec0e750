"""The report stays small and quick whatever the sizes and the number of the kernels are."""

import json
import warnings

import hostile
import numpy as np
import pytest

from kernsym_jax import report


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
