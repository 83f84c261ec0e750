"""Networks in memory, side by side, and along one run."""

import csv
import pickle
import re
import shutil
import sys

import numpy as np
import pytest

from kernsym_jax import report, training


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def state_dict(seed, layers=3, names="layer1.{}.conv.weight"):
    return {names.format(i): drawn(8, 4, 3, 3, seed=seed + i) for i in range(layers)}


def save(path, seed, **more):
    path.write_bytes(pickle.dumps({"state_dict": state_dict(seed), **more}, protocol=2))
    return path


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path):
    """A run directory with checkpoints after 2, 4, 8 and 10 steps."""
    config = training.default()
    config.epochs, config.batch_size, config.log_every = 10 / 22, 64, 5
    config.model.update({"width": 4, "depth": 3, "strided": (2,)})
    config.consistency.images = 0
    training.train_and_evaluate(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (last,) = [path for path in folder.iterdir() if path.is_dir() and path.name == "10"]
    for step in (2, 4, 8):
        shutil.copytree(last, folder / str(step), dirs_exist_ok=True)
    return tmp_path / "run"


def test_a_table_of_weights_in_memory_is_that_of_their_file(tmp_path):
    path = save(tmp_path / "net.pkl", 0)
    from_file, in_memory = report.table(path), report.table(state_dict(0), name="mine")
    assert {row["source"] for row in in_memory.rows} == {in_memory.source} == {"mine"}
    strip = [{**row, "source": ""} for row in from_file.rows]
    assert strip == [{**row, "source": ""} for row in in_memory.rows]


def test_a_table_takes_the_options_of_the_command_line():
    with pytest.raises(ValueError, match="no spatial convolution"):
        report.table({"a": drawn(3, 3, 3, 3)})
    assert len(report.table({"a": drawn(3, 3, 3, 3)}, layout="HWIO").rows) == 1
    with pytest.raises(ValueError, match="is no cifar_resnet20"):
        report.table(state_dict(0), model="cifar_resnet20")


def test_a_data_frame_has_the_columns_of_the_csv():
    pandas = pytest.importorskip("pandas")
    table = report.table(state_dict(0))
    frame = table.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(report.COLUMNS)
    assert frame["score"].tolist() == [row["score"] for row in table.rows]


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install kernsym-jax\[pandas\]"):
        report.table(state_dict(0)).to_dataframe()


def test_a_notebook_shows_the_table_and_the_gallery_in_one_safe_fragment():
    hostile = "<script>alert(1)</script>.weight"
    html = report.table({**state_dict(0), hostile: drawn(8, 4, 3, 3)})._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert html.count("<li") == html.count("data-name=") == 4
    for reference in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html):
        assert reference.startswith(("#", "data:"))
    # A fragment must not style the notebook around it.
    style = html[html.index("<style>") + 7 : html.index("</style>")]
    selectors = re.findall(r"(?:^|})\s*([^{}]+){", style)
    assert selectors
    for selector in ",".join(selectors).split(","):
        assert selector.strip().startswith(".kernsym"), selector


def test_networks_are_compared_layer_by_layer_where_their_names_match(tmp_path):
    one, other = state_dict(0), state_dict(5, layers=4)
    # The same layers under the names of our models.
    flax = {
        f"layer1_{i}": {"conv": {"kernel": other[f"layer1.{i}.conv.weight"].transpose(2, 3, 1, 0)}}
        for i in range(4)
    }
    found = report.compare({"one": one, "other": flax})
    assert [row["layer"] for row in found.rows] == [f"layer1.{i}.conv" for i in range(3)]
    tables = [report.table(one), report.table(flax)]
    *flat, means = found.flat_rows()
    assert list(means) == found.columns
    for row, first, second in zip(flat, tables[0].rows, tables[1].rows, strict=False):
        assert row["score 1: one"] == first["score"]
        assert row["score 2: other"] == second["score"]
        assert row["score difference 2: other"] == second["score"] - first["score"]
    scores = [row["score"] for row in tables[1].rows[:3]]
    assert means["score 2: other"] == pytest.approx(np.mean(scores))
    assert [line["layers"] for line in found.means] == [3, 4]
    assert "layer1.2.conv" in found._repr_html_()


def test_kernels_of_another_size_do_not_match():
    one = {"conv.weight": drawn(8, 4, 3, 3), "last.weight": drawn(8, 4, 3, 3)}
    other = {"conv.weight": drawn(8, 4, 5, 5), "last.weight": drawn(8, 4, 3, 3)}
    assert [row["layer"] for row in report.compare([one, other]).rows] == ["last"]


def test_two_files_are_compared_on_the_page_the_terminal_and_in_a_csv(tmp_path, capsys):
    paths = [save(tmp_path / "a.pkl", 0), save(tmp_path / "b.pkl", 9)]
    report.analyze(paths, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "comparison.csv")
    assert [row["layer"] for row in rows] == [
        *(f"layer1.{i}.conv" for i in range(3)), "mean over these layers"
    ]  # fmt: skip
    difference = rows[0][f"score difference 2: {paths[1]}"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Layer by layer" in page
    assert f'data-value="{difference}"' in page
    assert f"{float(difference):.3f}" in capsys.readouterr().out
    # A later analysis of one network leaves no comparison behind.
    report.analyze(paths[:1], tmp_path / "out")
    assert not (tmp_path / "out" / "comparison.csv").exists()


def test_four_files_fit_the_terminal_and_have_a_table_per_figure_on_the_page(tmp_path, capsys):
    paths = [save(tmp_path / f"{name}.pkl", seed) for seed, name in enumerate("abcd")]
    report.analyze(paths, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<summary>Score</summary>") == 1
    assert page.count("<summary>Padding signature, down</summary>") == 1
    assert page.count(">difference 4<") == 5
    (line,) = [
        line.split()
        for line in capsys.readouterr().out.split("comparison.csv has all figures")[1].splitlines()
        if "layer1.2.conv" in line
    ]
    rows = rows_of(tmp_path / "out" / "comparison.csv")
    scores = [float(rows[2][f"score {n}: {path}"]) for n, path in enumerate(paths, 1)]
    differences = [score - scores[0] for score in scores[1:]]
    assert line[-7:] == [f"{figure:.3f}" for figure in scores + differences]


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["epoch_1.pkl", "epoch_2.pkl", "epoch_10.pkl"], [1, 2, 10]),
        (["checkpoint_100", "checkpoint_20"], [20, 100]),
        (["epoch=0-step=50.pkl", "epoch=0-step=100.pkl"], [50, 100]),
        (["net-7-0.91.pkl", "net-8-0.85.pkl", "net-10-0.91.pkl"], [7, 8, 10]),
        (["checkpoint-1000/net.pkl", "checkpoint-500/net.pkl"], [500, 1000]),
        (["global_step20/mp_rank_00.pt", "global_step3/mp_rank_00.pt"], [3, 20]),
    ],
)
def test_numbers_in_names_order_the_checkpoints(tmp_path, names, steps):
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, seed)
    found = report.trajectory([tmp_path / name for name in names])
    assert found.steps == steps
    report.analyze([tmp_path / name for name in names], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "trajectory.csv")
    assert [int(row["step"]) for row in rows] == steps
    assert not (tmp_path / "out" / "comparison.csv").exists()
    for row, table in zip(rows, found.tables, strict=True):
        assert float(row["score layer1.0.conv"]) == table.rows[0]["score"]


@pytest.mark.parametrize("key", ["epoch", "step", "global_step"])
def test_contents_order_checkpoints_whose_names_do_not(tmp_path, key):
    names = ["c.pkl", "a.pkl", "b.pkl"]
    for step, name in enumerate(names):
        save(tmp_path / name, step, **{key: 10 * step})
    assert report.trajectory([tmp_path / name for name in sorted(names)]).steps == [0, 10, 20]
    report.analyze([tmp_path], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "trajectory.csv")
    assert [row["source"] for row in rows] == [str(tmp_path / name) for name in names]


def test_networks_without_an_order_are_no_trajectory(tmp_path):
    paths = [save(tmp_path / f"seed_{seed}.pkl", seed) for seed in range(3)]
    for number in (1, 2):
        (tmp_path / f"train{number}").mkdir()
        paths.append(save(tmp_path / f"train{number}" / "best.pkl", number))
    with pytest.raises(ValueError, match="neither names nor contents tell the order"):
        report.trajectory([state_dict(1), state_dict(2)])
    report.analyze(paths, tmp_path / "out")
    assert not (tmp_path / "out" / "trajectory.csv").exists()
    assert (tmp_path / "out" / "comparison.csv").exists()


def test_the_checkpoints_of_a_run_are_one_trajectory_with_its_strides(run, tmp_path, capsys):
    tables, failed = report.analyze([run / "checkpoints"], tmp_path / "out")
    assert not failed
    assert [table.source.rsplit("/", 1)[1] for table in tables] == ["2", "4", "8", "10"]
    assert [row["role"] for row in tables[0].rows] == ["first", "strided", "internal"]
    rows = rows_of(tmp_path / "out" / "trajectory.csv")
    assert [row["step"] for row in rows] == ["2", "4", "8", "10"]
    assert {row["run"] for row in rows} == {str(run / "checkpoints")}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="network"') == 1
    assert page.count("During training") == 1
    assert (tmp_path / "out" / "figures" / "trajectory.svg").is_file()
    assert "4 checkpoints" in capsys.readouterr().out
    found = report.trajectory(run / "checkpoints")
    assert found.steps == [2, 4, 8, 10]
    assert "<svg" in found._repr_html_()
    assert report.find_sources([str(run)]) == [run]


def test_several_runs_have_a_trajectory_each(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    pattern = str(tmp_path / "*" / "checkpoints")
    tables, _ = report.analyze([pattern], tmp_path / "out")
    assert len(tables) == 8
    rows = rows_of(tmp_path / "out" / "trajectory.csv")
    assert [row["step"] for row in rows] == ["2", "4", "8", "10"] * 2
    assert (tmp_path / "out" / "comparison.csv").exists()


def test_checkpoints_of_several_files_are_one_source_each(files, tmp_path):
    for name in ("tensorflow", "saved model", "torch distributed", "darknet", "equinox"):
        place = tmp_path / name
        if files[name].is_dir():
            shutil.copytree(files[name], place)
        else:
            place.mkdir()
            shutil.copy(files[name], place)
    found = [path.relative_to(tmp_path) for path in report.find_sources([str(tmp_path)])]
    assert sorted(map(str, found)) == [
        "darknet/net.weights",
        "equinox/tree.eqx",
        "saved model",
        "tensorflow/net-1.index",
        "torch distributed",
    ]
    for pattern in ("tensorflow/net-1", "tensorflow/net-1*"):
        (source,) = report.find_sources([str(tmp_path / pattern)])
        assert source == tmp_path / "tensorflow" / "net-1.index"
