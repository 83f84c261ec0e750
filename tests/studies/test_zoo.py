import csv
import dataclasses
import hashlib
import json
import types

import numpy as np
import pytest

from kernsym_jax import report, studies, training
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.studies import Claim, Contrast, Correlation, Network, Study, load_study
from kernsym_jax.studies import measures as m

COMMAND = ["-m", "kernsym_jax.study", "--study=zoo.py", "--size=smoke", "--workdir=runs"]
FAMILIES = {"a1": "a", "a2": "a", "b": "b", "c": "c"}


def kernels(seed, layers=3):
    """A stack of random 3×3 layers in PyTorch's order of axes."""
    rng = np.random.default_rng(seed)
    return {
        f"conv{number}.weight": rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
        for number in range(layers)
    }


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for seed, name in enumerate(FAMILIES):
        np.savez(folder / f"{name}.npz", **kernels(seed))
    return folder


@pytest.fixture
def study(files):
    return Study(
        name="zoo",
        size="smoke",
        title="Random kernels?",
        data="random files",
        variants={"networks": {}},
        networks={
            name: Network(f"{name}.npz", family, f"https://example.org/{name}.npz")
            for name, family in FAMILIES.items()
        },
        files=files,
        measures={
            "score": m.mean_over("score", ("first", None), "score of all layers"),
            "dc_share": m.mean_over("dc_share", ("first", None), "share of the offset"),
        },
        claims={"E2": Claim("They are above zero.", of="E2")},
        contrasts={"score": Contrast("E2", "score", ((1.0, "networks", "score"),), "above", 0.05)},
        layer_figures=(),
        roles=(),
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def claims(workdir):
    return json.loads((workdir / "claims.json").read_text())


def test_every_network_is_measured_as_analyze_measures_it(study, files, tmp_path):
    studies.conduct(study, tmp_path / "zoo", COMMAND)
    found = rows(tmp_path / "zoo/results.csv")
    assert found[0].keys() == {"variant", "network", "measure", "value"}
    scores = {row["network"]: float(row["value"]) for row in found if row["measure"] == "score"}
    for name in FAMILIES:
        table = report.read_table(files / f"{name}.npz")
        assert scores[name] == pytest.approx(np.mean([row["score"] for row in table.rows]))
    layers = rows(tmp_path / "zoo/layers.csv")
    assert [row["network"] for row in layers] == [name for name in FAMILIES for _ in range(3)]


def test_a_family_counts_as_one_by_the_mean_of_its_networks(study, tmp_path):
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    (test,) = claims(tmp_path / "zoo")["claims"][0]["tests"]
    by_network = test["by_network"]
    assert list(by_network) == list(FAMILIES)
    wanted = {
        "a": (by_network["a1"] + by_network["a2"]) / 2,
        "b": by_network["b"],
        "c": by_network["c"],
    }
    assert test["by_family"] == pytest.approx(wanted)
    assert test["n"] == 3
    assert test["effect"] == pytest.approx(np.mean(list(wanted.values())))
    (each,) = test["other_methods"].values()
    assert each["n"] == 4
    assert each["effect"] == pytest.approx(np.mean(list(by_network.values())))
    assert sorted(results.of("networks", "score")) == pytest.approx(sorted(wanted.values()))


def test_many_networks_of_two_families_decide_nothing(study, tmp_path):
    two = {
        name: dataclasses.replace(network, family="b" if name == "c" else network.family)
        for name, network in study.networks.items()
    }
    results = studies.conduct(dataclasses.replace(study, networks=two), tmp_path / "zoo", COMMAND)
    assert results.tests[0].effect.n == 2
    assert results.verdicts == {"E2": "too few seeds"}


def test_correlations_are_over_families_too(study, tmp_path):
    spread = {name: dataclasses.replace(n, family=name) for name, n in study.networks.items()}
    test = Correlation("E2", "score and offset", "score", "dc_share", "above", 0.1)
    study = dataclasses.replace(
        study,
        networks=spread,
        correlations={"offset": test},
        claims={"E2": Claim("They are above zero.", of="E2", primary="score")},
    )
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    assert results.tests[1].effect.n == 4
    study = dataclasses.replace(
        study, networks={**spread, "b": dataclasses.replace(spread["b"], family="a1")}
    )
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    assert results.tests[1].effect.n == 3


def test_what_is_missing_is_told_with_where_to_get_it_and_the_rest_is_read(
    study, files, tmp_path, capsys
):
    (files / "b.npz").unlink()
    line = f"b: no {files / 'b.npz'}; get it from https://example.org/b.npz"
    listed = studies.dry_run(study, tmp_path / "zoo").splitlines()
    assert f"a1: {files / 'a1.npz'}" in listed
    assert listed[-2:] == [line, "1 of 4 networks are missing"]
    assert not (tmp_path / "zoo").exists()
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    assert line in capsys.readouterr().out.splitlines()
    assert results.missing == claims(tmp_path / "zoo")["missing"] == ["b"]
    assert results.tests[0].effect.n == 2
    assert "1 networks are not there" in (tmp_path / "zoo/study.html").read_text()


def test_a_folder_with_none_of_the_files_is_one_clear_line(study, tmp_path):
    empty = dataclasses.replace(study, files=tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"none: none of the 4 networks of zoo is there; --dry_run"
    ):
        studies.conduct(empty, tmp_path / "zoo", COMMAND)


def test_another_file_of_the_same_name_is_refused(study, files, tmp_path):
    digits = hashlib.sha256((files / "b.npz").read_bytes()).hexdigest()
    for wanted in (digits, digits[:8]):
        right = {**study.networks, "b": dataclasses.replace(study.networks["b"], sha256=wanted)}
        results = studies.gather(dataclasses.replace(study, networks=right), tmp_path, COMMAND)
        assert not results.missing
    np.savez(files / "b.npz", **kernels(9, layers=1))
    with pytest.raises(ValueError, match=r"b\.npz is another file: its SHA-256 is .*, wanted"):
        studies.conduct(dataclasses.replace(study, networks=right), tmp_path, COMMAND)
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits, got 'abc'"):
        dataclasses.replace(study.networks["b"], sha256="abc")


def test_reading_again_gives_the_same_tables(study, tmp_path):
    names = ("results.csv", "layers.csv", "claims.json", "study.html")
    studies.conduct(study, tmp_path / "zoo", COMMAND)
    before = [(tmp_path / "zoo" / name).read_bytes() for name in names]
    studies.conduct(study, tmp_path / "zoo", COMMAND)
    assert [(tmp_path / "zoo" / name).read_bytes() for name in names] == before


def test_a_study_of_networks_has_nothing_to_train(study, tmp_path):
    with pytest.raises(ValueError, match="zoo reads trained networks: it has no run to train"):
        studies.train_one(study, tmp_path, "a1")
    with pytest.raises(ValueError, match="it has no runs to write"):
        studies.emit(study, tmp_path, COMMAND, "slurm")
    with pytest.raises(ValueError, match="networks have one variant and no seeds"):
        dataclasses.replace(study, seeds=(0, 1))


def test_the_page_names_every_network_its_family_and_where_it_is_from(study, tmp_path):
    studies.conduct(study, tmp_path / "zoo", COMMAND)
    page = (tmp_path / "zoo/study.html").read_text()
    assert "4 networks of 3 families" in page
    for name, family in FAMILIES.items():
        assert f"<tr><td>{name}</td><td>{family}</td>" in page
        assert f">https://example.org/{name}.npz</td>" in page
    kept = studies.keep(study, tmp_path / "zoo", tmp_path / "kept")
    plan = json.loads((kept / "study.json").read_text())
    assert plan["networks"]["b"]["file"] == "b.npz"


def test_finished_runs_of_ones_own_are_a_family_more(micro_study, repository, tmp_path):
    micro = load_study(micro_study, "smoke")
    training.train_and_evaluate(micro.config("even", 0), tmp_path / "runs" / "even" / "seed_000")
    study = load_study(
        repository / "configs/studies/zoo.py", "smoke", str(tmp_path), tmp_path / "runs"
    )
    assert study.networks["run-even-seed_000"].family == "own-runs"
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    (found,) = results.finished
    assert found.seed == "run-even-seed_000"
    assert len(results.missing) == 8
    with pytest.raises(FileNotFoundError, match="no finished run in it"):
        load_study(repository / "configs/studies/zoo.py", "smoke", None, tmp_path / "zoo")


@pytest.fixture(scope="module")
def measured(repository):
    """Computes a measure of the zoo of hand-made layers."""
    measures = load_study(repository / "configs/studies/zoo.py", "smoke").measures

    def of(name, rows, geometry=(), network="run-own"):
        table = types.SimpleNamespace(rows=rows, geometry=geometry)
        return measures[name].of(types.SimpleNamespace(table=table, seed=network))

    return of


def strided(size, padding, *, kernel=3, stride=(2, 2), kind="conv", mode="zero", sig=(0.02, 0.04)):
    """A layer on a square map: its row, with a signature (x, y), and its audit."""
    taps, role = (kernel, kernel), "strided"
    outputs = tuple((size + sum(padding) - kernel) // s + 1 for s in stride)
    name = f"{kind}-{size}-{padding}-{kernel}-{stride}"
    row = {"layer": name, "role": role, "kind": kind, "shape": f"{kernel}×{kernel}×4×4"}
    row |= {"sig_x": sig[0], "sig_y": sig[1]}
    audit = LayerGeometry(
        name, kind, (size, size), outputs, taps, stride, (1, 1), (padding,) * 2, padding_mode=mode
    )
    return row, audit


def signatures(measured, *layers):
    rows, geometry = zip(*layers, strict=True)
    groups = ("signature", "signature_same", "signature_unpadded")
    return tuple(measured(group, rows, geometry) for group in groups)


def test_weights_are_predicted_to_grow_away_from_the_side_that_meets_more_padding(measured):
    # Equal padding on an even map: the strides leave out the bottom and the right.
    assert signatures(measured, strided(8, (1, 1))) == (pytest.approx(0.03), None, None)
    assert signatures(measured, strided(8, (2, 2), kernel=5)) == (pytest.approx(0.03), None, None)
    # TensorFlow's SAME on an even map pads them more.
    assert signatures(measured, strided(8, (0, 1))) == (None, pytest.approx(-0.03), None)
    assert signatures(measured, strided(8, (1, 2), kernel=5)) == (None, pytest.approx(-0.03), None)
    # No tap meets padding, whatever the strides leave out.
    assert signatures(measured, strided(8, (0, 0))) == (None, None, pytest.approx(0.03))


@pytest.mark.parametrize("padding", [(1, 1), (0, 0)])
def test_what_is_even_predicts_nothing(measured, padding):
    assert signatures(measured, strided(9, padding)) == (None, None, None)


def test_an_axis_without_stride_predicts_nothing(measured):
    down, right = strided(8, (1, 1), stride=(2, 1)), strided(8, (1, 1), stride=(1, 2))
    assert measured("signature", *zip(down, strict=True)) == 0.04
    assert measured("signature", *zip(right, strict=True)) == 0.02
    assert signatures(measured, strided(8, (1, 2), kernel=4, stride=(1, 1))) == (None,) * 3


def test_each_axis_of_each_layer_counts_once(measured):
    layers = [strided(8, (1, 1)), strided(8, (1, 1), stride=(2, 1), sig=(9.0, 0.09))]
    assert signatures(measured, *layers)[0] == pytest.approx((0.02 + 0.04 + 0.09) / 3)


def test_layers_without_a_prediction_are_left_out(measured):
    row, audit = strided(8, (1, 1))
    for other in (
        ({**row, "role": "trivial"}, audit),
        ({**row, "sig_x": None, "sig_y": None}, audit),
        ({**row, "layer": "not audited"}, audit),
        ({**row, "shape": "3×1×4×4"}, audit),
        strided(8, (1, 1), kind="transposed"),
        strided(8, (1, 1), mode="reflect"),
        strided(8, (0, 0), kernel=1),
        strided(8, (-1, 1)),
    ):
        assert signatures(measured, other) == (None, None, None)
    assert signatures(measured, (row, audit), strided(7, (1, 1)))[0] == pytest.approx(0.03)
    # The image's own layer is strided too.
    assert measured("signature", [{**row, "role": "first"}], [audit]) == pytest.approx(0.03)


def test_the_signature_of_3x3_kernels_leaves_larger_ones_out(measured):
    layers = [strided(8, (1, 1)), strided(8, (2, 2), kernel=5, sig=(0.5, 0.5))]
    rows, geometry = zip(*layers, strict=True)
    assert measured("signature_3x3", rows, geometry) == pytest.approx(0.03)


def test_the_signature_is_compared_with_the_exposure_gap(measured):
    sizes = (8, 16, 32, 64)
    layers = [strided(n, (1, 1), stride=(2, 1), sig=(0, 1 / n)) for n in sizes]
    rows, geometry = zip(*layers, strict=True)
    assert measured("signature_by_gap", rows, geometry) == pytest.approx(1)
    mirrored = [strided(n, (0, 1), stride=(2, 1), sig=(0, 1 / n)) for n in sizes]
    assert measured("signature_by_gap", *zip(*mirrored, strict=True)) == pytest.approx(-1)
    assert measured("signature_by_gap", rows[:3], geometry[:3]) is None


def deep(kind, scores, role):
    return [
        {"order": i, "kind": kind, "role": role, "shape": "3×3×4×4", "score": s, "null_mean": 0.5}
        for i, s in enumerate(scores)
    ]


def test_depth_compares_the_halves_of_classifiers(measured):
    rows = deep("conv", [0.5] * 4 + [0.9] + [0.7, 0.8, 0.9, 1.0], "internal")
    assert measured("halves", rows) == pytest.approx(0.35)
    assert measured("halves", rows[::-1]) == pytest.approx(0.35)
    assert measured("halves", rows, network="cifar_resnet20") == pytest.approx(0.35)
    for other in ("mtcnn_onet", "deepcr_acs", "palm_detection_full", "pp_ocr_det"):
        assert measured("halves", rows, network=other) is None
    assert measured("halves", rows, network="pp_ocr_rec") == pytest.approx(0.35)
    assert measured("halves", rows[:7]) is None
    depthwise = deep("depthwise", [0.6] * 4 + [0.7] * 4, "depthwise")
    assert measured("halves", [*rows[:7], *depthwise]) == pytest.approx(0.1)
    assert measured("halves", [*rows, *depthwise]) == pytest.approx(0.35)
    assert measured("halves", [{**row, "order": None} for row in rows]) is None


def test_a_network_may_name_the_size_of_its_images(study, files):
    network = Network("net.onnx", "a", "https://example.org", input_size=(48, 320))
    assert network.options == report.Options(input_size=(48, 320))
    assert study.networks["a1"].options == report.Options()


def test_a_study_may_choose_the_columns_of_its_layer_table(study, tmp_path):
    chosen = dataclasses.replace(study, layer_columns=("layer", "score"))
    studies.conduct(chosen, tmp_path / "zoo", COMMAND)
    found = rows(tmp_path / "zoo/layers.csv")
    assert list(found[0]) == ["variant", "network", "layer", "score"]
    table = report.read_table(study.files / "a1.npz")
    assert float(found[0]["score"]) == pytest.approx(table.rows[0]["score"], rel=1e-6)
    assert len(found[0]["score"]) <= len("0.123456789")


@pytest.mark.parametrize(("size", "least"), [("smoke", 5), ("cpu", 60), ("full", 80)])
def test_the_zoo_names_each_file_once_with_its_origin_and_family(repository, size, least):
    study = load_study(repository / "configs/studies/zoo.py", size, "elsewhere")
    assert len(study.networks) >= least
    assert str(study.files) == "elsewhere"
    assert len({network.file for network in study.networks.values()}) == len(study.networks)
    assert len({network.family for network in study.networks.values()}) >= 3
    for network in study.networks.values():
        assert network.origin.startswith(("https://", "PyPI's "))
        assert len(network.sha256) == 64 or size == "full"
    with (repository / "configs/studies/zoo.csv").open(newline="") as file:
        tasks = {row["task"] for row in csv.DictReader(file)}
    assert tasks == {"classify", "read", "detect", "locate", "segment", "restore", "transcribe"}


def test_the_reference_scores_of_real_networks_come_out(repository, shared, tmp_path):
    folder = str(shared / "weights")
    study = load_study(repository / "configs/studies/zoo.py", "smoke", folder)
    results = studies.conduct(study, tmp_path / "zoo", COMMAND)
    assert results.missing == ["ccexam_mnist", "ccexam_svhn", "ccexam_usps"]
    found = results.values["networks", "cifar_resnet20"]
    assert found["internal"] == pytest.approx(0.768, abs=0.0005)
    assert found["strided"] == pytest.approx(0.722, abs=0.0005)
    layers = {
        row["layer"]: float(row["score"])
        for row in rows(tmp_path / "zoo/layers.csv")
        if row["network"] == "cifar_resnet20"
    }
    assert layers["conv1"] == pytest.approx(0.59, abs=0.005)
    assert layers["layer2.0.conv1"] == pytest.approx(0.652, abs=0.0005)
    (run,) = [run for run in results.finished if run.seed == "cifar_resnet20"]
    folded = {row["layer"]: row["score"] for row in run.folded.rows}
    assert folded["layer2.0.conv1"] == pytest.approx(0.426, abs=0.0005)
