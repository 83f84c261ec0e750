"""ONNX graphs, against the onnx library's own reading of them."""

import damage
import network
import numpy as np
import onnx
import pytest
import writers
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax import weights


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
