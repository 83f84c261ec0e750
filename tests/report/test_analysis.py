"""From a finished run to the files of a report."""

import csv
import functools
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import traverse_util
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax import geometry, models, report, symmetry, training
from kernsym_jax.weights import ConvKernel, Weights

CONV = {"strides": [2, 2], "pads": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    config = training.default()
    config.epochs, config.batch_size, config.log_every = 4 / 22, 64, 2
    config.model.update({"width": 4, "depth": 3, "strided": (2,)})
    training.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def results(run):
    out = run / "report"
    tables, failed = report.analyze([run], out)
    assert not failed
    return out, tables[0]


def test_a_run_gives_every_file_of_a_report(results):
    out, _ = results
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    figures = ("mean_kernels", "score_by_depth", "trajectory")
    assert files == {
        "layers.csv",
        "layers.json",
        "mean_kernels.npz",
        "report.html",
        *(f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png")),
    }


def test_the_parquet_table_is_that_of_the_csv(results, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    _, table = results
    report.write_parquet([table], tmp_path / "layers.parquet")
    rows = parquet.read_table(tmp_path / "layers.parquet").to_pylist()
    assert rows == [{name: row[name] for name in report.COLUMNS} for row in table.rows]


def test_the_table_of_a_run_agrees_with_what_training_logged(run, results):
    out, table = results
    with (out / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "conv3"]
    assert [row["role"] for row in rows] == ["first", "strided", "internal"]
    assert [row["uneven_h"] for row in rows] == ["0", "1", "0"]
    assert list(rows[0]) == list(report.COLUMNS)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "symmetry"][-1]
    for row, further in zip(rows, table.rows, strict=True):
        for name, value in last["layers"][row["layer"]].items():
            found = row[name] if name in report.COLUMNS else further[name]
            assert float(found) == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_the_json_and_the_archive_hold_the_same_network(results):
    out, table = results
    (network,) = json.loads((out / "layers.json").read_text())
    assert network["layers"] == table.rows
    assert network["summary"] == report.summarize(table)
    assert network["advice"].startswith("Padding at 8×8 pixels: uneven at 1 of 1 strided layer; ")
    kernels = np.load(out / "mean_kernels.npz")
    assert sorted(kernels) == ["conv1", "conv2", "conv3"]
    for row in table.rows:
        score = symmetry.symmetry_score(kernels[row["layer"]])
        assert row["score"] == pytest.approx(float(score), abs=1e-6)


def test_figures_are_well_formed_and_the_same_every_time(results, tmp_path):
    out, table = results
    for path in (out / "figures").glob("*.svg"):
        assert ET.fromstring(path.read_text()).tag.endswith("svg")
    report.write_results([table], tmp_path)
    for path in (out / "figures").glob("*.svg"):
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes()


def test_the_page_names_no_place_outside_itself(results):
    out, _ = results
    page = (out / "report.html").read_text()
    for reference in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page):
        assert reference.startswith(("#", "data:"))
    assert "@import" not in page


def test_hostile_names_are_text_everywhere(tmp_path, capsys):
    name = '<script>alert("x")</script>\x1b[31m[bold]$\\frac{1}{2}$'
    weight = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    found = Weights({name: ConvKernel(weight)}, {name: name}, name, "test", "file", "HWIO", (name,))
    from kernsym_jax.report.analysis import print_tables

    table = report.network_table(found)
    report.write_results([table], tmp_path)
    print_tables([table])
    printed = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page + printed
    assert "[bold]" in printed
    for path in (tmp_path / "figures").glob("*.svg"):
        ET.fromstring(path.read_text())


def test_several_networks_share_one_table_and_one_page(run, tmp_path):
    tables = [report.read_table(run), report.read_table(run)]
    report.write_results(tables, tmp_path)
    with (tmp_path / "layers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "The networks side by side" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "2_score_by_depth.svg").is_file()


def test_weights_without_spatial_convolutions_are_refused(tmp_path):
    np.savez(tmp_path / "dense.npz", head=np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="no spatial convolution"):
        report.read_table(tmp_path / "dense.npz")


def test_a_half_written_run_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises((ValueError, FileNotFoundError), match="checkpoint"):
        report.read_table(tmp_path / "run")
    with pytest.raises((ValueError, FileNotFoundError), match="missing"):
        report.read_table(tmp_path / "missing")


def test_one_bad_source_among_several_is_reported_and_the_rest_are_done(run, tmp_path, shared):
    (tmp_path / "torn.pth").write_bytes((shared / "weights/cifar_resnet20.th").read_bytes()[:9999])
    np.savez(tmp_path / "dense.npz", head=np.ones((4, 3), np.float32))
    tables, failed = report.analyze([tmp_path, run], tmp_path / "out")
    assert [table.source for table in tables] == [str(run)]
    assert {path.rsplit("/", 1)[1] for path in failed} == {"torn.pth", "dense.npz"}
    with pytest.raises(ValueError, match="none of 2 sources"):
        report.analyze([tmp_path / "*.*"], tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_folders_and_patterns_stand_for_what_is_in_them(run, tmp_path):
    for name in ("b.npz", "deep/a.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in report.find_sources([str(tmp_path)])]
    assert names == ["b.npz", "deep/a.safetensors"]
    assert [p.name for p in report.find_sources([str(tmp_path / "*.npz")] * 2)] == ["b.npz"]
    assert report.find_sources([str(run.parent)]) == [run]
    with pytest.raises(FileNotFoundError, match=r"none\*"):
        report.find_sources([str(tmp_path / "none*")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no run directory and no file of weights"):
        report.find_sources([str(tmp_path / "empty")])
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    assert len(report.find_sources([str(tmp_path)])) == 2


def test_a_folder_holds_networks_and_what_a_trainer_saves_beside_them(tmp_path):
    (tmp_path / "deep").mkdir()
    ours = (
        "ckpt-2",
        "checkpoint_10",
        "net.pth.tar",
        "net.pkl",
        "net.pdparams",
        "deep/model_2.pt",
        "snapshot_iter_100",
        "net.ptl",
    )
    others = (
        "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "optimizer_1.bin",
        "trainer_state.json", "ckpt-2.index", "checkpoint",
    )  # fmt: skip
    for name in ours + others:
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in report.find_sources([str(tmp_path)])]
    assert sorted(found) == sorted(ours)
    # 2 comes before 10, in folders as in patterns.
    for number in (10, 2):
        (tmp_path / "deep" / f"epoch_{number}.npz").touch()
    for place in (tmp_path / "deep", tmp_path / "deep" / "epoch_*"):
        found = [path.name for path in report.find_sources([str(place)]) if "epoch" in path.name]
        assert found == ["epoch_2.npz", "epoch_10.npz"]


def test_an_index_and_its_shards_are_one_network(tmp_path):
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for name in (*weight_map.values(), "other.safetensors"):
        (tmp_path / name).touch()
    found = report.find_sources([str(tmp_path)])
    assert [path.name for path in found] == [index.name, "other.safetensors"]
    index.write_text("{")
    assert len(report.find_sources([str(tmp_path)])) == 4


def test_a_model_tells_the_strides_of_weights_that_are_of_it(shared):
    path = shared / "weights" / "cifar_resnet20.th"
    table = report.read_table(path, report.Options(model="cifar_resnet20"))
    roles = {row["layer"]: row["role"] for row in table.rows}
    assert {layer for layer, role in roles.items() if role == "strided"} == {
        "layer2.0.conv1",
        "layer3.0.conv1",
    }
    scores = {row["layer"]: row["score"] for row in table.rows}
    assert scores["conv1"] == pytest.approx(0.59, abs=0.005)
    assert scores["layer2.0.conv1"] == pytest.approx(0.652, abs=0.0005)
    summary = report.summarize(table)
    assert summary["internal_mean"] == pytest.approx(0.768, abs=0.0005)
    assert summary["strided_mean"] == pytest.approx(0.722, abs=0.0005)
    folded = report.read_table(path, report.Options(fold_batchnorm=True))
    (score,) = (row["score"] for row in folded.rows if row["layer"] == "layer2.0.conv1")
    assert score == pytest.approx(0.426, abs=0.0005)
    with pytest.raises(ValueError, match=r"cifar_resnet20\.th is no resnet18"):
        report.read_table(path, report.Options(model="resnet18"))
    with pytest.raises(ValueError, match="is no cifar_resnet32: 12 of its layers are missing"):
        report.read_table(path, report.Options(model="cifar_resnet32"))


def test_the_cifar_resnets_show_their_padding_at_every_strided_layer(shared, tmp_path, capsys):
    rows = []
    for depth in (20, 32, 44, 56):
        path = shared / "weights" / f"cifar_resnet{depth}.th"
        table = report.table(path, model=f"cifar_resnet{depth}")
        assert report.verdict(table).startswith(
            "2 of 2 strided layers show the padding; 33 px would be even; remedies: "
        )
        rows += [row for row in table.rows if row["role"] == "strided"]
    assert len(rows) == 8
    for row in rows:
        assert min(row["sig_x"], row["sig_y"]) > 0
        assert report.in_words(row).startswith(
            "weights grow towards the bottom right, as the padding predicts, p = "
        )
    for name in ("sig_p", "padding_p", "padding_p_shuffled"):
        assert sum(row[name] < 0.01 for row in rows) >= 6
    # The page and the terminal begin with the verdict.
    report.analyze([path], tmp_path, report.Options(model="cifar_resnet56"))
    line = "2 of 2 strided layers show the padding; 33 px would be even"
    assert capsys.readouterr().out.startswith(line)
    page = (tmp_path / "report.html").read_text()
    assert page.index(line) < page.index("</header>")
    assert json.loads((tmp_path / "layers.json").read_text())[0]["verdict"].startswith(line)


def test_a_recognised_network_has_the_table_that_its_model_gives(shared, capsys, tmp_path):
    path = shared / "weights" / "cifar_resnet32.th"
    table = report.table(path)
    assert table.weights.notes[0] == "recognised as cifar_resnet32"
    named = report.table(path, model="cifar_resnet32")
    assert table.rows == named.rows
    assert report.verdict(table) == report.verdict(named)
    assert report.advice(table) == report.advice(named)
    report.analyze([path], tmp_path)
    assert "recognised as cifar_resnet32" in capsys.readouterr().out
    assert "recognised as cifar_resnet32" in (tmp_path / "report.html").read_text()


def test_an_auxiliary_branch_beside_a_recognised_network_is_measured_too():
    model = models.create("cifar_resnet20")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = {"encoder": variables["params"], "aux": {"conv": {"kernel": jnp.ones((3, 3, 64, 8))}}}
    table = report.table(params)
    assert table.weights.notes[0].startswith("recognised as cifar_resnet20 (prefix encoder")
    assert "besides it aux" in table.weights.notes[0]
    strides = {row["layer"]: row["stride"] for row in table.rows}
    assert len(strides) == 20
    assert strides[table.rows[-1]["layer"]] in (None, "")


def drawn_state_dict(name, seed=0):
    rng = np.random.default_rng(seed)
    shapes = recognised_shapes(name)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.", "a.b.0.", "conv1.layer1."],
)
def test_the_model_that_the_user_names_is_found_behind_any_prefix(prefix):
    state_dict = {f"{prefix}{key}": array for key, array in drawn_state_dict("resnet18").items()}
    table = report.table(state_dict, model="resnet18", padding="same")
    # `weights.read` takes the prefixes of torch.compile and of DataParallel off itself.
    conv1, *rows = table.rows
    kept = "" if prefix in ("module.", "_orig_mod.", "_orig_mod.module.") else prefix
    assert conv1["layer"] == f"{kept}conv1"
    assert (conv1["role"], conv1["stride"], conv1["padding"]) == ("first", "2", "2,3×2,3")
    assert [row["stride"] for row in rows].count("2") == 3
    assert table.weights.notes == ()
    more = state_dict | {f"{prefix}neck.weight": np.ones((8, 512, 3, 3), np.float32)}
    assert "besides it" in report.table(more, model="resnet18").weights.notes[0]
    more = state_dict | {f"{prefix}layer1.2.conv1.weight": np.ones((64, 64, 3, 3), np.float32)}
    with pytest.raises(ValueError, match="is no resnet18: 1 kernels are not of it"):
        report.table(more, model="resnet18")


def test_a_model_that_learns_its_steps_is_found_behind_a_prefix():
    model = models.create("cifar_resnet20", downsample="lps")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = {"encoder": {"net": variables["params"]}}
    table = report.table(params, model="cifar_resnet20", downsample="lps")
    assert table.rows[0]["layer"] == "encoder/net/conv1"
    assert all(row["stride"] == "1" for row in table.rows)


@pytest.mark.parametrize("head", ["classifier.0.convs.1.0", "decode_head.convs.0.conv", "aspp.a"])
def test_the_strides_of_a_network_for_segmentation_stay_open_where_it_may_be_dilated(head):
    state_dict = {f"backbone.{key}": a for key, a in drawn_state_dict("resnet18").items()}
    state_dict[f"{head}.weight"] = np.ones((8, 512, 3, 3), np.float32)
    table = report.table(state_dict)
    assert "layer3 and layer4 may be dilated in place of strided" in table.weights.notes[0]
    strides = {row["layer"]: row["stride"] for row in table.rows}
    assert strides["backbone.layer2.0.conv1"] == "2"
    assert {strides[f"backbone.layer{n}.0.conv1"] for n in (3, 4)} == {None}
    named = report.table(state_dict, model="resnet18")
    assert [row["stride"] for row in named.rows].count("2") == 4


def test_a_classifier_without_convolutions_leaves_no_stride_open():
    state_dict = {f"backbone.{key}": a for key, a in drawn_state_dict("resnet18").items()}
    table = report.table(state_dict | {"classifier.weight": np.ones((8, 512), np.float32)})
    assert [row["stride"] for row in table.rows].count("2") == 4


@pytest.mark.parametrize("name", ["resnetblur18.a1_in1k", "faster_rcnn_r18_caffe", "detr-r18-dc5"])
def test_a_name_that_tells_of_other_strides_leaves_them_open(tmp_path, name):
    path = tmp_path / f"{name}.npz"
    np.savez(path, **drawn_state_dict("resnet18"))
    table = report.read_table(path)
    assert "has the layers of resnet18 but other strides" in table.weights.notes[0]
    assert {row["stride"] for row in table.rows} == {None}
    assert report.read_table(path, report.Options(model="resnet18")).rows[0]["stride"] == "2"


class TorchModule:
    """A network, or a convolution of one, with what a module of PyTorch has."""

    __module__ = "torch.nn.modules.conv"

    def __init__(self, parts=(), tensors=(), **attributes):
        self.__dict__ |= attributes
        self.named_modules = lambda: [("", self), *dict(parts).items()]
        self.state_dict = lambda: dict(tensors)


@pytest.mark.parametrize(
    ("changed", "recognised"),
    [
        ({}, True),
        ({"stride": (1, 1)}, False),
        ({"stride": (1, 1), "padding": "same"}, False),
        ({"padding_mode": "circular"}, False),
    ],
)
def test_strides_of_modules_decide_against_a_network_with_others(changed, recognised):
    parts = {}
    for row in models.layer_rows("cifar_resnet20"):
        if row["kind"] == "conv":
            stride, padding = tuple(row["stride"]), tuple(side for side, _ in row["padding"])
            pairs = {"stride": stride, "padding": padding, "dilation": (1, 1)}
            name = row["layer"].replace("_", ".").replace("/", ".")
            parts[name] = TorchModule(transposed=False, groups=1, kernel_size=(3, 3), **pairs)
    parts["layer3.0.conv1"].__dict__ |= changed
    table = report.table(TorchModule(parts, drawn_state_dict("cifar_resnet20")))
    told = "recognised as cifar_resnet20", "its layers are those of cifar_resnet20, but with other"
    assert table.weights.notes[0].startswith(told[not recognised])
    strided = [row["layer"] for row in table.rows if row["stride"] == "2"]
    wanted = ["layer2.0.conv1"] if "stride" in changed else ["layer2.0.conv1", "layer3.0.conv1"]
    assert strided == wanted


class Conv2dSame(TorchModule):
    """timm's class, which pads as TensorFlow does."""


@pytest.mark.parametrize(("kind", "padding"), [(Conv2dSame, "0,1×0,1"), (TorchModule, "1")])
def test_the_class_of_its_strided_layers_tells_whether_efficientnet_is_tensorflows(kind, padding):
    parts = {}
    for row in models.layer_rows("efficientnet_b0"):
        if row["kind"] in ("conv", "depthwise"):
            stride, sides = tuple(row["stride"]), tuple(side for side, _ in row["padding"])
            pairs = {"stride": stride, "kernel_size": tuple(row["kernel"]), "dilation": (1, 1)}
            made = kind if stride != (1, 1) else TorchModule
            name = re.sub(r"_(?=\d)|/", ".", row["layer"])
            fixed = {"transposed": False, "groups": row["groups"]}
            parts[name] = made(padding=sides if made is TorchModule else (0, 0), **pairs, **fixed)
    table = report.table(TorchModule(parts, drawn_state_dict("efficientnet_b0")))
    assert table.weights.notes[0] == "recognised as efficientnet_b0"
    assert table.rows[0]["padding"] == padding


def test_two_networks_in_one_file_are_both_recognised():
    state_dict = {f"eye.{key}": array for key, array in drawn_state_dict("cifar_resnet20").items()}
    state_dict |= {f"ear.{key}": a for key, a in drawn_state_dict("cifar_resnet32", 1).items()}
    table = report.table(state_dict)
    said = "recognised as cifar_resnet20 (prefix eye.) and cifar_resnet32 (prefix ear.)"
    assert table.weights.notes == (said,)
    strided = [row["layer"] for row in table.rows if row["stride"] == "2"]
    assert strided == [f"{net}.layer{stage}.0.conv1" for net in ("eye", "ear") for stage in (2, 3)]
    assert report.verdict(table).startswith("0 of 4 strided layers show the padding")
    assert table.geometry[-1].layer == "ear.layer3.4.conv2"
    (last,) = table.geometry[-1].reads
    assert table.geometry[last].layer == "ear.layer3.4.conv1"


@pytest.mark.parametrize("place", ["tf_efficientnet_b0.npz", "timm--tf_efficientnet_b0.in1k/m.npz"])
def test_weights_from_tensorflow_in_timm_have_its_padding(tmp_path, place):
    shapes = recognised_shapes("efficientnet_b0")
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(path, **{name: rng.normal(size=shape) for name, shape in shapes.items()})
    table = report.table(path)
    (stem,) = [row for row in table.rows if row["layer"] == "features.0.0"]
    assert (stem["padding"], stem["uneven_h"]) == ("0,1×0,1", 0)


def test_weights_of_efficientnet_pytorch_have_tensorflows_padding():
    # The names of EfficientNet-PyTorch: all blocks in one row.
    names = {"features.0.0": "_conv_stem", "features.8.0": "_conv_head"}
    blocks = [1, 2, 2, 3, 3, 4, 1]
    places = [f"features.{i}.{j}" for i, n in enumerate(blocks, 1) for j in range(n)]
    for number, place in enumerate(places):
        inner = ["_depthwise_conv", "_se", "_project_conv", ""]
        if number:
            inner = ["_expand_conv", "_depthwise_conv", "_se", "_project_conv"]
        for part, word in enumerate(inner):
            ends = {"fc1": "_reduce", "fc2": "_expand"} if word == "_se" else {"0": ""}
            for end, rest in ends.items():
                names[f"{place}.block.{part}.{end}"] = f"_blocks.{number}.{word}{rest}"
    stored = {
        names[key.removesuffix(".weight")] + ".weight": array
        for key, array in drawn_state_dict("efficientnet_b0").items()
        if key.removesuffix(".weight") in names
    }
    table = report.table(stored)
    assert table.weights.notes[0] == "recognised as efficientnet_b0"
    rows = {row["layer"]: row for row in table.rows}
    assert rows["_conv_stem"]["predicted_skew"] == "top left"
    assert rows["_blocks.11._depthwise_conv"]["padding"] == "1,2×1,2"
    strided = [name for name, row in rows.items() if row["stride"] == "2"]
    assert strided == ["_conv_stem", *(f"_blocks.{i}._depthwise_conv" for i in (1, 3, 5, 11))]
    # EfficientNet-Lite has none of the modules for squeeze-and-excitation, and is another network.
    lite = report.table({name: array for name, array in stored.items() if "._se_" not in name})
    assert not any("recognised" in note for note in lite.weights.notes)


def recognised_shapes(name):
    """The convolutions of a network with PyTorch's names and shapes."""
    model = models.create(name)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items():
        layer, _, kind = path.rpartition("/")
        if kind == "kernel" and leaf.ndim == 4:
            place = re.sub(r"_(\d)", r".\1", layer.replace("/", "."))
            shapes[f"{place}.weight"] = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1))
    return shapes


@pytest.mark.parametrize("fields", [{}, {"padding": "same"}, {"downsample": "blur"}])
def test_the_advice_is_that_of_the_audit(shared, fields):
    table = report.read_table(
        shared / "weights" / "cifar_resnet20.th", report.Options(model="cifar_resnet20", **fields)
    )
    model = models.create("cifar_resnet20", **fields)
    at = functools.partial(geometry.audit_module, model)
    expected = geometry.advise(at(32), at).verdict
    assert report.advice(table) == f"Padding at 32×32 pixels: {expected}."


def test_an_array_whose_axes_are_open_is_named_with_the_way_out(tmp_path):
    np.savez(tmp_path / "open.npz", conv=np.ones((3, 3, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"conv: the axes of .* --layout decides"):
        report.read_table(tmp_path / "open.npz")
    table = report.read_table(tmp_path / "open.npz", report.Options(layout="HWIO"))
    assert len(table.rows) == 1


@pytest.mark.parametrize("line", ["[]", '{"split": "symmetry"}', '{"split": "symmetry", "step": 1, "layers": {"a": 3}}', "{"])  # fmt: skip # noqa: E501
def test_lines_that_are_not_metrics_are_refused_by_number(run, tmp_path, line):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line \d+: not a line of a run"):
        report.read_table(tmp_path / "run")


def test_results_that_have_no_place_are_refused_before_anything_is_measured(run, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    for out, says in ((tmp_path / "taken", "taken: no folder for the report"), ("", "no name")):
        with pytest.raises(ValueError, match=says):
            report.analyze([run], out)
    assert capsys.readouterr().out == ""


def test_a_name_that_is_no_unicode_is_shown_with_escapes(tmp_path):
    strange = os.fsdecode(b"net\xff.npz")
    np.savez(tmp_path / strange, conv=np.ones((3, 3, 4, 2), np.float32))
    tables, failed = report.analyze([tmp_path], tmp_path / "out")
    assert not failed
    assert tables[0].source.endswith("net\\xff.npz")


def test_real_files_of_pytorch_are_read_in_full(shared):
    counts = {}
    for path in report.find_sources([str(shared / "weights")]):
        table = report.read_table(path)
        counts[path.name] = len(table.rows)
        assert all(row["score"] is not None for row in table.rows)
    assert counts == {
        "captum_cifar_lenet.pt": 2,
        "cifar_resnet20.th": 19,
        "cifar_resnet32.th": 31,
        "cifar_resnet44.th": 43,
        "cifar_resnet56.th": 55,
    }


def test_layers_of_an_onnx_file_stand_beside_their_geometry_whatever_their_names(tmp_path):
    names = ["conv1.W", "layer1/kernel", "onnx::Conv_7", "conv1.W"]
    nodes = [
        helper.make_node("Conv", [f"{i}", name], [f"{i + 1}"], name=f"/n{i}/Conv", **CONV)
        for i, name in enumerate(names)
    ]
    shape = (1, 8, 64, 64)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("0", shape), (str(len(names)), None))
    ]
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    stored = [numpy_helper.from_array(weight, name) for name in dict.fromkeys(names)]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)), path)
    (table,), _ = report.analyze([path], tmp_path / "report")
    with (tmp_path / "report" / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["conv1", "layer1", "/n2/Conv", "conv1 (/n3/Conv)"]
    assert [(row["uneven_h"], row["uneven_w"]) for row in rows] == [("1", "1")] * 4
    assert [row["predicted_skew"] for row in table.rows] == ["bottom right"] * 4
