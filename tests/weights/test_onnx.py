"""ONNX graphs, against the onnx library's own reading of them."""

import damage
import network
import numpy as np
import onnx
import pytest
import writers
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax import report, weights


def _save(path, nodes, tensors):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, None)
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [result], tensors)
    onnx.save(helper.make_model(graph), path)
    return weights.read(path)


def _kernel(shape, name="w"):
    return numpy_helper.from_array(network.values(name, shape), name)


def test_strides_paddings_dilations_and_groups_come_from_the_graph(tmp_path):
    node = helper.make_node(
        "Conv", ["image", "w"], ["y"], strides=[2, 1], pads=[1, 0, 2, 3], dilations=[1, 2], group=2
    )
    kernel = _save(tmp_path / "net.onnx", [node], [_kernel((4, 3, 3, 5))]).kernels["w"]
    assert (kernel.stride, kernel.dilation, kernel.groups) == ((2, 1), (1, 2), 2)
    assert kernel.padding == ((1, 2), (0, 3))
    np.testing.assert_array_equal(
        kernel.weight, network.values("w", (4, 3, 3, 5)).transpose(2, 3, 1, 0)
    )


def test_what_a_convolution_leaves_out_has_onnxs_defaults(tmp_path):
    node = helper.make_node("Conv", ["image", "w"], ["y"])
    kernel = _save(tmp_path / "net.onnx", [node], [_kernel((4, 3, 3, 3))]).kernels["w"]
    assert (kernel.stride, kernel.padding) == ((1, 1), ((0, 0), (0, 0)))
    assert (kernel.dilation, kernel.groups, kernel.kind) == ((1, 1), 1, "conv")


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("SAME_UPPER", "SAME"), ("SAME_LOWER", "SAME_LOWER"), ("VALID", ((0, 0), (0, 0)))],
)
def test_automatic_padding_is_kept_as_a_rule(tmp_path, rule, wanted):
    node = helper.make_node("Conv", ["image", "w"], ["y"], auto_pad=rule)
    found = _save(tmp_path / "net.onnx", [node], [_kernel((4, 3, 3, 3))])
    assert found.kernels["w"].padding == wanted


@pytest.mark.parametrize("stored", [True, False])
def test_a_pad_in_front_counts_as_padding_where_it_is_known(tmp_path, stored):
    pads = numpy_helper.from_array(np.array([0, 0, 1, 2, 0, 0, 3, 4]), "pads" if stored else "p")
    nodes = [
        helper.make_node("Pad", ["image", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    found = _save(tmp_path / "net.onnx", nodes, [_kernel((4, 3, 3, 3)), pads])
    assert found.kernels["w"].padding == (((2, 4), (3, 5)) if stored else None)


def test_a_first_layer_of_one_tap_reads_the_image(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"]),
        helper.make_node("Conv", ["x", "b"], ["y"]),
    ]
    kernels = [_kernel((3, 3, 1, 1), "a"), _kernel((8, 3, 3, 3), "b")]
    assert _save(tmp_path / "net.onnx", nodes, kernels).first == "a"
    rows = report.table(tmp_path / "net.onnx").rows
    assert [(row["layer"], row["role"]) for row in rows] == [("b", "internal")]


def test_depthwise_and_transposed_convolutions_are_told_apart(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "d"], ["a"], group=6),
        helper.make_node("ConvTranspose", ["a", "u"], ["y"], group=2, strides=[2, 2]),
    ]
    found = _save(
        tmp_path / "net.onnx", nodes, [_kernel((6, 1, 3, 3), "d"), _kernel((6, 4, 2, 3), "u")]
    )
    assert (found.kernels["d"].kind, found.kernels["d"].shape) == ("depthwise", (3, 3, 1, 6))
    up = found.kernels["u"]
    assert (up.kind, up.shape, up.stride) == ("transposed", (2, 3, 3, 8), (2, 2))
    # Input 4 is the second of group 1, whose outputs are 4 to 7.
    np.testing.assert_array_equal(up.weight[:, :, 1, 6], network.values("u", (6, 4, 2, 3))[4, 2])


@pytest.mark.parametrize(
    "onnx_type",
    [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16],
)
@pytest.mark.parametrize("raw", [True, False])
def test_every_element_type_is_read_as_the_onnx_library_reads_it(tmp_path, onnx_type, raw):
    numbers = network.values("w", (4, 3, 3, 3))
    if raw:
        dtype = helper.tensor_dtype_to_np_dtype(onnx_type)
        tensor = helper.make_tensor(
            "w", onnx_type, numbers.shape, numbers.astype(dtype).tobytes(), True
        )
    else:
        tensor = helper.make_tensor("w", onnx_type, numbers.shape, numbers.ravel().tolist())
    node = helper.make_node("Conv", ["image", "w"], ["y"])
    found = _save(tmp_path / "net.onnx", [node], [tensor])
    np.testing.assert_array_equal(found.kernels["w"].weight, numbers.transpose(2, 3, 1, 0))


def test_constants_and_the_nodes_on_a_kernels_way_are_followed(tmp_path):
    numbers = network.values("w", (3, 3, 3, 4))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(numbers, "c")),
        helper.make_node("Identity", ["c"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["image", "t"], ["y"], name="stem"),
    ]
    found = _save(tmp_path / "net.onnx", nodes, [])
    (kernel,) = found.kernels.values()
    np.testing.assert_array_equal(kernel.weight, numbers)


def test_quantised_kernels_are_dequantised(tmp_path):
    integers = np.random.default_rng(0).integers(-128, 128, (4, 3, 3, 3), np.int8)
    scale, zero = np.float32([0.5, 1, 2, 4]), np.int8([0, 1, -1, 3])
    wanted = (integers.astype(np.float32) - zero.reshape(4, 1, 1, 1)) * scale.reshape(4, 1, 1, 1)
    tensors = [
        numpy_helper.from_array(integers, "w"),
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(zero, "zero"),
        numpy_helper.from_array(np.float32(1), "one"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"], axis=0),
        helper.make_node("Conv", ["image", "f"], ["y"]),
    ]
    found = _save(tmp_path / "qdq.onnx", nodes, tensors)
    np.testing.assert_allclose(found.kernels["w"].weight, wanted.transpose(2, 3, 1, 0))
    inputs = ["image", "one", "zero", "w", "scale", "zero", "one", "zero"]
    node = helper.make_node("QLinearConv", inputs, ["y"])
    found = _save(tmp_path / "linear.onnx", [node], tensors)
    np.testing.assert_allclose(found.kernels["w"].weight, wanted.transpose(2, 3, 1, 0))


_INTEGERS = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3), np.uint8)


@pytest.mark.parametrize("zero", [None, np.uint8(121), np.uint8([0, 120, 128, 255])])
@pytest.mark.parametrize(
    "scale", [np.float32(0.25), np.float32([[[0.5]], [[1]], [[2]], [[4]]]), np.ones(1, np.float32)]
)
def test_integers_of_conv_integer_become_numbers_by_the_zero_and_scale_that_follow(
    tmp_path, zero, scale
):
    path = writers.write_onnx_integers(tmp_path / "net.onnx", _INTEGERS, zero, scale)
    found = weights.read(path)
    zeros = np.float32(0 if zero is None else zero).reshape(-1, 1, 1, 1)
    wanted = (_INTEGERS - zeros) * np.float32(scale).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(found.kernels["integers"].weight, wanted.transpose(2, 3, 1, 0))
    assert found.notes == ()


# Without scales, and with some that broadcasting lays along the columns of the result.
@pytest.mark.parametrize("scale", [None, np.float32([0.5, 1, 2, 4])])
def test_integers_without_certain_scales_are_read_and_a_note_tells(tmp_path, scale):
    path = writers.write_onnx_integers(tmp_path / "net.onnx", _INTEGERS, np.uint8(7), scale)
    found = weights.read(path)
    wanted = (_INTEGERS - np.float32(7)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["integers"].weight, wanted)
    (note,) = found.notes
    assert "the scales of 1 kernels of integers are unknown" in note


@pytest.mark.parametrize("op", ["ConvInteger", "QLinearConv", "DequantizeLinear"])
def test_integers_whose_zero_is_computed_are_left_out(tmp_path, op):
    inputs = {
        "ConvInteger": ["image", "w", "", "computed"],
        "QLinearConv": ["image", "one", "z", "w", "one", "computed", "one", "z"],
        "DequantizeLinear": ["image", "numbers"],
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "one", "computed"], ["numbers"]),
        helper.make_node("Conv" if op == "DequantizeLinear" else op, inputs[op], ["y"]),
        helper.make_node("Conv", ["y", "other"], ["end"]),
    ]
    tensors = [
        numpy_helper.from_array(_INTEGERS, "w"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.uint8(0), "z"),
        _kernel((2, 4, 3, 3), "other"),
    ]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert list(found.kernels) == ["other"]
    reason = found.skipped["numbers" if op == "DequantizeLinear" else "w"]
    assert "computed, not stored" in reason


def test_damaged_integers_end_in_one_clear_error(tmp_path):
    path = tmp_path / "net.onnx"
    writers.write_onnx_integers(path, _INTEGERS, np.uint8(7), np.float32(0.25))
    assert damage.faults(path, 240, seed=0, folder=tmp_path) == []


def test_a_name_that_the_exporter_made_up_gives_way_to_the_nodes(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "onnx::Conv_193"], ["a"], name="/layer1/conv/Conv"),
        helper.make_node("Conv", ["a", "b.weight"], ["b"], name="/b/Conv"),
        helper.make_node("Conv", ["b", "b.weight"], ["y"], name="/again/Conv"),
    ]
    tensors = [_kernel((3, 3, 3, 3), "onnx::Conv_193"), _kernel((3, 3, 3, 3), "b.weight")]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert list(found.kernels) == ["/layer1/conv/Conv", "b", "b (/again/Conv)"]


def test_convolutions_inside_branches_are_found(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    found = _save(tmp_path / "net.onnx", [node], [_kernel((4, 3, 3, 3))])
    assert next(iter(found.kernels)) == "w"


def test_external_files_in_the_models_folder_are_read(tmp_path):
    found = weights.read(writers.write_onnx(tmp_path / "net.onnx", external="values.bin"))
    assert (tmp_path / "values.bin").stat().st_size > 1000
    for layer in network.SPATIAL:
        np.testing.assert_array_equal(found.kernels[layer].weight, network.KERNELS[layer])


def test_other_convolutions_and_arrays_say_what_they_are(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "one"], ["a"]),
        helper.make_node("Conv", ["a", "line"], ["b"]),
        helper.make_node("Conv", ["b", "made"], ["y"], name="computed"),
    ]
    tensors = [
        _kernel((4, 3, 1, 1), "one"),
        _kernel((4, 3, 3), "line"),
        _kernel((2, 2, 3, 3), "spare"),
    ]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert found.kernels == {}
    assert "1×1" in found.skipped["one"]
    assert "1-D convolution" in found.skipped["line"]
    assert "computed" in found.skipped["made"]
    assert "no convolution's kernel" in found.skipped["spare"]


def _blocked(weight, block, inner):
    """(out, in, kh, kw) as ONNX Runtime stores it for one kind of processor."""
    outputs, inputs, kh, kw = weight.shape
    fill = [(0, -outputs % block), (0, -inputs % inner), (0, 0), (0, 0)]
    padded = np.pad(weight, fill)
    outputs, inputs = padded.shape[:2]
    split = padded.reshape(outputs // block, block, inputs // inner, inner, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1)).reshape(padded.shape)


def _nchwc(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], domain="com.microsoft.nchwc", **attributes)


@pytest.mark.parametrize(("block", "plain"), [(8, False), (16, False), (16, True)])
def test_kernels_in_blocks_of_channels_are_put_back_in_order(tmp_path, block, plain):
    first, second = network.values("a", (20, 3, 3, 3)), network.values("b", (24, 20, 3, 3))
    depthwise = network.values("c", (24, 1, 3, 3))
    nodes = [
        _nchwc("Conv", ["image", "first"], "a", strides=[2, 2]),
        _nchwc("Conv", ["a", "second"], "b", pads=[1] * 4),
        _nchwc("Conv", ["b", "depthwise"], "c", group=24),
        _nchwc("ReorderOutput", ["c"], "y", channels=24),
    ]
    stored = {
        "first": _blocked(first, block, 1),
        "second": _blocked(second, block, block),
        "depthwise": _blocked(depthwise, block, 1),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    if plain:
        # More input channels than 8 in a plain image: only blocks of 16 are larger.
        wide = network.values("d", (16, 12, 3, 3))
        tensors.append(numpy_helper.from_array(_blocked(wide, block, 1), "wide"))
        nodes = [_nchwc("Conv", ["image", "wide"], "d"), *nodes[:-1]]
    found = _save(tmp_path / "net.onnx", nodes, tensors).kernels
    for name, weight in {"first": first, "second": second, "depthwise": depthwise}.items():
        np.testing.assert_array_equal(found[name].weight, weight.transpose(2, 3, 1, 0))
    assert found["first"].stride == (2, 2)
    assert found["depthwise"].kind == "depthwise"


def test_blocks_of_an_unknown_number_of_channels_are_refused_with_a_reason(tmp_path):
    stored = numpy_helper.from_array(_blocked(network.values("w", (32, 3, 3, 3)), 16, 1), "w")
    nodes = [
        _nchwc("Conv", ["image", "w"], "t", strides=[2, 2]),
        _nchwc("ReorderOutput", ["t"], "y", channels=32),
    ]
    with pytest.raises(ValueError, match=r"net\.onnx: its kernels are stored .* blocks of 8 or 16"):
        _save(tmp_path / "net.onnx", nodes, [stored])


def test_channels_last_convolutions_have_the_layout_of_their_operator(tmp_path):
    weight = network.values("w", (4, 3, 2, 3))
    ones = {"one": np.float32(1), "zero": np.int8(0), "q": np.ones((4, 4, 3, 3), np.int8)}
    tensors = [numpy_helper.from_array(array, name) for name, array in ones.items()]
    tensors.append(numpy_helper.from_array(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)), "w"))
    inputs = ["a", "one", "zero", "q", "one", "zero", "one", "zero"]
    nodes = [
        helper.make_node("NhwcConv", ["image", "w"], ["a"], domain="com.microsoft"),
        helper.make_node("QLinearConv", inputs, ["y"], domain="com.microsoft", channels_last=1),
    ]
    found = _save(tmp_path / "net.onnx", nodes, tensors).kernels
    np.testing.assert_array_equal(found["w"].weight, weight.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(found["q"].weight, np.ones((3, 3, 4, 4)))


def test_a_convolution_of_an_unknown_domain_is_left_out_with_a_reason(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "theirs"], ["a"], domain="their.runtime"),
        helper.make_node("Conv", ["a", "ours"], ["y"]),
    ]
    tensors = [_kernel((4, 3, 3, 3), "theirs"), _kernel((4, 4, 3, 3), "ours")]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert list(found.kernels) == ["ours"]
    assert "their.runtime.Conv, which is an unknown operator" in found.skipped["theirs"]


def test_sparse_kernels_are_read_dense(tmp_path):
    dense = network.values("w", (4, 3, 3, 3)) * (np.arange(108).reshape(4, 3, 3, 3) % 5 == 0)
    indices = np.flatnonzero(dense).astype(np.int64)
    values = numpy_helper.from_array(dense.reshape(-1)[indices], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, ""), dense.shape)
    nodes = [
        helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        helper.make_node("Conv", ["image", "c"], ["a"]),
        helper.make_node("Conv", ["image", "w"], ["y"]),
    ]
    path = tmp_path / "net.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "y")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], sparse_initializer=[sparse])
    onnx.save(helper.make_model(graph), path)
    found = weights.read(path).kernels
    assert list(found) == ["c", "w"]
    for kernel in found.values():
        np.testing.assert_array_equal(kernel.weight, dense.transpose(2, 3, 1, 0))


def test_a_kernel_that_only_a_branch_reads_is_not_left_out(tmp_path):
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Conv", ["image", name], ["out"])],
            name,
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    }
    tensors = [
        _kernel((8, 3, 3, 3), "then"),
        _kernel((8, 3, 5, 5), "else"),
        _kernel((4, 3, 3, 3), "z"),
    ]
    found = _save(
        tmp_path / "net.onnx", [helper.make_node("If", ["c"], ["y"], **branches)], tensors
    )
    assert set(found.kernels) == {"then", "else"}
    assert list(found.skipped) == ["z"]


def test_kernels_inside_local_functions_have_the_names_of_their_arrays(tmp_path):
    block = helper.make_function(
        "my",
        "Block",
        ["x", "w"],
        ["y"],
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4)],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["a"]),
        helper.make_node("Block", ["a", "layer1.weight"], ["y"], domain="my"),
    ]
    tensors = [_kernel((8, 3, 3, 3), "stem.weight"), _kernel((16, 8, 3, 3), "layer1.weight")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "y")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[block])
    onnx.save(model, tmp_path / "net.onnx")
    found = weights.read(tmp_path / "net.onnx").kernels
    assert {layer: kernel.stride for layer, kernel in found.items()} == {
        "stem": (1, 1),
        "layer1": (2, 2),
    }


@pytest.mark.usefixtures("within_a_gigabyte")
def test_thousands_of_convolutions_with_one_kernel_share_its_memory(tmp_path):
    integers = np.ones((256, 256, 3, 3), np.int8)
    ones = {"w": integers, "s": np.float32(0.5), "z": np.int8(0)}
    tensors = [numpy_helper.from_array(array, name) for name, array in ones.items()]
    nodes = [
        helper.make_node("QLinearConv", [f"x{i}", "s", "z", "w", "s", "z", "s", "z"], [f"x{i + 1}"])
        for i in range(2000)
    ]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert 1 < len(found.kernels) < 100
    first, *others = found.kernels.values()
    assert all(np.shares_memory(first.weight, other.weight) for other in others)
    assert any("is used more than" in reason for reason in found.skipped.values())


@pytest.mark.usefixtures("within_a_gigabyte")
def test_kernels_that_need_many_times_the_memory_of_the_file_are_refused(tmp_path):
    ones = {"w": np.ones((512, 512, 3, 3), np.int8), "s": np.float32(0.5)}
    tensors = [numpy_helper.from_array(array, name) for name, array in ones.items()]
    nodes = []
    for i in range(1000):
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], [f"w{i}"]))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    with pytest.raises(ValueError, match=r"net\.onnx: its kernels need many times the memory"):
        _save(tmp_path / "net.onnx", nodes, tensors)


def test_an_error_is_one_short_line_whatever_the_names_are(tmp_path):
    name = "n\n" * 30_000
    tensor = _kernel((4, 3, 3, 3), name)
    tensor.dims[0] = 5
    with pytest.raises(ValueError, match=r"net\.onnx: .* values for the shape") as error:
        _save(tmp_path / "net.onnx", [helper.make_node("Conv", ["image", name], ["y"])], [tensor])
    assert len(str(error.value)) <= 300
    assert "\n" not in str(error.value)


def test_a_convolution_fused_with_its_activation_is_read(tmp_path):
    node = helper.make_node(
        "FusedConv", ["image", "w"], ["y"], domain="com.microsoft", activation="Relu"
    )
    found = _save(tmp_path / "net.onnx", [node], [_kernel((4, 3, 3, 3))])
    np.testing.assert_array_equal(
        found.kernels["w"].weight, network.values("w", (4, 3, 3, 3)).transpose(2, 3, 1, 0)
    )


@pytest.mark.parametrize(
    ("op", "domain"), [("NhwcFusedConv", "com.microsoft"), ("Conv", "com.ms.internal.nhwc")]
)
def test_channels_last_convolutions_of_half_precision_keep_the_axes_of_their_kernels(
    tmp_path, op, domain
):
    node = helper.make_node(op, ["image", "w"], ["y"], domain=domain, pads=[1] * 4, strides=[2, 2])
    found = _save(tmp_path / "net.onnx", [node], [_kernel((8, 4, 3, 3))])
    wanted = network.values("w", (8, 4, 3, 3)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["w"].weight, wanted)
    assert (found.kernels["w"].stride, found.kernels["w"].padding) == ((2, 2), ((1, 1), (1, 1)))


def test_the_shape_of_the_kernel_tells_how_a_channels_last_convolution_stores_it(tmp_path):
    node = helper.make_node(
        "NhwcConv", ["image", "w"], ["y"], domain="com.microsoft", kernel_shape=[3, 3]
    )
    for shape, axes in (((8, 3, 3, 4), (1, 2, 3, 0)), ((8, 4, 3, 3), (2, 3, 1, 0))):
        found = _save(tmp_path / "net.onnx", [node], [_kernel(shape)])
        wanted = network.values("w", shape).transpose(axes)
        np.testing.assert_array_equal(found.kernels["w"].weight, wanted)


def test_a_kernel_that_is_the_product_of_a_weight_and_its_mask_is_worked_out(tmp_path):
    weight = network.values("c.weight_orig", (8, 4, 3, 3))
    mask = (weight > 0).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["c.weight_orig", "c.weight_mask"], ["c.weight"]),
        helper.make_node("Conv", ["image", "c.weight"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(weight, "c.weight_orig"),
        numpy_helper.from_array(mask, "c.weight_mask"),
    ]
    found = _save(tmp_path / "net.onnx", nodes, tensors)
    assert list(found.kernels) == ["c"]
    np.testing.assert_array_equal(found.kernels["c"].weight, (weight * mask).transpose(2, 3, 1, 0))
    assert found.skipped == {"c.weight_mask": "part of the weight of its layer"}


def test_a_normalised_kernel_is_worked_out(tmp_path):
    direction, length = network.values("v", (8, 4, 3, 3)), network.values("g", (8, 1, 1, 1))
    nodes = [
        helper.make_node("Reshape", ["v", "rows"], ["flat"]),
        helper.make_node("ReduceL2", ["flat"], ["norm"], axes=[1], keepdims=1),
        helper.make_node("Reshape", ["norm", "column"], ["norms"]),
        helper.make_node("Div", ["v", "norms"], ["unit"]),
        helper.make_node("Mul", ["unit", "g"], ["w"]),
        helper.make_node("Conv", ["image", "w"], ["y"]),
    ]
    arrays = {"v": direction, "g": length}
    arrays |= {"rows": np.array([8, -1]), "column": np.array([8, 1, 1, 1])}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, None)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [result], tensors)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset), tmp_path / "net.onnx")
    (kernel,) = weights.read(tmp_path / "net.onnx").kernels.values()
    norms = np.sqrt((direction**2).sum((1, 2, 3), keepdims=True))
    wanted = (direction / norms * length).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel.weight, wanted, rtol=1e-5)


def test_a_product_that_would_be_huge_is_refused(tmp_path):
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["w"]),
        helper.make_node("Conv", ["image", "w"], ["y"]),
    ]
    tensors = [_kernel((50_000, 1, 1, 3), "a"), _kernel((1, 50_000, 3, 1), "b")]
    with pytest.raises(ValueError, match=r"it makes a kernel of \d+ elements"):
        _save(tmp_path / "net.onnx", nodes, tensors)
