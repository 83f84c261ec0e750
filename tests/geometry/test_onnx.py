import functools
import time

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax import geometry

FLOAT = TensorProto.FLOAT


def weights(name, *shape):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


@pytest.fixture
def save(tmp_path):
    """Writes a model of some nodes on an image ``x``, ending in ``y``; gives its path."""

    def write(nodes, stored=(), shape=(1, 3, 32, 32), opset=17, functions=()):
        graph = helper.make_graph(
            list(nodes),
            "net",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info("y", FLOAT, None)],
            list(stored),
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
        model = helper.make_model(graph, opset_imports=imports, functions=functions)
        model.ir_version = 8
        path = tmp_path / "net.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


CONV = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def resnet_stem():
    return [
        node("Conv", "x conv1.weight", "a", kernel_shape=[7, 7], strides=[2, 2], pads=[3] * 4),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", **CONV),
        node("Conv", "c layer1.0.conv1.weight", "d", **CONV),
        node("Conv", "c layer1.0.downsample.0.weight", "e", strides=[2, 2]),
        node("Add", "d e", "f"),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "y"),
    ], [
        weights("conv1.weight", 8, 3, 7, 7),
        weights("layer1.0.conv1.weight", 8, 8, 3, 3),
        weights("layer1.0.downsample.0.weight", 8, 8, 1, 1),
    ]


def test_a_residual_network_reads_as_it_was_exported(save):
    rows = geometry.audit_onnx(save(*resnet_stem(), shape=("N", 3, "H", "W")), 224)
    assert [row.layer for row in rows] == [
        "conv1",
        "max_pool_1",
        "layer1.0.conv1",
        "layer1.0.downsample.0",
    ]
    assert [row.kind for row in rows] == ["conv", "max_pool", "conv", "conv"]
    assert [row.input_size[0] for row in rows] == [224, 112, 56, 56]
    assert [row.uneven for row in rows] == [(1, 1)] * 4
    assert [row.reads for row in rows] == [(-1,), (0,), (1,), (1,)]
    assert rows[0].skew == "bottom right"
    assert geometry.even_input_sizes(rows, 224, count=1) == [225]
    assert "uneven at 3 of 3 strided layers" in geometry.advise(rows).verdict


def test_the_input_size_may_be_fixed_given_or_rectangular(save):
    fixed = save(*resnet_stem(), shape=(4, 3, 64, 64))
    assert geometry.audit_onnx(fixed)[0].input_size == (64, 64)
    assert geometry.audit_onnx(fixed, 65)[0].input_size == (65, 65)
    assert geometry.audit_onnx(fixed, (48, 65))[0].input_size == (48, 65)
    sizes = geometry.even_input_sizes(lambda size: geometry.audit_onnx(fixed, size), 64, count=1)
    assert sizes == [65]


lengths = st.tuples(st.integers(4, 12), st.integers(4, 12))
few = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    op=st.sampled_from(["Conv", "MaxPool", "AveragePool", "ConvTranspose"]),
    size=lengths,
    kernel=few,
    stride=few,
    dilation=st.integers(1, 2),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    rule=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    ceil=st.booleans(),
)
def test_output_sizes_are_those_of_onnx_itself(
    save, op, size, kernel, stride, dilation, pads, rule, ceil
):
    given_ = {"kernel_shape": kernel, "strides": stride}
    given_ |= {"pads": pads} if rule == "NOTSET" else {"auto_pad": rule}
    if op != "AveragePool":
        given_["dilations"] = [dilation] * 2
    if op.endswith("Pool") and rule == "NOTSET":
        given_["ceil_mode"] = int(ceil)
        assume(all(p < k for p, k in zip(pads, kernel * 2, strict=True)))
    inputs = "x" if op.endswith("Pool") else "x w"
    path = save([node(op, inputs, "y", **given_)], [weights("w", 3, 3, *kernel)], (1, 3, *size))
    try:
        (row,) = geometry.audit_onnx(path)
    except ValueError as error:
        assert "more than the" in str(error)  # noqa: PT017  # only some examples fit
        return
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path)).graph.output[0]
    dims = [dim.dim_value for dim in inferred.type.tensor_type.shape.dim]
    assert row.output_size == tuple(dims[2:])
    assert (row.input_size, row.kernel) == (size, kernel)
    assert tuple(axis.output_size for axis in row.windows) == row.output_size


@pytest.mark.parametrize(
    ("rule", "padding"), [("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0)), ("VALID", (0, 0))]
)
def test_padding_rules_are_resolved_at_the_size(save, rule, padding):
    conv = node("Conv", "x w", "y", strides=[2, 2], auto_pad=rule)
    (row,) = geometry.audit_onnx(save([conv], [weights("w", 4, 3, 3, 3)]))
    assert row.padding == (padding, padding)
    assert row.centre_drift[0] == (padding[1] - padding[0] - row.uneven[0]) / 2


@pytest.mark.parametrize("opset", [9, 17, 18])
@pytest.mark.parametrize(
    ("mode", "name"), [("constant", "zero"), ("reflect", "reflect"), ("edge", "replicate")]
)
def test_a_pad_in_front_is_the_layers_padding(save, opset, mode, name):
    amounts = [0, 0, 1, 2, 0, 0, 1, 0]
    stored = [weights("w", 4, 3, 3, 3)]
    if opset < 11:
        pad = node("Pad", "x", "p", mode=mode, pads=amounts)
    else:
        stored.append(integers("amounts", *(amounts if opset < 18 else [2, 1, 0, 1])))
        inputs = ["x", "amounts", *([] if opset < 18 else ["", "axes"])]
        pad = helper.make_node("Pad", inputs, ["p"], mode=mode)
        stored += [integers("axes", 3, 2)] if opset >= 18 else []
    nodes = [pad, node("Relu", "p", "r"), node("Conv", "r w", "y", kernel_shape=[3, 3])]
    (row,) = geometry.audit_onnx(save(nodes, stored, opset=opset))
    assert (row.input_size, row.padding) == ((32, 32), ((1, 1), (2, 0)))
    assert (row.padding_mode, row.reads) == (name, (-1,))


def test_amounts_of_padding_that_are_computed_are_worked_out(save):
    nodes = [
        node("Concat", "some zeros", "all", axis=0),
        node("Reshape", "all four_by_two", "pairs"),
        node("Slice", "pairs minus_one start axis minus_one", "turned"),
        node("Transpose", "turned", "ends", perm=[1, 0]),
        node("Reshape", "ends flat", "amounts"),
        node("Pad", "x amounts", "p", mode="reflect"),
        node("Conv", "p w", "y", kernel_shape=[3, 3]),
    ]
    stored = [
        weights("w", 4, 3, 3, 3),
        integers("some", 1, 0, 2, 1),
        integers("zeros", 0, 0, 0, 0),
        integers("four_by_two", -1, 2),
        integers("flat", -1),
        integers("minus_one", -1),
        integers("start", -(2**62)),
        integers("axis", 0),
    ]
    (row,) = geometry.audit_onnx(save(nodes, stored))
    assert (row.padding, row.padding_mode) == (((2, 1), (1, 0)), "reflect")


def test_circular_padding_by_slices_is_padding(save):
    nodes = [
        node("Slice", "x last end rows", "top"),
        node("Slice", "x first one rows", "bottom"),
        node("Concat", "top x bottom", "p", axis=2),
        node("Conv", "p w", "y", kernel_shape=[3, 3], pads=[0, 1, 0, 1]),
    ]
    stored = [
        weights("w", 4, 3, 3, 3),
        *(integers(name, value) for name, value in [("last", -1), ("end", 2**62), ("rows", 2)]),
        *(integers(name, value) for name, value in [("first", 0), ("one", 1)]),
    ]
    (row,) = geometry.audit_onnx(save(nodes, stored))
    assert (row.input_size, row.padding) == ((32, 32), ((1, 1), (1, 1)))
    assert row.padding_mode == "mixed"


def test_a_window_that_hangs_over_counts_as_padding(save):
    pool = node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    (row,) = geometry.audit_onnx(save([pool]))
    assert (row.output_size, row.padding, row.uneven) == ((16, 16), ((0, 1), (0, 1)), (0, 0))
    assert row.centre_drift == (0.5, 0.5)


def test_kinds_groups_and_dilations(save):
    nodes = [
        node("Conv", "x a", "1", group=3, dilations=[2, 1]),
        node("Conv", "1 b", "2", group=2, strides=[2, 1]),
        node("ConvTranspose", "2 c", "3", strides=[2, 2], output_padding=[1, 1], pads=[1] * 4),
        node("AveragePool", "3", "4", kernel_shape=[2, 2], strides=[2, 2]),
        node("LpPool", "4", "y", kernel_shape=[2, 2]),
    ]
    stored = [weights("a", 6, 1, 3, 3), weights("b", 4, 3, 3, 3), weights("c", 4, 2, 3, 3)]
    rows = geometry.audit_onnx(save(nodes, stored))
    kinds = ["depthwise", "conv", "transposed", "avg_pool", "pool"]
    assert [row.kind for row in rows] == kinds
    assert [row.groups for row in rows[:3]] == [3, 2, 1]
    assert (rows[0].dilation, rows[0].output_size) == ((2, 1), (28, 30))
    assert rows[2].output_size == tuple(2 * size for size in rows[2].input_size)
    assert (rows[2].upsampling, rows[2].stride, rows[2].padding[0]) == ((2, 2), (1, 1), (1, 2))
    assert rows[3].input_size == rows[2].output_size


def test_layers_are_named_by_their_weights_or_their_node(save):
    dequantize = node("DequantizeLinear", "stem.weight_quantized scale", "onnx::deq")
    nodes = [
        dequantize,
        node("Conv", "x onnx::deq", "1", pads=[1] * 4),
        helper.make_node("Conv", ["1", "onnx::Conv_17"], ["2"], name="/block/Conv"),
        node("Transpose", "3.kernel", "t", perm=[3, 2, 0, 1]),
        node("Conv", "2 t", "3"),
        node("Conv", "3 t", "4"),
        node("Conv", "4 12", "y"),
    ]
    quantized = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "stem.weight_quantized")
    stored = [
        quantized,
        numpy_helper.from_array(np.float32(0.1), "scale"),
        weights("onnx::Conv_17", 4, 4, 3, 3),
        weights("3.kernel", 3, 3, 4, 4),
        weights("12", 4, 4, 1, 1),
    ]
    rows = geometry.audit_onnx(save(nodes, stored))
    names = [row.layer for row in rows]
    assert names == ["stem.weight_quantized", "/block/Conv", "3", "3 (4)", "12"]


def test_channels_last_images_are_recognised(save):
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "y", **CONV),
    ]
    path = save(nodes, [weights("w", 4, 3, 3, 3)], ("N", "H", "W", 3))
    (row,) = geometry.audit_onnx(path, (32, 33))
    assert (row.input_size, row.reads) == ((32, 33), (-1,))


def test_strided_slices_put_together_are_one_layer(save):
    stored = [weights("w", 4, 12, 3, 3), integers("two", 2, 2), integers("dims", 2, 3)]
    stored += [integers("end", 2**31, 2**31)]
    nodes = []
    for number, (i, j) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        stored.append(integers(f"s{number}", i, j))
        nodes.append(node("Slice", f"x s{number} end dims two", f"p{number}"))
    nodes += [node("Concat", "p0 p1 p2 p3", "f", axis=1), node("Conv", "f w", "y", pads=[1] * 4)]
    focus, conv = geometry.audit_onnx(save(nodes, stored))
    assert (focus.kind, focus.kernel, focus.stride) == ("subsample", (2, 2), (2, 2))
    assert (conv.input_size, conv.reads) == ((16, 16), (0,))


def test_branches_and_loops_are_followed(save):
    branches = {
        f"{which}_branch": helper.make_graph(
            [node("Conv", "x w", which, pads=[1] * 4)],
            which,
            [],
            [helper.make_tensor_value_info(which, FLOAT, None)],
        )
        for which in ("then", "else")
    }
    body = helper.make_graph(
        [node("Conv", "state w", "next", pads=[1] * 4), node("Identity", "go", "on")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Cast", "total", "yes", to=TensorProto.BOOL),
        node("If", "yes", "a", **branches),
        helper.make_node("Loop", ["turns", "yes", "a"], ["b"], body=body),
        node("Conv", "b w", "y", strides=[2, 2]),
    ]
    stored = [weights("w", 3, 3, 3, 3), numpy_helper.from_array(np.array(5), "turns")]
    rows = geometry.audit_onnx(save(nodes, stored))
    assert [row.repeats for row in rows] == [1, 1, 5, 1]
    assert [row.input_size for row in rows] == [(32, 32)] * 4


def test_local_functions_are_part_of_the_graph(save):
    function = helper.make_function(
        "local",
        "Block",
        ["a", "k"],
        ["b"],
        [node("Conv", "a k", "c", **CONV), node("Relu", "c", "b")],
        [helper.make_opsetid("", 17)],
    )
    block = helper.make_node("Block", ["x", "w"], ["y"], domain="local")
    (row,) = geometry.audit_onnx(save([block], [weights("w", 4, 3, 3, 3)], functions=[function]))
    assert row.uneven == (1, 1)


def test_weights_in_external_files_are_not_needed(save, tmp_path):
    path = save(*resnet_stem())
    expected = geometry.audit_onnx(path)
    onnx.save(onnx.load(path), tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    for file in tmp_path.iterdir():
        if file.suffix != ".onnx":
            file.unlink()
    assert geometry.audit_onnx(tmp_path / "out.onnx") == expected


def test_windows_of_constants_are_no_layers(save):
    nodes = [node("Conv", "ones w", "m"), node("Conv", "x w", "a"), node("Div", "a m", "y")]
    stored = [weights("ones", 1, 3, 32, 32), weights("w", 1, 3, 3, 3)]
    assert len(geometry.audit_onnx(save(nodes, stored))) == 1


def test_dynamic_images_need_an_input_size(save):
    path = save(*resnet_stem(), shape=("N", 3, "H", "W"))
    with pytest.raises(ValueError, match=r"net.onnx: its input 'x' has shape \(N, 3, H, W\); give"):
        geometry.audit_onnx(path)
    with pytest.raises(ValueError, match="give 2 sizes above 0"):
        geometry.audit_onnx(path, (32, 32, 32))


def test_sizes_that_paddle_writes_as_minus_one_are_open(save):
    wanted = geometry.audit_onnx(save(*resnet_stem(), shape=("N", 3, "H", "W")), 32)
    path = save(*resnet_stem(), shape=(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="give an input size"):
        geometry.audit_onnx(path)
    assert geometry.audit_onnx(path, 32) == wanted


def test_what_is_no_onnx_model_is_refused_with_the_files_name(save, tmp_path):
    whole = save(*resnet_stem()).read_bytes()
    path = tmp_path / "broken.onnx"
    cut = [whole[: len(whole) // 2], whole[:-1], whole[:100]]
    for content in [*cut, b"", b"a text\n" * 9, b"\x00" * 64]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.onnx: not an ONNX model") as error:
            geometry.audit_onnx(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        geometry.audit_onnx(tmp_path / "missing.onnx")


def test_a_map_that_becomes_empty_names_file_and_layer(save):
    conv = node("Conv", "x stem.weight", "y", kernel_shape=[5, 5])
    with pytest.raises(ValueError, match=r"net\.onnx: stem: its kernel spans 5 pixels, more than"):
        geometry.audit_onnx(save([conv], [weights("stem.weight", 4, 3, 5, 5)], (1, 3, 4, 4)))


def test_a_shape_that_cannot_be_inferred_names_file_and_layer(save):
    nodes = [
        node("NonZero", "x", "n"),
        node("Cast", "n", "f", to=FLOAT),
        node("Unsqueeze", "f axes", "u"),
        node("Conv", "u stem.weight", "y"),
    ]
    stored = [weights("stem.weight", 4, 1, 3, 3), integers("axes", 0, 1)]
    with pytest.raises(ValueError, match=r"net\.onnx: stem: the size of its input cannot be inf"):
        geometry.audit_onnx(save(nodes, stored))


def test_an_operator_that_onnx_does_not_know_may_stand_between_layers(save):
    quantized = helper.make_node(
        "QLinearAdd", ["a", "one", "one", "a", "one", "one"], ["q"], domain="com.microsoft"
    )
    nodes = [
        node("Conv", "x conv1.weight", "a", **CONV),
        quantized,
        node("Relu", "q", "r"),
        node("MaxPool", "r", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "m conv2.weight", "y", **CONV),
    ]
    stored = [weights("conv1.weight", 4, 3, 3, 3), weights("conv2.weight", 4, 4, 3, 3)]
    rows = geometry.audit_onnx(save(nodes, [*stored, weights("one", 1)]))
    assert [row.input_size for row in rows] == [(32, 32), (16, 16), (8, 8)]
    assert [row.reads for row in rows] == [(-1,), (0,), (1,)]


def test_a_graph_without_layers_has_no_rows(save):
    assert geometry.audit_onnx(save([node("Relu", "x", "y")])) == []


def test_a_damaged_graph_is_refused_with_the_files_name(save):
    with pytest.raises(ValueError, match=r"net\.onnx: a damaged graph"):
        geometry.audit_onnx(save([node("MaxPool", "x", "y")]))
    with pytest.raises(ValueError, match=r"net\.onnx: "):
        geometry.audit_onnx(save([node("Conv", "x", "y")]))


def test_a_second_input_keeps_the_size_that_it_is_fixed_to(tmp_path):
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, (1, 3, 32, 32)),
        helper.make_tensor_value_info("template", FLOAT, (1, 3, 16, 16)),
    ]
    nodes = [node("Conv", "x w", "a", **CONV), node("Conv", "template w", "b", **CONV)]
    nodes += [node("GlobalMaxPool", "a", "p"), node("Mul", "p b", "y")]
    output = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph(nodes, "net", inputs, [output], [weights("w", 4, 3, 3, 3)])
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    rows = geometry.audit_onnx(tmp_path / "two.onnx", 64)
    assert [row.input_size for row in rows] == [(64, 64), (16, 16)]


def test_layers_behind_an_operator_of_an_unknown_domain_are_left_out(save):
    nodes = [
        node("Conv", "x conv1.weight", "a", **CONV),
        helper.make_node("Relu", ["a"], ["b"], domain="local"),
        node("Conv", "b conv2.weight", "c", **CONV),
        node("MaxPool", "c", "d", kernel_shape=[2, 2]),
        node("GlobalAveragePool", "d", "e"),
        node("Conv", "a conv3.weight", "f", **CONV),
        node("Mul", "e f", "y"),
    ]
    stored = [weights("conv1.weight", 4, 3, 3, 3)]
    stored += [weights(f"conv{i}.weight", 4, 4, 3, 3) for i in (2, 3)]
    rows = geometry.audit_onnx(save(nodes, stored))
    assert [(row.layer, row.input_size) for row in rows] == [
        ("conv1", (32, 32)),
        ("conv3", (16, 16)),
    ]
    assert rows.left_out == {
        "conv2": "the size of its input cannot be inferred",
        "max_pool": "the size of its input cannot be inferred",
    }


def test_a_convolution_of_an_unknown_domain_is_no_layer(save):
    theirs = helper.make_node("Conv", ["x", "a.weight"], ["a"], domain="local", pads=[1] * 4)
    nodes = [theirs, node("Conv", "x b.weight", "y")]
    rows = geometry.audit_onnx(save(nodes, [weights(f"{n}.weight", 3, 3, 3, 3) for n in "ab"]))
    assert [row.layer for row in rows] == ["b"]


def channels_last(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], domain="com.microsoft", **attributes)


def test_channels_last_operators_of_onnx_runtime_have_the_right_axes(save):
    quantized = "xt s z q.weight s z s z"
    nodes = [
        node("Transpose", "x", "xt", perm=[0, 2, 3, 1]),
        channels_last("QLinearConv", quantized, "a", channels_last=1, pads=[1] * 4, strides=[2, 1]),
        channels_last("NhwcMaxPool", "a", "b", kernel_shape=[3, 3], strides=[2, 2]),
        channels_last("QLinearAdd", "b s z b s z s z", "c"),
        channels_last("QLinearAveragePool", "c s z s z", "d", channels_last=1, kernel_shape=[2, 2]),
        channels_last("NhwcConv", "d n.weight", "e", pads=[1] * 4, group=6),
        node("Transpose", "e", "f", perm=[0, 3, 1, 2]),
        node("Conv", "f last.weight", "y", **CONV),
    ]
    stored = [
        numpy_helper.from_array(np.ones((6, 3, 3, 3), np.int8), "q.weight"),
        numpy_helper.from_array(np.float32(1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
        weights("n.weight", 6, 3, 3, 1),
        weights("last.weight", 4, 6, 3, 3),
    ]
    rows = geometry.audit_onnx(save(nodes, stored, (1, 3, 32, 40)))
    assert [(row.layer, row.kind) for row in rows] == [
        ("q", "conv"),
        ("max_pool_1", "max_pool"),
        ("avg_pool_1", "avg_pool"),
        ("n", "depthwise"),
        ("last", "conv"),
    ]
    sizes = [(32, 40), (16, 40), (7, 19), (6, 18), (6, 18)]
    assert [row.input_size for row in rows] == sizes
    assert rows[0].uneven == (1, 0)
    assert rows[4].reads == (3,)


def test_a_quantised_channels_last_network_gets_its_advice(save):
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("Transpose", "xq", "xt", perm=[0, 2, 3, 1]),
        channels_last("QLinearConv", "xt s z w s z s z", "yq", channels_last=1, **CONV),
        node("Transpose", "yq", "yt", perm=[0, 3, 1, 2]),
        node("DequantizeLinear", "yt s z", "y"),
    ]
    stored = [
        numpy_helper.from_array(np.ones((16, 3, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.float32(1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
    ]
    path = save(nodes, stored)
    (row,) = geometry.audit_onnx(path)
    assert (row.input_size, row.output_size) == ((32, 32), (16, 16))
    assert geometry.advise([row], lambda size: geometry.audit_onnx(path, size)).nearest == 33


def test_an_input_that_channels_last_operators_read_is_channels_last(save):
    conv = channels_last("NhwcConv", "x w", "y", pads=[1] * 4)
    (row,) = geometry.audit_onnx(save([conv], [weights("w", 8, 3, 3, 5)], ("N", "H", "W", 5)), 20)
    assert row.input_size == (20, 20)


def test_blocked_operators_of_onnx_runtime_are_followed(save):
    def blocked(op, inputs, output, **attributes):
        domain = "com.microsoft.nchwc"
        return helper.make_node(op, inputs.split(), [output], domain=domain, **attributes)

    nodes = [
        blocked("Conv", "x a.weight", "a", **CONV),
        blocked("MaxPool", "a", "b", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        blocked("ReorderOutput", "b", "c", channels=16),
        node("Conv", "c b.weight", "y", **CONV),
    ]
    stored = [weights("a.weight", 16, 3, 3, 3), weights("b.weight", 4, 16, 3, 3)]
    rows = geometry.audit_onnx(save(nodes, stored))
    assert [row.input_size for row in rows] == [(32, 32), (16, 16), (8, 8)]
    assert [row.reads for row in rows] == [(-1,), (0,), (1,)]


def test_shapes_are_inferred_behind_operators_of_onnx_runtime(save):
    def of(domain, op, inputs, output, **attributes):
        domain = f"com.microsoft{domain}"
        return helper.make_node(op, inputs.split(), [output], domain=domain, **attributes)

    doubled = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        of("", "FusedConv", "x a.weight", "a", activation="Relu", **CONV),
        node("Resize", "a  scales", "b"),
        of(".nchwc", "Conv", "b b.weight", "c", **CONV),
        of(".nchwc", "Upsample", "c", "d", scales=[1, 1, 2, 2]),
        of(".nchwc", "ReorderOutput", "d", "e", channels=8),
        node("Add", "e b", "f"),
        of("", "QLinearAdd", "f s z f s z s z", "g"),
        node("Resize", "g  scales", "h"),
        node("Conv", "h c.weight", "y", **CONV),
    ]
    nodes[1].input[:] = ["a", "", "scales"]
    nodes[7].input[:] = ["g", "", "scales"]
    stored = [weights("a.weight", 8, 3, 3, 3), weights("b.weight", 16, 8, 3, 3), doubled]
    stored += [weights("c.weight", 4, 8, 3, 3), weights("s"), integers("z", 0)]
    audit = geometry.audit_onnx(save(nodes, stored))
    assert [row.input_size for row in audit] == [(32, 32), (32, 32), (64, 64)]
    assert audit.left_out == {}


def test_shapes_that_the_graph_computes_are_inferred(save):
    nodes = [
        node("Conv", "x a.weight", "a", pads=[1] * 4),
        node("Shape", "a", "shape"),
        node("Gather", "shape one", "channels"),
        node("Div", "channels two", "half"),
        node("Unsqueeze", "half zero", "halves"),
        node("Concat", "minus halves two_ rest", "wanted", axis=0),
        node("Reshape", "a wanted", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c back", "d"),
        node("Conv", "d b.weight", "y", **CONV),
    ]
    stored = [weights("a.weight", 8, 3, 3, 3), weights("b.weight", 4, 8, 3, 3)]
    stored += [numpy_helper.from_array(np.array(n), name) for name, n in (("one", 1), ("two", 2))]
    stored += [integers("zero", 0), integers("minus", 1), integers("two_", 2)]
    stored += [integers("rest", 32, 32), integers("back", 1, 8, 32, 32)]
    audit = geometry.audit_onnx(save(nodes, stored))
    assert [row.input_size for row in audit] == [(32, 32)] * 2
    assert audit.left_out == {}


def unet():
    nodes = [
        node("Conv", "x d", "a", pads=[1] * 4, strides=[2, 2]),
        node("ConvTranspose", "a u", "b", strides=[2, 2]),
        node("Concat", "b x", "c", axis=1),
        node("Conv", "c f", "y", pads=[1] * 4),
    ]
    return nodes, [weights("d", 8, 3, 3, 3), weights("u", 8, 8, 2, 2), weights("f", 8, 11, 3, 3)]


def test_a_size_at_which_skips_do_not_fit_is_no_advice(save):
    path = save(*unet(), shape=(1, 3, "h", "w"))
    rows = geometry.audit_onnx(path, 64)
    assert [row.uneven for row in rows] == [(1, 1), (0, 0), (0, 0)]
    with pytest.raises(ValueError, match="Concat: cannot put maps of 1×8×66×66 and 1×3×65×65"):
        geometry.audit_onnx(path, 65)
    advice = geometry.advise(rows, lambda size: geometry.audit_onnx(path, size), 64)
    assert (advice.uneven, advice.nearest) == (1, None)


@pytest.mark.parametrize("flat", ["Flatten", "Reshape"])
def test_a_size_at_which_a_dense_layer_does_not_fit_is_no_advice(save, flat):
    nodes = [
        node("Conv", "x a", "b", strides=[2, 2], pads=[1] * 4),
        node("Conv", "b c", "d", strides=[2, 2]),
        node(flat, "d" if flat == "Flatten" else "d sizes", "e"),
        node("Gemm", "e head", "y", transB=1),
    ]
    stored = [weights("a", 8, 3, 3, 3), weights("c", 8, 8, 3, 3), weights("head", 5, 392)]
    stored.append(integers("sizes", -1, 392))
    path = save(nodes, stored, shape=(1, 3, "h", "w"))
    rows_at = functools.partial(geometry.audit_onnx, path)
    assert rows_at(32).left_out == {}
    says = "the network does not run at this size: it takes 392 numbers, not 512"
    assert says in rows_at(33).left_out.values()
    assert geometry.advise(rows_at(32), rows_at, 32).nearest == 29


def test_no_size_far_below_the_own_one_is_advised(save):
    # One pixel is added to any map, so that this skip fits at 1×1 and at even sizes.
    nodes, stored = unet()
    nodes[2:] = [node("Add", "b one", "c"), node("Conv", "c f", "y", pads=[1] * 4)]
    nodes.insert(2, node("Conv", "x g", "one", pads=[1] * 4))
    stored = [*stored[:2], weights("f", 8, 8, 3, 3), weights("g", 8, 3, 3, 3)]
    path = save(nodes, stored, shape=(1, 3, "h", "w"))
    advice = geometry.advise(
        geometry.audit_onnx(path, 64), functools.partial(geometry.audit_onnx, path)
    )
    assert (advice.uneven, advice.nearest) == (1, None)


def test_maps_that_cannot_be_added_are_refused(save):
    nodes = [
        node("Conv", "x w", "a", strides=[2, 2]),
        node("Conv", "x w", "b", strides=[2, 2], pads=[1] * 4),
        node("Add", "a b", "y"),
    ]
    with pytest.raises(ValueError, match="Add: cannot put maps of 1×3×15×15 and 1×3×16×16 togeth"):
        geometry.audit_onnx(save(nodes, [weights("w", 3, 3, 3, 3)]))


def test_only_the_branch_of_a_constant_condition_is_followed(save):
    def branch(name, weight):
        output = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([node("Conv", f"x {weight}", name)], name, [], [output])

    branches = {"then_branch": branch("t", "a.weight"), "else_branch": branch("e", "b.weight")}
    stored = [weights("a.weight", 3, 3, 3, 3), weights("b.weight", 3, 3, 5, 5)]
    stored.append(numpy_helper.from_array(np.array(False), "no"))
    rows = geometry.audit_onnx(save([node("If", "no", "y", **branches)], stored))
    assert [row.layer for row in rows] == ["b"]


def test_sparse_weights_are_audited(save):
    path = save(*resnet_stem())
    expected = geometry.audit_onnx(path)
    model = onnx.load(path)
    tensor = model.graph.initializer.pop(1)
    values, places = weights(tensor.name, 1), integers("", 5)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, tensor.dims))
    path.write_bytes(model.SerializeToString())
    assert geometry.audit_onnx(path) == expected


@pytest.mark.parametrize("count", [3000, 101_000])
def test_constant_nodes_by_the_ten_thousand_cost_little(save, count):
    constant = node("Constant", "", "c", value=integers("", 1))
    nodes = [
        constant,
        node("Add", "c c", "d"),
        *[node("Add", "d c", f"e{i}") for i in range(count)],
    ]
    path = save([*nodes, node("Conv", "x w", "y")], [weights("w", 3, 3, 3, 3)])
    start = time.perf_counter()
    if count > 100_000:
        with pytest.raises(ValueError, match="a graph of more than 100000 nodes"):
            geometry.audit_onnx(path)
    else:
        assert len(geometry.audit_onnx(path)) == 1
    assert time.perf_counter() - start < 8


def test_a_file_is_audited_by_its_format(save, tmp_path):
    path = save(*resnet_stem())
    assert geometry.audit_file(path, 64) == geometry.audit_onnx(path, 64)
    assert geometry.audit_file(path, 64).left_out == {}
    (tmp_path / "net.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    with pytest.raises(ValueError, match=r"net\.tflite: a FlatBuffer offset that points outside"):
        geometry.audit_file(tmp_path / "net.tflite", 64)
    (tmp_path / "net.pt").write_bytes(b"PK\3\4")
    with pytest.raises(geometry.NoGraphError, match=r"net\.pt: no network whose layers can be"):
        geometry.audit_file(tmp_path / "net.pt", 64)
    with pytest.raises(FileNotFoundError, match=r"none\.keras"):
        geometry.audit_file(tmp_path / "none.keras", 64)
