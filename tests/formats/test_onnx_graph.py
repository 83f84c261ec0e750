"""ONNX files, and hostile ones, read as graphs."""

import os
import time

import network
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernsym_jax.formats import onnx_graph
from kernsym_jax.formats.onnx_graph import read_model

W = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)


def kernel(name, values=W):
    return numpy_helper.from_array(values, name)


def conv(weight, output="y", image="x", **attributes):
    return helper.make_node("Conv", [image, weight], [output], **attributes)


@pytest.fixture
def save(tmp_path):
    """Writes a model of some nodes on an image ``x``; gives its path."""

    def write(nodes, stored=(), functions=(), sparse=(), name="net.onnx"):
        graph = helper.make_graph(
            list(nodes),
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            list(stored),
            sparse_initializer=list(sparse),
        )
        domains = {"": 17, "local": 1}
        imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=imports, functions=list(functions))
        model.ir_version = 8
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


def function(name, nodes, inputs="a", outputs="b"):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs.split(), outputs.split(), nodes, imports)


def call(name, inputs, output):
    return helper.make_node(name, inputs.split(), [output], domain="local")


def layers(path):
    return [node.layer for node in read_model(path).graph.nodes if node.layer is not None]


def test_large_arrays_are_read_from_the_file_and_equal_those_of_the_onnx_library(save):
    large = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32)
    numbers = helper.make_tensor("numbers", TensorProto.FLOAT, large.shape, large.ravel())
    half = numpy_helper.from_array(large.astype(np.float16), "half")
    doubles = helper.make_tensor("doubles", TensorProto.DOUBLE, large.shape, large.ravel())
    path = save([conv("raw")], [kernel("raw", large), numbers, half, doubles, kernel("small")])
    arrays = read_model(path).graph.arrays
    for tensor in onnx.load(path).graph.initializer:
        np.testing.assert_array_equal(
            arrays[tensor.name].read(), numpy_helper.to_array(tensor), strict=True
        )
    assert read_model(path).proto.ByteSize() < large.nbytes


@pytest.mark.parametrize(
    ("stored", "node", "layer"),
    [
        ("layer1.0.conv1.weight", "", "layer1.0.conv1"),
        ("conv1.W", "", "conv1"),
        ("block/conv/kernel", "", "block/conv"),
        ("model/conv/Conv2D/ReadVariableOp:0", "", "model/conv/Conv2D/ReadVariableOp:0"),
        ("onnx::Conv_193", "/layer1/Conv", "/layer1/Conv"),
        ("/layer1/Constant_output_0", "/layer1/Conv", "/layer1/Conv"),
        ("12", "", "12"),
        ("weight", "", "weight"),
        ("", "", "Conv"),
    ],
)
def test_a_layer_is_named_by_its_kernel_or_else_its_node(save, stored, node, layer):
    assert layers(save([conv(stored, name=node)], [kernel(stored)])) == [layer]


def test_a_name_that_is_no_unicode_is_escaped(save):
    path = save([conv("SURROGATE.weight")], [kernel("SURROGATE.weight")])
    path.write_bytes(path.read_bytes().replace(b"SURROGATE", b"\xed\xa0\x80abcdef"))
    assert layers(path) == [r"\xed\xa0\x80abcdef"]


def test_names_of_layers_are_unique_in_branches_too(save):
    branch = helper.make_graph(
        [conv("w", "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    either = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model = read_model(save([conv("w", "a"), conv("w", "b"), either], [kernel("w")]))
    graphs = list(onnx_graph.walk(model.graph))
    names = [node.layer for graph in graphs for node in graph.nodes if node.layer is not None]
    assert names == ["w", "w (b)", "w (inner)", "w (inner) 2"]


def test_local_functions_are_inlined_one_inside_the_other(save):
    inner = function("Inner", [conv("k", "b", "a")], "a k")
    outer = function("Outer", [call("Inner", "a k", "b")], "a k")
    nodes = [call("Outer", "x first.weight", "t"), call("Outer", "t second.weight", "y")]
    stored = [kernel("first.weight"), kernel("second.weight")]
    assert layers(save(nodes, stored, [inner, outer])) == ["first", "second"]


def test_calls_of_local_functions_have_the_defaults_of_the_attributes_that_they_lack(save):
    node = helper.make_node("Conv", ["a", "k"], ["b"])
    named = node.attribute.add()
    named.name = named.ref_attr_name = "strides"
    named.type = onnx.AttributeProto.INTS
    inner = function("Inner", [node], "a k")
    inner.attribute_proto.append(helper.make_attribute("strides", [3, 2]))
    outer = function("Outer", [call("Inner", "a k", "b")], "a k")
    with_own = helper.make_node("Inner", ["t", "w"], ["y"], domain="local", strides=[1, 1])
    path = save([call("Outer", "x w", "t"), with_own], [kernel("w")], [inner, outer])
    strides = [node.integers("strides", []) for node in read_model(path).graph.nodes]
    assert strides == [[3, 2], [1, 1]]


def test_functions_that_call_themselves_or_each_other_without_end_are_refused(save):
    own = function("Own", [call("Own", "a", "b")])
    with pytest.raises(ValueError, match=r"local function 'local\.Own' calls itself"):
        read_model(save([call("Own", "x", "y")], [], [own]))
    doubling = [function("F0", [helper.make_node("Relu", ["a"], ["b"])])]
    for k in range(1, 40):
        calls = [call(f"F{k - 1}", "a", "t"), call(f"F{k - 1}", "t", "b")]
        doubling.append(function(f"F{k}", calls))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="local functions that make a graph of"):
        read_model(save([call("F39", "x", "y")], [], doubling))
    chain = [function("F0", [helper.make_node("Relu", ["a"], ["b"])])]
    chain += [function(f"F{k}", [call(f"F{k - 1}", "a", "b")]) for k in range(1, 2000)]
    with pytest.raises(ValueError, match="nested too deep"):
        read_model(save([call("F1999", "x", "y")], [], chain))
    assert time.perf_counter() - start < 5


def sparse(name, values, indices, shape):
    return helper.make_sparse_tensor(kernel(name, values), kernel("", indices), shape)


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_arrays_are_made_dense(save, flat):
    wanted = np.zeros((4, 3, 3, 3), np.float32)
    wanted[1, 2, 0, 1], wanted[3, 0, 2, 2] = 2, 5
    places = np.argwhere(wanted)
    indices = np.flatnonzero(wanted) if flat else places
    stored = sparse("w", wanted[tuple(places.T)], indices.astype(np.int64), wanted.shape)
    constant = helper.make_node("Constant", [], ["c"], sparse_value=stored)
    graph = read_model(save([constant, conv("w")], sparse=[stored])).graph
    np.testing.assert_array_equal(graph.arrays["w"].read(), wanted)
    np.testing.assert_array_equal(graph.nodes[0].attributes["sparse_value"].read(), wanted)
    assert graph.shapes["w"] == (4, 3, 3, 3)
    assert graph.nodes[1].layer == "w"


@pytest.mark.usefixtures("within_a_gigabyte")
def test_sparse_arrays_that_are_too_large_or_wrong_are_not_made(save):
    one, zero = np.ones(1, np.float32), np.zeros(1, np.int64)
    huge = [sparse(f"w{i}", one, zero, (512, 512, 7, 7)) for i in range(100)]
    arrays = read_model(save([conv("w0")], sparse=huge)).graph.arrays
    assert arrays["w0"] is not None
    assert arrays["w99"] is None
    outside = sparse("w", one, zero + 1000, (4, 3, 3, 3))
    with pytest.raises(ValueError, match="outside its array"):
        read_model(save([conv("w")], sparse=[outside])).graph.arrays["w"].read()
    uneven = sparse("w", one, np.zeros((3, 4), np.int64), (4, 3, 3, 3))
    with pytest.raises(ValueError, match="indices of shape"):
        read_model(save([conv("w")], sparse=[uneven]))


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (16, 16, 3, 3)])
def test_a_file_may_say_that_values_are_inside_it(save, shape):
    weight = network.values("w", shape)
    tensor = numpy_helper.from_array(weight, "w")
    # ONNX Runtime writes this default behind the values of those that it quantises.
    tensor.data_location = TensorProto.DEFAULT
    stored = read_model(save([conv("w")], [tensor])).graph.arrays["w"]
    np.testing.assert_array_equal(stored.read(), weight)


def external(name, location, **entries):
    tensor = TensorProto(name=name, dims=W.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_arrays_in_a_folder_below_the_model_are_read(save, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(8) + W.tobytes())
    stored = external("w", "data/w.bin", offset=8, length=W.nbytes)
    np.testing.assert_array_equal(
        read_model(save([conv("w")], [stored])).graph.arrays["w"].read(), W
    )


@pytest.mark.parametrize("location", ["loop", "pipe", "out", "gone", "", "..", "a\0b", "n" * 5000])
def test_arrays_are_read_from_regular_files_below_the_model_only(save, tmp_path, location):
    (tmp_path / "secret").write_bytes(W.tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loop").symlink_to("loop")
    (tmp_path / "model" / "out").symlink_to("../secret")
    os.mkfifo(tmp_path / "model" / "pipe")
    path = save([conv("w")], [external("w", location)], name="model/net.onnx")
    array = read_model(path).graph.arrays["w"]
    with pytest.raises(ValueError, match="no file beside the model"):
        array.read()


def test_thousands_of_arrays_in_the_same_bytes_are_refused(save, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(1 << 20))
    large = [external(f"w{i}", "w.bin") for i in range(3000)]
    for tensor in large:
        tensor.dims[:] = [64, 64, 8, 8]
    array = read_model(save([conv("w0")], large)).graph.arrays["w0"]
    with pytest.raises(ValueError, match="arrays of 3145728000 bytes in 1048576 bytes"):
        array.read()


@pytest.mark.parametrize("entries", [{"offset": "x"}, {"offset": -4}, {"length": 9}])
def test_places_in_external_files_that_are_no_numbers_are_refused(save, entries):
    with pytest.raises(ValueError, match=r"number of bytes|instead of 432"):
        read_model(save([conv("w")], [external("w", "w.bin", **entries)]))


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x0a\x00" * 1_900_000, "more than 100000 nodes"),
        (b"\x5a\x0e\x0a\x01x\x12\x09\x0a\x07\x12\x05\x0a\x03\x08\x01\x00", "not an ONNX model"),
        (b"\x0a\x7f\x00", "not an ONNX model"),
        (b"\x12" + b"\xff\xff\xff\x1f" + bytes(65 << 20), "cut off|structure of more than"),
    ],
    ids=["nodes", "type", "cut", "structure"],
)
def test_graphs_of_more_than_a_network_needs_are_refused(tmp_path, content, reason):
    size, length = len(content), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08\x3a" + length + bytes([size]) + content)
    with pytest.raises(ValueError, match=reason):
        read_model(path)


def test_an_attribute_of_a_wrong_type_names_its_node(save):
    path = save([conv("w", name="stem", strides=2)], [kernel("w")])
    (node,) = read_model(path).graph.nodes
    with pytest.raises(ValueError, match="stem: its attribute 'strides' is of a wrong type"):
        node.integers("strides", [1, 1])
