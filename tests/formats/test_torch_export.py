"""What torch.export and torch.distributed.checkpoint save, real and hostile."""

import gzip
import json
import pathlib
import pickle
import shutil
import zipfile

import damage
import network
import numpy as np
import pytest

from kernsym_jax import report, weights


@pytest.mark.parametrize("name", ["torch.export", "torch.export of old", "torch distributed"])
def test_real_files_have_the_networks_kernels(files, name):
    found = weights.read(files[name])
    assert list(found.kernels) == network.SPATIAL
    for layer, kernel in found.kernels.items():
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])
    assert found.kernels["layer2"].kind == "depthwise"


@pytest.mark.parametrize("name", ["torch.export", "torch.export of old"])
def test_an_exported_program_tells_the_geometry(files, name):
    found = weights.read(files[name])
    assert found.order == "forward"
    for layer, kernel in found.kernels.items():
        pad, stride = network.PADS[layer], network.STRIDES[layer]
        assert kernel.padding == ((pad, pad), (pad, pad))
        assert (kernel.stride, kernel.dilation) == ((stride, stride), (1, 1))
    assert [kernel.groups for kernel in found.kernels.values()] == [1, 4, 1]


def test_batchnorm_of_an_exported_program_is_folded(files):
    folded = weights.read(files["torch.export"], fold_batchnorm=True).kernels["layer1"].weight
    np.testing.assert_allclose(folded, network.FOLDED, rtol=1e-5)


def test_the_optimizer_of_a_distributed_checkpoint_is_left_out(files):
    found = weights.read(files["torch distributed"])
    assert found.skipped["optim"] == "optimizer state: 1 array"
    assert set(weights.read(files["torch distributed"] / ".metadata").kernels) == set(found.kernels)


def node(operator, weight, **arguments):
    inputs = [{"name": "weight", "arg": {"as_tensor": {"name": weight}}}]
    inputs += [{"name": name, "arg": {"value": value}} for name, value in arguments.items()]
    target = f"torch.ops.aten.{operator}.default"
    return {"target": target, "inputs": [{"name": "input", "arg": {}}, *inputs]}


def save(path, arrays, nodes=(), **changes):
    """Writes an archive of raw tensors with a program of some operators."""
    config, specs = {}, []
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(arrays.items()):
            meta = {
                "dtype": 7,
                "sizes": [{"as_int": n} for n in array.shape],
                "strides": [{"as_int": n // 4} for n in array.strides],
                "storage_offset": {"as_int": 0},
            } | changes
            config[name] = {"path_name": f"w{number}", "use_pickle": False, "tensor_meta": meta}
            archive.writestr(f"net/data/weights/w{number}", array.tobytes())
            specs.append({"parameter": {"arg": {"name": f"p{number}"}, "parameter_name": name}})
        listing = json.dumps({"config": config})
        archive.writestr("net/data/weights/model_weights_config.json", listing)
        graph = {"nodes": list(nodes)}
        module = {"graph": graph, "signature": {"input_specs": specs}}
        archive.writestr("net/models/model.json", json.dumps({"graph_module": module}))
    return path


def test_transposed_convolutions_are_told_by_the_program(tmp_path):
    stored = network.values("up", (6, 2, 3, 5))
    arrays = {"up.weight": stored, "a.weight": network.values("a", (6, 3, 3, 3))}
    nodes = [
        node("conv2d", "p1", padding="same"),
        node("conv_transpose2d", "p0", stride=[2, 2], groups=2),
    ]
    nodes[0]["target"] = "torch.ops.aten.conv2d.padding"
    found = weights.read(save(tmp_path / "net.pt2", arrays, nodes))
    assert list(found.kernels) == ["a", "up"]
    assert found.kernels["a"].padding == "SAME"
    up = found.kernels["up"]
    assert (up.kind, up.groups, up.shape, up.stride) == ("transposed", 2, (3, 5, 3, 4), (2, 2))
    # Output channel 3 is the second of the second group, which reads the inputs 3 to 5.
    np.testing.assert_array_equal(up.weight[:, :, 1, 3], stored[4, 1])


@pytest.mark.parametrize(
    ("own", "before", "wanted"),
    [
        ([1, 1], [0, 1, 2, 3], ((3, 4), (1, 2))),
        ("valid", [1, 1, 1, 1], ((1, 1), (1, 1))),
        ("same", [0, 1, 0, 1], None),
        ([0, 0], [{"as_name": "s0"}, 1, 0, 1], None),
        ("far", None, None),
    ],
)
def test_a_padding_in_front_of_a_convolution_counts(tmp_path, own, before, wanted):
    arrays = {"conv.weight": network.values("conv", (8, 3, 3, 3))}
    call = node("conv2d", "p0", stride=[2, 2], padding=own)
    call["inputs"][0]["arg"] = {"as_tensor": {"name": "padded"}}
    pad = node("constant_pad_nd", "x", pad=before)
    pad["outputs"] = [{"as_tensor": {"name": "padded"}}]
    path = save(tmp_path / "net.pt2", arrays, [pad, call] if before else [call])
    if own == "far":
        with pytest.raises(ValueError, match="two axes"):
            weights.read(path)
    else:
        assert weights.read(path).kernels["conv"].padding == wanted


def step(operator, output, tensors, *options):
    """Returns an operator of a program that reads some values and gives another."""
    inputs = [{"as_tensors": [{"name": name} for name in tensors]}]
    if len(tensors) == 1:
        inputs = [{"as_tensor": {"name": tensors[0]}}]
    inputs += [{"value": option} for option in options]
    return {
        "target": f"torch.ops.aten.{operator}.default",
        "inputs": [{"name": "", "arg": arg} for arg in inputs],
        "outputs": [{"as_tensor": {"name": output}}],
    }


UNPADDED = ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([step("index", "y", ["x"])], None),
        ([step("slice_scatter", "y", ["x"])], None),
        ([step("slice", "a", ["x"], 2, -1), step("cat", "y", ["a", "x", "a"], 2)], None),
        ([step("cat", "a", ["x", "x"], -1), step("relu", "y", ["a"])], None),
        ([step("cat", "a", ["x", "x"], -1), step("max_pool2d", "y", ["a"])], UNPADDED),
        ([step("cat", "y", ["x", "x"], 1)], UNPADDED),
        ([step("slice", "a", ["x"], 2, 0, 9, 2), step("cat", "y", ["a", "a"], 1)], UNPADDED),
        ([step("empty", "a", ["x"]), step("copy_", "b", ["a"]), step("relu", "y", ["a"])], None),
        ([step("pad", "a", ["x"], [1, 2]), step("relu", "y", ["a"])], ((1, 1), (2, 3))),
        ([step("pad", "a", ["x"], [1] * 4), step("pad", "y", ["a"], [2] * 4)], ((4, 4), (4, 4))),
        ([step("pad", "a", ["x"], [1] * 4), step("slice", "y", ["a"], 2, 1)], None),
        ([step("pad", "y", ["x"], [-1] * 4)], None),
        ([step("pad", "y", ["x"], [0, 0, 0, 0, 4, 4])], UNPADDED),
    ],
)
def test_a_padding_by_other_operators_is_right_or_open(tmp_path, steps, wanted):
    arrays = {"conv.weight": network.values("conv", (8, 3, 3, 3))}
    call = node("conv2d", "p0", stride=[2, 2], padding=[1, 1])
    call["inputs"][0]["arg"] = {"as_tensor": {"name": "y"}}
    path = save(tmp_path / "net.pt2", arrays, [*steps, call])
    assert weights.read(path).kernels["conv"].padding == wanted


@pytest.fixture
def frozen(fixtures, tmp_path):
    path = tmp_path / "frozen.pt"
    path.write_bytes(gzip.decompress((fixtures / "frozen_further.pt.gz").read_bytes()))
    return path


def test_the_code_of_a_frozen_module_tells_its_geometry(frozen):
    found = weights.read(frozen)
    assert found.order == "forward"
    told = [(k.kind, k.stride[0], k.padding, k.groups) for k in found.kernels.values()]
    one = ((1, 1), (1, 1))
    assert told == [
        ("conv", 2, one, 1),
        ("transposed", 2, ((0, 0), (0, 0)), 2),
        ("conv", 2, one, 1),
        ("conv", 1, "SAME", 1),
    ]
    up = list(found.kernels.values())[1].weight
    stored = network.values("2.weight", (4, 3, 2, 2))
    # Output channel 4 is the second of the second group, which reads the inputs 2 and 3.
    np.testing.assert_array_equal(up[:, :, 0, 4], stored[2, 1])
    assert [row["role"] for row in report.table(frozen).rows] == [
        *("strided", "transposed", "strided", "internal")
    ]


@pytest.mark.parametrize(
    "code",
    [
        "torch.conv2d(x, CONSTANTS.c1, None, exit())",
        "(" * 100_000,
        "-" * 50_000 + "1",
        "\0",
        "torch.conv2d(x, CONSTANTS.c1, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)",
        "ops.quantized.conv2d(x, CONSTANTS.c1, 0.5, 85)",
    ],
    ids=["exit", "deep", "signs", "null", "dilation", "quantised"],
)
def test_code_that_tells_nothing_is_in_nobodys_way(frozen, code):
    changed = frozen.with_name("changed.pt")
    with zipfile.ZipFile(frozen) as old, zipfile.ZipFile(changed, "w") as new:
        for item in old.infolist():
            data = code if item.filename.endswith(".py") else old.read(item)
            new.writestr(item.filename, data)
    found = weights.read(changed)
    assert (len(found.kernels), found.order) == (4, "file")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("y = torch.cat([torch.slice(x, 2, -1), x], 2)", None),
        ("y = torch.cat([x, x], 1)", UNPADDED),
        ("y = torch.relu(torch.pad(x, [0, 1, 0, 1]))", ((1, 2), (1, 2))),
        ("y = torch.zeros([1])\n_1 = torch.copy_(torch.slice(y, 2, 1, -1), x)", None),
    ],
)
def test_code_that_pads_by_slices_leaves_the_padding_open(frozen, code, wanted):
    changed = frozen.with_name("changed.pt")
    call = "z = torch.conv2d(y, CONSTANTS.c1, None, [2, 2], [1, 1])"
    with zipfile.ZipFile(frozen) as old, zipfile.ZipFile(changed, "w") as new:
        for item in old.infolist():
            data = f"{code}\n{call}\n" if item.filename.endswith(".py") else old.read(item)
            new.writestr(item.filename, data)
    kernel = weights.read(changed).kernels["constants.1"]
    assert (kernel.stride, kernel.padding) == ((2, 2), wanted)


def test_a_convolution_of_volumes_is_no_obstacle(tmp_path):
    arrays = {"a.weight": network.values("a", (8, 3, 3, 3))}
    arrays["v.weight"] = network.values("v", (8, 3, 3, 3, 3))
    three = {"stride": [1] * 3, "padding": [0] * 3, "dilation": [1] * 3}
    nodes = [node("conv2d", "p0"), node("convolution", "p1", **three)]
    found = weights.read(save(tmp_path / "net.pt2", arrays, nodes))
    assert (list(found.kernels), found.order) == (["a"], "forward")


def test_a_first_layer_of_one_tap_reads_the_image(tmp_path):
    arrays = {"a.weight": network.values("a", (3, 3, 1, 1))}
    arrays["b.weight"] = network.values("b", (8, 3, 3, 3))
    nodes = [node("conv2d", "p0"), node("conv2d", "p1")]
    table = report.table(save(tmp_path / "net.pt2", arrays, nodes))
    assert [(row["layer"], row["role"]) for row in table.rows] == [("b", "internal")]


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": [{"as_int": 1 << 40}] * 4}, "strides"),
        ({"sizes": [{"as_int": -8}, *[{"as_int": 3}] * 3]}, "cannot have the shape"),
        ({"strides": [{"as_int": 1 << 30}] * 4}, "does not fit its storage"),
        ({"strides": [{"as_int": -1}] * 4}, "strides"),
        ({"storage_offset": {"as_int": 1}}, "does not fit its storage"),
        ({"storage_offset": {"as_expr": "s0"}}, "as_int"),
        ({"dtype": 99}, "unknown type 99"),
    ],
)
def test_tensors_that_claim_too_much_are_refused(tmp_path, changes, says):
    array = np.ones((8, 3, 3, 3), np.float32)
    path = save(tmp_path / "net.pt2", {"conv.weight": array}, **changes)
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match=says):
        weights.read(path)


def test_a_missing_member_and_odd_arguments_are_refused(tmp_path):
    arrays = {"conv.weight": np.ones((8, 3, 3, 3), np.float32)}
    for arguments, says in (({"stride": "far"}, "two axes"), ({"groups": 0}, "in 0 groups")):
        path = save(tmp_path / "net.pt2", arrays, [node("conv2d", "p0", **arguments)])
        with pytest.raises(ValueError, match=says):
            weights.read(path)
    with zipfile.ZipFile(tmp_path / "cut.pt2", "w") as archive:
        entry = {"path_name": "../w", "use_pickle": False}
        listing = json.dumps({"config": {"conv.weight": entry}})
        archive.writestr("net/data/weights/model_weights_config.json", listing)
    with pytest.raises(ValueError, match="is missing from the archive"):
        weights.read(tmp_path / "cut.pt2")


@pytest.fixture
def distributed(files, tmp_path):
    """A copy of the distributed checkpoint with a pickle that replaces its metadata's text."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(files["torch distributed"], folder)

    def change(old, new):
        path = folder / ".metadata"
        content = path.read_bytes()
        assert old in content
        assert len(old) == len(new)
        path.write_bytes(content.replace(old, new))
        return folder

    return change


@pytest.mark.parametrize(
    "name", [b"../secret.dct", b"/etc/hostname", b".............", b".\\b.distcpxxx"]
)
def test_files_outside_the_folder_are_refused(distributed, name):
    folder = distributed(b"__1_0.distcp", name[:12])
    assert damage.fault(folder) is None
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"outside its own folder|no such file"
    ):
        weights.read(folder)


def test_a_link_in_place_of_a_file_of_values_is_refused(files, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(files["torch distributed"], folder)
    (folder / "__1_0.distcp").rename(tmp_path / "elsewhere")
    (folder / "__1_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"__1_0\.distcp: no such file"):
        weights.read(folder)


def test_metadata_that_asks_for_code_is_refused(files, tmp_path):
    class Attack:
        def __reduce__(self):
            return pathlib.Path.write_text, (tmp_path / "ran", "it")

    class Shell:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tmp_path / "checkpoint"
    shutil.copytree(files["torch distributed"], folder)
    for thing, says in ((Shell(), "refused: the pickle asks for"), (Attack(), "holds no listing")):
        (folder / ".metadata").write_bytes(pickle.dumps(thing, 4))
        with pytest.raises(ValueError, match=says):
            weights.read(folder)
        assert not (tmp_path / "ran").exists()


def test_parts_that_leave_gaps_or_reach_out_are_refused(distributed):
    # The kernel of layer1 has the shape (4, 3, 3, 3), in two parts of (2, 3, 3, 3).
    size = b"(K\x04K\x03K\x03K\x03t"
    for other, says in ((5, "do not fill its shape"), (1, "reaches beyond its shape")):
        folder = distributed(size, b"(K" + bytes([other]) + b"K\x03K\x03K\x03t")
        with pytest.raises(ValueError, match=says):
            weights.read(folder)
        size = b"(K" + bytes([other]) + b"K\x03K\x03K\x03t"


def test_parts_that_overlap_and_so_leave_gaps_are_refused(distributed):
    # The second part of the kernel of layer1 begins at (2, 0, 0, 0).
    folder = distributed(b"(K\x02K\x00K\x00K\x00t", b"(K\x01K\x00K\x00K\x00t")
    with pytest.raises(ValueError, match="do not fill its shape"):
        weights.read(folder)
