"""Keras files of both generations."""

import json
import zipfile

import h5py
import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights


@pytest.mark.parametrize("name", ["keras 3 keras", "keras 3 h5"])
def test_the_configuration_gives_strides_paddings_and_groups(files, name):
    found = weights.read(files[name])
    assert list(found.kernels) == ["layer1", "layer2", "inner/layer10"]
    assert found.order == "forward"
    first, second, third = found.kernels.values()
    assert (first.stride, first.padding, first.groups) == ((2, 2), "SAME", 1)
    # A ZeroPadding2D in front belongs to the convolution.
    assert (second.stride, second.padding, second.groups) == ((1, 1), ((0, 1), (0, 1)), 4)
    assert (third.padding, third.dilation) == (((0, 0), (0, 0)), (1, 1))


def test_weights_alone_leave_what_they_do_not_say_empty(files):
    for name in ("keras 3 weights.h5", "keras hdf5"):
        kernel = weights.read(files[name]).kernels["layer1"]
        assert (kernel.stride, kernel.padding, kernel.dilation) == (None, None, None)


def test_compressed_datasets_are_read(tmp_path):
    path = writers.write_keras_hdf5(tmp_path / "net.h5", compression="gzip")
    for layer, kernel in weights.read(path).kernels.items():
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])


def test_transposed_kernels_are_turned(tmp_path):
    path = tmp_path / "net.weights.h5"
    stored = network.values("up", (3, 5, 6, 8))
    with h5py.File(path, "w") as file:
        file["layers/conv2d_transpose/vars/0"] = stored
        file["layers/conv2d/vars/0"] = network.values("c", (3, 3, 8, 6))
        file["optimizer/vars/0"] = network.values("m", (3, 3, 8, 6))
    found = weights.read(path)
    kernel = found.kernels["conv2d_transpose"]
    assert kernel.kind == "transposed"
    np.testing.assert_array_equal(kernel.weight, stored.swapaxes(2, 3))
    assert list(found.kernels) == ["conv2d", "conv2d_transpose"]
    assert found.skipped["optimizer"] == "optimizer state: 1 arrays"


def _texts(names):
    return np.array([name.encode() for name in names])


@pytest.mark.parametrize("parts", [1, 3])
def test_long_lists_of_names_are_split_into_several_attributes(tmp_path, parts):
    kernels = {name: network.values(name, (3, 3, 4, 4)) for name in ("a", "b", "inner/c", "d")}
    groups = {"backbone": ["a", "b", "inner/c"], "head": ["d"]}
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        for index, name in enumerate(groups):
            file.attrs[f"layer_names{index}"] = _texts([name])
            group = file.create_group(name)
            names = [f"{layer}/kernel:0" for layer in groups[name]]
            for number in range(parts):
                group.attrs[f"weight_names{number}"] = _texts(names[number::parts])
            for layer in groups[name]:
                group[f"{layer}/kernel:0"] = kernels[layer]
    found = weights.read(path)
    assert set(found.kernels) == set(kernels)
    for layer, kernel in found.kernels.items():
        np.testing.assert_array_equal(kernel.weight, kernels[layer])


def _keras_1(path, layers, ordering, root="", attributes=()):
    """A model of Keras 1 whose layers have the kernels that are given by name."""
    config = [
        {
            "class_name": "Convolution2D",
            "config": {
                "name": name,
                "nb_filter": 8,
                "nb_row": 3,
                "nb_col": 3,
                "subsample": [2, 2],
                "border_mode": "same",
                "dim_ordering": ordering,
            },
        }
        for name in layers
    ]
    with h5py.File(path, "w") as file:
        config = {"class_name": "Sequential", "config": config}
        file.attrs["model_config"] = json.dumps(config)
        for name, value in attributes:
            file.attrs[name] = value
        top = file.create_group("model_weights")
        top.attrs["layer_names"] = _texts(layers)
        for name, kernel in layers.items():
            group = top.create_group(name)
            group.attrs["weight_names"] = _texts([f"{name}_W:0", f"{name}_b:0"])
            group[f"{name}_W:0"], group[f"{name}_b:0"] = kernel, np.zeros(8, np.float32)
    return path


def test_keras_1_has_the_ordering_of_its_configuration(tmp_path):
    stored = network.values("c", (8, 3, 3, 3))
    found = weights.read(_keras_1(tmp_path / "th.h5", {"c": stored}, "th"))
    np.testing.assert_array_equal(found.kernels["c"].weight, stored.transpose(2, 3, 1, 0))
    assert (found.kernels["c"].stride, found.kernels["c"].padding) == ((2, 2), "SAME")
    assert found.layout.startswith("OIHW")
    assert "if it was trained with Theano" in found.notes[0]
    stored = network.values("c", (3, 3, 3, 8))
    found = weights.read(_keras_1(tmp_path / "tf.h5", {"c": stored}, "tf"))
    np.testing.assert_array_equal(found.kernels["c"].weight, stored)
    assert found.notes == ()


def test_kernels_trained_with_theano_are_turned_back(tmp_path):
    stored = network.values("c", (8, 3, 3, 3))
    path = _keras_1(tmp_path / "th.h5", {"c": stored}, "th", attributes=[("backend", "theano")])
    found = weights.read(path)
    turned = stored[:, :, ::-1, ::-1].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["c"].weight, turned)
    assert "turned back" in found.notes[0]


def test_the_user_decides_the_axes_of_weights_alone(tmp_path):
    stored = network.values("c", (8, 3, 3, 3))
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["layer_names"] = _texts(["c"])
        file.create_group("c").attrs["weight_names"] = _texts(["c_W"])
        file["c/c_W"] = stored
    found = weights.read(tmp_path / "net.h5", layout="OIHW")
    np.testing.assert_array_equal(found.kernels["c"].weight, stored.transpose(2, 3, 1, 0))


def test_the_numbered_arrays_of_the_oldest_keras_are_read(tmp_path):
    stored = {
        "layer_2": network.values("a", (8, 3, 3, 3)),
        "layer_10": network.values("b", (4, 8, 3, 3)),
    }
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["nb_layers"] = 2
        for name, kernel in stored.items():
            file[f"{name}/param_0"], file[f"{name}/param_1"] = kernel, np.zeros(len(kernel), "f4")
    found = weights.read(tmp_path / "net.h5")
    assert list(found.kernels) == ["layer_2", "layer_10"]
    for name, kernel in found.kernels.items():
        np.testing.assert_array_equal(kernel.weight, stored[name].transpose(2, 3, 1, 0))


def _archive(path, config, arrays, names=()):
    """A ``.keras`` file: arrays by path, and the names that the file notes for groups."""
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for group, name in names:
            file[f"{group}/vars"].attrs["name"] = name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.write(path.with_suffix(".h5"), "model.weights.h5")
    return path


def test_a_model_of_the_users_own_class_is_read_without_layers(tmp_path):
    kernel, depthwise = network.values("a", (3, 3, 3, 8)), network.values("d", (3, 3, 8, 1))
    arrays = {
        "stem/vars/0": kernel,
        "stem/vars/1": np.zeros(8, np.float32),
        "blocks/block/dw/vars/0": depthwise,
        "blocks/block/dw/vars/1": np.zeros(8, np.float32),
    }
    for config in (
        {"module": None, "class_name": "Net", "config": {"name": "net"}, "registered_name": "my>N"},
        {"module": "my", "class_name": "Net", "config": {"width": 3, "layers": 5}},
    ):
        found = weights.read(_archive(tmp_path / "net.keras", config, arrays, [("stem", "conv_a")]))
        assert set(found.kernels) == {"conv_a", "blocks/block/dw"}
        np.testing.assert_array_equal(found.kernels["conv_a"].weight, kernel)
        inner = found.kernels["blocks/block/dw"]
        assert (inner.kind, inner.groups) == ("depthwise", 8)
        np.testing.assert_array_equal(inner.weight[:, :, 0], depthwise[..., 0])
        assert found.first == "conv_a"


def test_layers_inside_a_layer_of_the_users_own_class_come_in_its_place(tmp_path):
    config = {
        "class_name": "Sequential",
        "config": {
            "layers": [
                {"class_name": "Conv2D", "config": {"name": "first", "strides": [2, 2]}},
                {"class_name": "MyBlock", "config": {"name": "block"}, "registered_name": "my>B"},
                {"class_name": "Conv2D", "config": {"name": "last"}},
                {
                    "class_name": "TimeDistributed",
                    "config": {
                        "name": "frames",
                        "layer": {"class_name": "DepthwiseConv2D", "config": {"name": "inner"}},
                    },
                },
            ]
        },
    }
    arrays = {
        "layers/conv2d/vars/0": network.values("f", (3, 3, 3, 4)),
        "layers/conv2d_1/vars/0": network.values("l", (3, 3, 4, 5)),
        "layers/my_block/separable/vars/0": network.values("s", (3, 3, 4, 1)),
        "layers/my_block/separable/vars/1": network.values("p", (1, 1, 4, 4)),
        "layers/time_distributed/layer/vars/0": network.values("t", (3, 3, 5, 1)),
    }
    found = weights.read(_archive(tmp_path / "net.keras", config, arrays))
    assert list(found.kernels) == ["first", "block/separable", "last", "frames"]
    assert found.kernels["block/separable"].kind == "depthwise"
    assert found.kernels["frames"].kind == "depthwise"
    assert not found.notes
    arrays["layers/my_block/even/vars/0"] = np.ones((3, 3, 4, 4))
    arrays["layers/my_block/even/vars/1"] = np.ones(4)
    arrays["layers/conv2d_1/vars/0"] = np.ones((3, 3, 4, 4))
    (note,) = weights.read(_archive(tmp_path / "net.keras", config, arrays)).notes
    assert note.startswith("read as ordinary convolutions, but may be transposed")
    # The configuration tells what the other layer of as many inputs as outputs is.
    assert note.endswith("depthwise: block/even; the file does not say")


def test_the_mask_of_a_pruned_layer_is_no_kernel(tmp_path):
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["layer_names"] = _texts(["c"])
        group = file.create_group("c")
        names = ["c/kernel:0", "c/mask:0", "c/threshold:0"]
        group.attrs["weight_names"] = _texts(names)
        for name in names[:2]:
            group[name] = network.values("c", (3, 3, 3, 8))
        group[names[2]] = np.float32(0)
    found = weights.read(tmp_path / "net.h5")
    assert list(found.kernels) == ["c"]
    assert "c/mask" in found.skipped


@pytest.mark.parametrize("version", [None, "1.2.2", "2.2.4"])
def test_weights_of_keras_1_without_a_configuration_follow_their_shapes(tmp_path, version):
    shapes = {"c": (64, 3, 3, 3), "d": (3, 3, 3, 3), "e": (32, 64, 3, 3)}
    kernels = {name: network.values(name, shape) for name, shape in shapes.items()}
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = _texts(kernels)
        if version:
            file.attrs["keras_version"] = version
        for name, kernel in kernels.items():
            file.create_group(name).attrs["weight_names"] = _texts([f"{name}_W"])
            file[f"{name}/{name}_W"] = kernel
    found = weights.read(path)
    if version == "2.2.4":
        assert list(found.kernels) == ["d"]
        np.testing.assert_array_equal(found.kernels["d"].weight, kernels["d"])
        return
    assert list(found.kernels) == list(kernels)
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(found.kernels[name].weight, kernel.transpose(2, 3, 1, 0))
    assert "if it was trained with Theano" in found.notes[0]


def test_a_configuration_of_keras_0_without_an_ordering_follows_the_shapes(tmp_path):
    path = _keras_1(tmp_path / "net.h5", {"c": network.values("c", (64, 32, 3, 3))}, None)
    kernel = weights.read(path).kernels["c"]
    assert (kernel.shape, kernel.stride) == ((3, 3, 32, 64), (2, 2))


def test_kernels_inside_a_layer_of_the_users_own_class_keep_their_names(tmp_path):
    layers = {
        "block": ("MyBlock", {}, ["block/query/kernel:0", "block/key/kernel:0"]),
        "conv": ("Conv2D", {"strides": [2, 2], "padding": "same"}, ["conv_3/kernel:0"]),
        "both": ("Bidirectional", {}, ["both/forward_rnn/kernel:0", "both/backward_rnn/kernel:0"]),
    }
    config = [
        {"class_name": kind, "config": {"name": name, **settings}}
        for name, (kind, settings, _) in layers.items()
    ]
    with h5py.File(tmp_path / "net.h5", "w") as file:
        model = {"class_name": "Sequential", "config": {"name": "m", "layers": config}}
        file.attrs["model_config"] = json.dumps(model)
        top = file.create_group("model_weights")
        top.attrs["layer_names"] = _texts(layers)
        for name, (_, _, names) in layers.items():
            group = top.create_group(name)
            group.attrs["weight_names"] = _texts(names)
            for stored in names:
                group[stored] = network.values(stored, (3, 3, 4, 4))
    found = weights.read(tmp_path / "net.h5").kernels
    both = ["both/forward_rnn", "both/backward_rnn"]
    assert list(found) == ["block/query", "block/key", "conv", *both]
    assert (found["conv"].stride, found["block/key"].stride) == ((2, 2), None)
    wanted = network.values("block/key/kernel:0", (3, 3, 4, 4))
    np.testing.assert_array_equal(found["block/key"].weight, wanted)


def test_what_a_layer_of_an_unknown_class_holds_tells_its_kind(tmp_path):
    pairs = {
        "thin": ((3, 3, 6, 2), (12,)),  # twice as many channels as it reads
        "even": ((3, 3, 6, 1), (6,)),
        "plain": ((3, 3, 6, 2), (2,)),
    }
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        for name, shapes in pairs.items():
            for number, shape in enumerate(shapes):
                file[f"block/{name}/vars/{number}"] = network.values(name, shape)
    found = weights.read(tmp_path / "net.weights.h5").kernels
    kinds = {name: (kernel.kind, kernel.shape, kernel.groups) for name, kernel in found.items()}
    assert kinds == {
        "block/thin": ("depthwise", (3, 3, 1, 12), 6),
        "block/even": ("depthwise", (3, 3, 1, 6), 6),
        "block/plain": ("conv", (3, 3, 6, 2), None),
    }


@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose", "DepthwiseConv2D"])
def test_the_kernel_that_a_wrapper_lists_again_is_one_layer(tmp_path, kind):
    conv = {"class_name": kind, "config": {"name": "c", "strides": [2, 2]}}
    norm = {"class_name": "SpectralNormalization", "config": {"name": "n", "layer": conv}}
    outer = {"class_name": "TimeDistributed", "config": {"name": "each", "layer": norm}}
    config = {"class_name": "Sequential", "config": {"name": "m", "layers": [outer]}}
    kernel = network.values("kernel", (3, 3, 3, 4))
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/time_distributed/layer/vars/0"] = np.ones((1, 4), np.float32)
        file["layers/time_distributed/layer/vars/1"] = kernel
        file["layers/time_distributed/layer/layer/vars/0"] = kernel
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    found = weights.read(tmp_path / "net.keras")
    assert list(found.kernels) == ["each"]
    assert found.kernels["each"].stride == (2, 2)
    assert "a second copy of each" in found.skipped.values()


@pytest.mark.parametrize("name", ["conv2d", "conv2d_transpose", "depthwise_conv2d"])
def test_a_wrapper_without_a_configuration_is_no_layer_of_its_own(tmp_path, name):
    kernel = network.values("kernel", (3, 3, 6, 4))
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        file["layers/stem/vars/0"] = network.values("stem", (3, 3, 3, 6))
        file["layers/spectral/vars/0"] = kernel
        file["layers/spectral/vars/1"] = np.ones((1, 4), np.float32)
        file[f"layers/spectral/{name}/vars/0"] = kernel
    found = weights.read(tmp_path / "net.weights.h5")
    assert sorted(found.kernels) == [f"spectral/{name}", "stem"]
    assert found.skipped["spectral"] == f"a second copy of spectral/{name}"
    assert found.first == "stem"


def test_names_and_biases_tell_transposed_kernels_without_a_configuration(tmp_path):
    arrays = {
        "stem/vars/0": network.values("stem", (3, 3, 3, 8)),
        "up/vars/0": network.values("up", (3, 3, 4, 8)),
        "last/vars/0": network.values("last", (3, 3, 6, 4)),
        "last/vars/1": np.zeros(6, np.float32),
        "odd/vars/0": network.values("odd", (3, 3, 5, 8)),
    }
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["up/vars"].attrs["name"] = "conv2d_transpose_2"
    found = weights.read(tmp_path / "net.weights.h5")
    assert {name: (each.kind, each.shape) for name, each in found.kernels.items()} == {
        "stem": ("conv", (3, 3, 3, 8)),
        "conv2d_transpose_2": ("transposed", (3, 3, 8, 4)),
        "last": ("transposed", (3, 3, 4, 6)),
        "odd": ("conv", (3, 3, 5, 8)),
    }
    assert found.first == "stem"
    (note,) = found.notes
    assert note.startswith("may be transposed, with inputs and outputs exchanged: odd;")
