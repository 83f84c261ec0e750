"""ONNX networks evaluated through onnxruntime, against the same network in JAX."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kernsym_jax import data, evaluation
from kernsym_jax.evaluation import HostFunction, Shifts

pytest.importorskip("onnxruntime", reason="pip install 'kernsym-jax[onnxruntime]'")

TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8
}  # fmt: skip
RANDOM = np.random.default_rng(3)
KERNEL = RANDOM.normal(size=(6, 3, 3, 3)).astype(np.float32)  # OIHW
DENSE = RANDOM.normal(size=(6, 2)).astype(np.float32)
MASKS = RANDOM.normal(size=(2, 3, 3, 3)).astype(np.float32)


def jax_classifier(images):
    """What `write` makes of a classifier, in JAX."""
    maps = convolved(images, KERNEL, 2)
    return jax.nn.relu(maps).mean((1, 2)) @ DENSE


def convolved(images, kernel, stride):
    return jax.lax.conv_general_dilated(
        images, kernel.transpose(2, 3, 1, 0), (stride, stride), [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def write(
    path, layout="NCHW", batch="N", size=("H", "W"), dtype="float32", ends=(), segments=False,
    shape=None,
):  # fmt: skip
    """Writes a network: a convolution, and for a classifier a mean and a dense layer."""
    height, width = size
    sides = {"N": batch, "C": 3, "H": height, "W": width}
    arrays = {"k": MASKS if segments else KERNEL, "d": DENSE, "white": np.float32(255)}
    nodes = [helper.make_node("Cast", ["x"], ["x1"], to=TensorProto.FLOAT)]
    if dtype == "uint8":
        nodes.append(helper.make_node("Div", ["x1", "white"], ["x2"]))
    else:
        nodes.append(helper.make_node("Identity", ["x1"], ["x2"]))
    order = [0, 3, 1, 2] if layout == "NHWC" else [0, 1, 2, 3]
    nodes.append(helper.make_node("Transpose", ["x2"], ["x3"], perm=order))
    strides = [1, 1] if segments else [2, 2]
    nodes.append(
        helper.make_node("Conv", ["x3", "k"], ["map"], strides=strides, pads=[1] * 4, name="conv")
    )
    if segments:
        back = [0, 2, 3, 1] if layout == "NHWC" else [0, 1, 2, 3]
        nodes.append(helper.make_node("Transpose", ["map"], ["y0"], perm=back))
    else:
        nodes += [
            helper.make_node("Relu", ["map"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("MatMul", ["flat", "d"], ["y0"]),
        ]
    outputs = []
    for node in ends:
        nodes.append(helper.make_node(*node[:3], **node[3]))
        if node[4]:
            outputs.append(helper.make_tensor_value_info(node[2][0], node[4], None))
    if not outputs:
        outputs = [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)]
    inputs = [helper.make_tensor_value_info("x", TYPES[dtype], shape or [sides[c] for c in layout])]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, kept)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 8×8 and of 8×6 pixels in two classes, images with masks, images of mixed sizes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def save(place, number, *shape):
        place = folder / place
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")

    for split in ("train", "test"):
        for number in range(6):
            for name in ("cat", "dog"):
                save(f"square/{split}/{name}", number, 8, 8, 3)
                save(f"mixed/{split}/{name}", number, 8 + number, 8, 3)
                save(f"gray/{split}/{name}", number, 8, 8)
            save(f"masked/{split}/images", number, 8, 6, 3)
            mask = (random.random((8, 6)) > 0.4).astype(np.uint8)
            place = folder / f"masked/{split}/masks"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(place / f"{number}.png")
    return folder


@pytest.fixture
def run(run_binary, monkeypatch):
    monkeypatch.setenv("KERNSYM_JAX_CACHE", "")
    return lambda *arguments: run_binary("evaluate", *arguments)


def figures(found):
    """The numbers of an evaluation, without the settings."""
    numbers = {name: value for name, value in found.items() if name != "settings"}
    leaves = jax.tree.leaves(json.loads(json.dumps(numbers)))
    return [leaf for leaf in leaves if not isinstance(leaf, str)]


def wanted(folder, predict, shifts, mean=(0, 0, 0), std=(1, 1, 1), source="folder:{}/square"):
    """The evaluation of the same network in JAX."""
    images = data.load(source.format(folder), "test")
    values = np.asarray(data.normalize(images.images, mean, std))
    answers = evaluation.measure(predict, [{"image": values, "label": images.labels}], shifts)
    return evaluation.summarize(answers, images.classes)


@pytest.mark.parametrize(
    ("made", "tolerance"),
    [
        ({}, 1e-6),
        ({"layout": "NHWC", "batch": 1}, 1e-6),
        ({"batch": 5, "size": (8, 8)}, 1e-6),
        ({"layout": "NHWC", "batch": 5, "dtype": "uint8"}, 1e-6),
        ({"dtype": "float16", "size": (8, "W")}, 1e-3),
    ],
)
def test_a_classifier_gets_the_figures_of_the_same_network_in_jax(
    run, folder, tmp_path, made, tolerance
):
    path = write(tmp_path / "net.onnx", **made)
    status, out, errors = run(
        path, f"--data=folder:{folder}/square", "--shift=1", "--batch_size=7", "--input_size=8"
    )
    assert (status, errors) == (0, "")
    found = json.loads((tmp_path / "consistency.json").read_text())
    expected = wanted(folder, jax_classifier, Shifts("circular", -1, 1))
    assert 0 < expected["accuracy"]["value"] < 1
    np.testing.assert_allclose(figures(found), figures(expected), atol=tolerance)
    settings = found["settings"]
    assert settings["weights"] == str(path)
    assert (settings["normalized"], settings["mean"], settings["std"]) == (False, [0] * 3, [1] * 3)
    assert settings["input"] == {
        "name": "x", "layout": made.get("layout", "NCHW"), "dtype": made.get("dtype", "float32"),
    }  # fmt: skip
    values = "0 to 255" if made.get("dtype") == "uint8" else "0 to 1, not normalised"
    assert f"images of values {values}" in out


def test_mean_and_std_normalise_and_crops_have_the_size_of_the_graph(run, folder, tmp_path):
    path = write(tmp_path / "net.onnx", size=(6, 6), batch=4)
    given = [path, f"--data=folder:{folder}/square", "--mean=.4,.5,.6", "--std=.2,.3,.2"]
    status, out, _ = run(*given, "--shift=1", "--shift_mode=crop")
    assert status == 0
    assert "the network got images" not in out
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert (found["settings"]["image_size"], found["settings"]["network_input"]) == ([8, 8], [6, 6])
    assert found["settings"]["normalized"]
    expected = wanted(
        folder, jax_classifier, Shifts("crop", -1, 1, window=6), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    )
    np.testing.assert_allclose(figures(found), figures(expected), atol=1e-6)


def test_a_softmax_is_undone_and_the_first_output_that_fits_is_used(run, folder, tmp_path):
    labels = ("ArgMax", ["y0"], ["label"], {"axis": 1, "keepdims": 0}, TensorProto.INT64)
    pooled = ("Identity", ["pool"], ["features"], {}, TensorProto.FLOAT)
    narrow = ("ReduceMax", ["y0"], ["best"], {"axes": [1]}, TensorProto.FLOAT)
    shares = ("Softmax", ["y0"], ["shares"], {"axis": 1}, TensorProto.FLOAT)
    again = ("Neg", ["y0"], ["wrong"], {}, TensorProto.FLOAT)
    path = write(tmp_path / "net.onnx", ends=(labels, narrow, shares, again, pooled), batch=5)
    assert run(path, f"--data=folder:{folder}/square", "--shift=1")[0] == 0
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert found["settings"]["output"] == {"name": "shares", "probabilities": True}
    expected = wanted(folder, jax_classifier, Shifts("circular", -1, 1))
    np.testing.assert_allclose(figures(found), figures(expected), atol=1e-5)


def test_a_classifier_may_leave_its_pooled_map_as_it_is(run, folder, tmp_path):
    first = ("Slice", ["pool", "from", "to", "axis"], ["y1"], {}, TensorProto.FLOAT)
    ends = [
        ("Constant", [], [name], {"value": numpy_helper.from_array(np.array([n]))}, None)
        for name, n in (("from", 0), ("to", 2), ("axis", 1))
    ]
    path = write(tmp_path / "net.onnx", ends=(*ends, first))
    assert run(path, f"--data=folder:{folder}/square", "--shift=1")[0] == 0
    found = json.loads((tmp_path / "consistency.json").read_text())

    def predict(images):
        return jax.nn.relu(convolved(images, KERNEL, 2)).mean((1, 2))[:, :2]

    expected = wanted(folder, predict, Shifts("circular", -1, 1))
    np.testing.assert_allclose(figures(found), figures(expected), atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_segmenter_gets_the_figures_of_the_same_network_in_jax(run, folder, tmp_path, layout):
    path = write(tmp_path / "net.onnx", segments=True, layout=layout, size=(8, 6), batch=4)
    source = "masks:{}/masked"
    status, _, errors = run(
        path, "--data=" + source.format(folder), "--shift=1", "--shift_mode=zero"
    )
    assert (status, errors) == (0, "")
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert "mean_iou" in found
    expected = wanted(
        folder, lambda x: convolved(x, MASKS, 1), Shifts("zero", -1, 1), source=source
    )
    np.testing.assert_allclose(figures(found), figures(expected), atol=1e-6)
    assert (tmp_path / "consistency.png").is_file()


def test_analyze_shows_the_evaluation_of_the_file(run, run_binary, folder, tmp_path):
    path = write(tmp_path / "net.onnx", size=(8, 8))
    assert run(path, f"--data=folder:{folder}/square", "--shift=1")[0] == 0
    found = json.loads((tmp_path / "consistency.json").read_text())
    status, _, errors = run_binary("analyze", path, f"--out={tmp_path}/report")
    assert (status, errors) == (0, "")
    (network,) = json.loads((tmp_path / "report" / "layers.json").read_text())
    shown = network["consistency"]
    assert shown["shift_consistency"]["value"] == found["shift_consistency"]["value"]
    assert shown["flip_consistency"] == found["flip_consistency"]


def test_without_onnxruntime_the_extra_is_named(run, folder, tmp_path, monkeypatch):
    path = write(tmp_path / "net.onnx")
    empty = tmp_path / "without"
    (empty / "onnxruntime").mkdir(parents=True)
    (empty / "onnxruntime" / "__init__.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(empty)
    monkeypatch.delitem(__import__("sys").modules, "onnxruntime")
    status, _, errors = run(path, f"--data=folder:{folder}/square")
    assert (status, errors.count("\n")) == (2, 1)
    assert "pip install 'kernsym-jax[onnxruntime]'" in errors


@pytest.mark.parametrize(
    ("made", "source", "arguments", "says"),
    [
        ({}, "square", ["--mean=.5", "--std=.5"], "takes images of 3 channels"),
        ({}, "square", ["--mean=.5,.5,.5", "--std=0,1,1"], "std above 0"),
        ({}, "square", ["--model=small_cnn"], "--model does not go with"),
        ({}, "square", ["--ema"], "--ema does not go with"),
        ({}, "square", ["more.onnx"], "unexpected argument 'more.onnx'"),
        ({}, "mixed", [], "size"),
        ({}, "none", [], "no such folder"),
        ({"size": (8, 8)}, "square", ["--input_size=9"], "its input is (8, 8) pixels, not 9×9"),
        ({"size": (8, "W")}, "square", [], "its input is (8, ?) pixels; --input_size says"),
        ({"shape": ["N", 4, 8, 8]}, "square", [], "its input x is tensor(float) (N, 4, 8, 8)"),
        ({"shape": ["N", "C", 8, 8]}, "square", [], "wanted (batch, channels, height, width)"),
        ({"dtype": "uint8"}, "square", ["--mean=0,0,0"], "--mean cannot normalise"),
        ({"segments": True}, "square", [], "no output is (batch, classes) of floats"),
        ({}, "masked", [], "no output is (batch, classes, 8, 6) of floats"),
    ],
)
def test_what_does_not_fit_is_one_line(run, folder, tmp_path, made, source, arguments, says):
    path = write(tmp_path / "net.onnx", **made)
    kind = "masks" if source == "masked" else "folder"
    status, out, errors = run(path, f"--data={kind}:{folder}/{source}", *arguments)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert says in errors
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_damaged_file_is_one_line(run, folder, tmp_path):
    path = write(tmp_path / "net.onnx")
    whole = path.read_bytes()
    graph = onnx.load(path)
    graph.graph.node[0].op_type = "Unheard"
    for content in (whole[:60], whole[:-40], b"hello world", b"", graph.SerializeToString()):
        path.write_bytes(content)
        status, out, errors = run(path, f"--data=folder:{folder}/square")
        assert (status, out, errors.count("\n")) == (2, "", 1)
        assert "net.onnx" in errors
    path.unlink()
    status, _, errors = run(path, f"--data=folder:{folder}/square")
    assert (status, errors.count("\n")) == (2, 1)
    status, _, errors = run(path)
    assert (status, errors.count("\n")) == (2, 1)
    assert "--data" in errors


def test_a_function_that_jax_cannot_trace_gets_the_same_figures(folder):
    images = RANDOM.normal(size=(13, 8, 8, 3)).astype(np.float32)
    labels = RANDOM.integers(0, 2, 13).astype(np.int32)
    weights = np.ones(13, np.float32)
    weights[-2:] = 0
    passed = []

    def with_numpy(batch):
        assert type(batch) is np.ndarray
        passed.append(batch.shape)
        # Float64, as NumPy computes it.
        return np.einsum("bhwc,hc->b", batch.astype(np.float64), AREA)[:, None] * [1.0, -1.0]

    def with_jax(batch):
        return jnp.einsum("bhwc,hc->b", batch, AREA)[:, None] * jnp.array([[1.0, -1.0]])

    parts = [
        {"image": images[a:b], "label": labels[a:b], "weight": weights[a:b]}
        for a, b in ((0, 8), (8, 13))
    ]
    shifts = Shifts("zero", -1, 1)
    found, expected = (
        evaluation.measure(predict, parts, shifts)
        for predict in (HostFunction(with_numpy), with_jax)
    )
    assert set(passed) == {(8, 8, 8, 3), (5, 8, 8, 3)}
    assert found.images == 11
    summaries = [evaluation.summarize(answers, ("a", "b")) for answers in (found, expected)]
    np.testing.assert_allclose(*map(figures, summaries), atol=1e-5)


AREA = RANDOM.normal(size=(8, 3)).astype(np.float32)


def test_a_function_on_the_host_is_told_what_its_logits_must_be():
    batch = {"image": np.zeros((4, 5, 5, 3), np.float32), "label": np.zeros(4, np.int32)}
    for shape in ((4,), (3, 2), (4, 5, 5, 2)):
        with pytest.raises(ValueError, match=r"logits are \(batch, classes\)"):
            evaluation.measure(HostFunction(lambda _, shape=shape: np.zeros(shape)), [batch])
    with pytest.raises(ValueError, match="not finite"):
        evaluation.measure(HostFunction(lambda _: np.full((4, 2), np.nan)), [batch])
    with pytest.raises(ValueError, match="not finite"):
        evaluation.measure(HostFunction(lambda _: np.full((4, 2), 1e300)), [batch])
