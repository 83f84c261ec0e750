"""The audit binary as a user meets it."""

import functools
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax import geometry

FIVE = "uneven at 5 of 5 strided layers; 225 is the nearest size where none is"


@pytest.fixture
def run(run_binary):
    """Runs the binary in this process: (exit status, standard output, standard error)."""
    return functools.partial(run_binary, "audit")


def save_onnx(path, shape, layers=((7, 2, 3), (3, 2, 1)), names=("conv1", "conv2")):
    nodes, stored, value = [], [], "x"
    for (kernel, stride, padding), name in zip(layers, names, strict=False):
        weight = np.ones((3, 3, kernel, kernel), np.float32)
        stored.append(numpy_helper.from_array(weight, f"{name}.weight"))
        inputs, value = [value, f"{name}.weight"], f"after {name}"
        window = {"strides": [stride] * 2, "pads": [padding] * 4}
        nodes.append(helper.make_node("Conv", inputs, [value], **window))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", [x], [y], stored)), path)
    return path


def test_a_model_of_the_package_at_the_size_it_was_made_for(run):
    status, out, _ = run("--model=resnet18")
    assert status == 0
    assert out.strip().endswith(FIVE)
    lines = {line.split()[1]: line for line in out.splitlines() if line.split()[1:]}
    assert "bottom right" in lines["conv1"]
    assert "bottom right" not in lines["layer1_0/conv1"]
    assert lines["max_pool_1"].split()[2:5] == ["max_pool", "112→56", "3"]


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        (["--model=resnet18", "--input_size=225"], "even at all 5 strided layers"),
        (
            ["--model=resnet18", "--input_size=227"],
            "uneven at 1 of 5 strided layers; 225 is the nearest size where none is",
        ),
        (
            ["--model=cifar_resnet20", "--num_classes=100"],
            "uneven at 2 of 2 strided layers; 33 is the nearest size where none is",
        ),
        (
            ["--model=cifar_resnet20", "--padding=same"],
            "uneven at 2 of 2 strided layers; 33 is the nearest size where none is",
        ),
        (["--model=cifar_resnet20", "--downsample=blur"], "even at all 4 strided layers"),
        (
            ["--model=small_cnn", "--input_size=32x33"],
            "uneven at 2 of 2 strided layers; 33x33 is the nearest size where none is",
        ),
    ],
)
def test_the_verdict_for_models(run, arguments, verdict):
    status, out, _ = run(*arguments)
    assert (status, out.strip().splitlines()[-1]) == (0, verdict)


def test_json_holds_the_rows_and_the_verdict(run):
    status, out, _ = run("--model=resnet18", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["network"], found["verdict"]) == ("resnet18", FIVE)
    assert (found["strided"], found["uneven"], found["nearest"]) == (5, 5, 225)
    rows = [geometry.LayerGeometry.from_dict(row) for row in found["layers"]]
    assert [row.uneven for row in rows if row.strided] == [(1, 1)] * 5


def test_an_onnx_file_at_a_given_or_its_own_size(run, tmp_path):
    dynamic = save_onnx(tmp_path / "dynamic.onnx", ("N", 3, "H", "W"))
    fixed = save_onnx(tmp_path / "fixed.onnx", (1, 3, 225, 225))
    status, out, _ = run(dynamic, "--input_size=224")
    assert status == 0
    assert "2 of 2 strided layers; 225 is the nearest" in out
    assert "even at all 2 strided layers" in run(fixed)[1]
    assert "2 of 2 strided layers; 225x321 is the nearest" in run(fixed, "--input_size=224x320")[1]


def test_names_from_a_file_are_shown_as_they_are(run, tmp_path):
    names = ["[red]stem[/red]", "\x1b[31mconv"]
    path = save_onnx(tmp_path / "[bold]net.onnx", (1, 3, 32, 32), names=names)
    _, out, _ = run(path)
    assert "[red]stem[/red]" in out
    assert "[bold]net.onnx" in out
    assert "\\x1b[31mconv" in out
    assert "\x1b" not in out


def test_layers_without_a_row_are_told(run, tmp_path):
    path = save_onnx(tmp_path / "net.onnx", (1, 3, 32, 32), [(3, 2, 1)] * 2)
    model = onnx.load(path)
    unknown = helper.make_node("Relu", ["after conv1"], ["odd"], domain="their.runtime")
    model.graph.node.insert(1, unknown)
    model.graph.node[2].input[0] = "odd"
    onnx.save(model, path)
    status, out, _ = run(path)
    reason = "the size of its input cannot be inferred"
    assert (status, f"left out: conv2: {reason}" in out) == (0, True)
    found = json.loads(run(path, "--json")[1])
    assert [row["layer"] for row in found["layers"]] == ["conv1"]
    assert found["left_out"] == {"conv2": reason}


@pytest.fixture
def run_directory(tmp_path):
    rows = geometry.audit_module(audit_model(), 32)
    model = {"name": "small_cnn", "width": 4, "depth": 3, "strided": [2], "num_classes": 10}
    config = {"model": {**model, "padding": "zero", "downsample": "stride", "dtype": "float32"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "layers.json").write_text(json.dumps([row.to_dict() for row in rows]))
    return tmp_path


def audit_model():
    from kernsym_jax import models

    return models.create("small_cnn", width=4, depth=3, strided=(2,))


def test_a_run_directory_at_its_own_and_another_size(run, run_directory):
    one = "uneven at 1 of 1 strided layer; 33 is the nearest size where none is"
    assert run(run_directory)[1].strip().endswith(one)
    found = json.loads(run(run_directory, "--json")[1])
    assert [row["layer"] for row in found["layers"]] == ["conv1", "conv2", "conv3"]
    status, out, _ = run(run_directory, "--input_size=41")
    assert (status, out.strip().splitlines()[-1]) == (0, "even at the one strided layer")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--json"],
            "name one ONNX, Keras or TensorFlow Lite file, one run directory or one --model",
        ),
        (["a.onnx", "b.onnx"], "name one ONNX, Keras or TensorFlow Lite file"),
        (["{t}/net.onnx", "--model=resnet18"], "name one ONNX, Keras or TensorFlow Lite file"),
        (["{t}/none.onnx"], "none.onnx"),
        (["{t}/net.onnx"], "net.onnx: its input 'x' has shape (N, 3, H, W); give an input size"),
        (["{t}/net.onnx", "--input_size=1"], "net.onnx: conv1: its kernel spans 3 pixels"),
        (["{t}/net.onnx", "--input_size=0"], "--input_size is one number, or two as HxW; got '0'"),
        (["{t}/net.onnx", "--input_size=big"], "got 'big'"),
        (["{t}/net.onnx", "--padding=same"], "--padding goes with --model"),
        (["{t}/cut.onnx", "--input_size=32"], "cut.onnx: not an ONNX model, or cut off"),
        (["{t}"], "config.json"),
        (["--model=resnet19"], "unknown model 'resnet19'"),
        (["--model=resnet18", "--padding=none"], "unknown padding 'none'"),
        (["--model=resnet18", "--downsample=none"], "unknown downsample 'none'"),
        (["--model=vgg16", "--input_size=8"], "more than the 1 of the padded input"),
    ],
)
def test_bad_input_is_one_line_and_status_two(run, tmp_path, arguments, says):
    whole = save_onnx(tmp_path / "net.onnx", ("N", 3, "H", "W"), [(3, 1, 0)]).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-9])
    status, out, errors = run(*(argument.format(t=tmp_path) for argument in arguments))
    assert (status, out) == (2, "")
    assert says in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "config.json: not the config of a run"),
        ("config.json", "[]", "config.json: not the config of a run"),
        ("config.json", "{}", "config.json: not the config of a run"),
        ("layers.json", "{", "layers.json: no list of layers"),
        ("layers.json", "[1]", "layers.json: no list of layers"),
        ("layers.json", '[{"layer": "conv1"}]', "layer 'conv1' lacks kind"),
    ],
)
def test_a_damaged_run_directory_is_named(run, run_directory, file, content, says):
    (run_directory / file).write_text(content)
    status, _, errors = run(run_directory)
    assert status == 2
    assert says in errors
    assert errors.count("\n") == 1
