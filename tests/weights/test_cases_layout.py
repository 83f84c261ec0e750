"""Layouts, first layers and parts of weights in the files that people have."""

import gzip
import json
import pickle

import numpy as np
import pytest
import writers
from flax import serialization
from safetensors.numpy import save_file

from kernsym_jax import report, weights


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(0.02, 0.05, shape).astype(np.float32)


def pickled(path, tree):
    path.write_bytes(pickle.dumps(tree, protocol=2))
    return path


def from_torch(array):
    return array.transpose(2, 3, 1, 0)


def require(found, wanted):
    """Wanted: layer -> (kh, kw, in, out)."""
    assert set(found.kernels) == set(wanted)
    for name, kernel in wanted.items():
        np.testing.assert_array_equal(found.kernels[name].weight, kernel)


@pytest.mark.parametrize("layout", [None, "HWIO"])
@pytest.mark.parametrize(
    ("names", "leaf"),
    [
        (["net/~/conv2_d", "net/~/conv2_d_1"], "w"),
        (["stem", "block/conv"], "kernel"),
        (["first/layer", "second/layer"], "w"),
    ],
)
def test_pickled_parameters_of_jax_are_height_first(tmp_path, layout, names, leaf):
    kernels = drawn(3, 3, 3, 16), drawn(3, 3, 16, 32)
    tree = {name: {leaf: kernel} for name, kernel in zip(names, kernels, strict=True)}
    found = weights.read(pickled(tmp_path / "params.pkl", tree), layout=layout)
    require(found, dict(zip(names, kernels, strict=True)))


@pytest.mark.parametrize("layout", [None, "OIHW"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [("msgpack", (8, 3, 3, 3)), ("orbax", (16, 8, 3, 3)), ("orbax", (8, 3, 7, 7))],
)
def test_names_of_pytorch_in_containers_of_jax_are_output_first(tmp_path, kind, shape, layout):
    kernel = drawn(*shape)
    tree = {"layer1.0.conv1.weight": kernel, "layer1.0.conv1.bias": drawn(shape[0])}
    if kind == "orbax":
        path = writers.write_orbax(tmp_path / "saved", tree)
    else:
        path = tmp_path / "net.msgpack"
        path.write_bytes(serialization.to_bytes(tree))
    require(weights.read(path, layout=layout), {"layer1.0.conv1": from_torch(kernel)})


def test_the_layout_that_the_user_gives_wins_or_is_refused_with_a_reason(tmp_path, files):
    path = tmp_path / "net.msgpack"
    path.write_bytes(serialization.to_bytes({"a": {"kernel": drawn(3, 3, 3, 3)}}))
    require(weights.read(path, layout="OIHW"), {"a": from_torch(drawn(3, 3, 3, 3))})
    found = weights.read(files["msgpack"], layout="OIHW")
    assert "--layout=OIHW makes its kernel 3×4" in found.skipped["layer1/kernel"]
    for name, layout, said in (("onnx", "HWIO", "OIHW"), ("tflite", "HWIO", "OHWI")):
        with pytest.raises(ValueError, match=f"--layout={layout} does not apply: .* {said}"):
            weights.read(files[name], layout=layout)
        assert weights.read(files[name], layout=said).kernels
    found = weights.read(files["keras hdf5"], layout="OIHW")
    assert "layer10" not in found.kernels


@pytest.mark.parametrize("count", [1, 5])
def test_narrow_kernels_follow_the_obvious_ones_of_their_file(tmp_path, count):
    arrays = {
        "stem.weight": drawn(13, 3, 3, 3),
        **{f"a{i}.conv3x1.weight": drawn(16, 16, 3, 1, seed=i) for i in range(count)},
        **{f"a{i}.conv1x3.weight": drawn(16, 16, 1, 3, seed=i) for i in range(count)},
        "b.weight": drawn(64, 16, 3, 3),
    }
    save_file(arrays, tmp_path / "net.safetensors")
    found = weights.read(tmp_path / "net.safetensors")
    require(found, {name[:-7]: from_torch(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("kernel", "bias", "axes"),
    [
        ((3, 3, 3, 5), ("bias", 5), (0, 1, 2, 3)),
        ((5, 3, 3, 3), ("bias", 5), (2, 3, 1, 0)),
        ((15, 15, 3, 1), ("b", 1), (0, 1, 2, 3)),
    ],
)
def test_the_length_of_a_bias_tells_where_the_outputs_are(tmp_path, kernel, bias, axes):
    leaf, length = bias
    array = drawn(*kernel)
    np.savez(tmp_path / "net.npz", **{"conv/W": array, f"conv/{leaf}": drawn(length)})
    require(weights.read(tmp_path / "net.npz"), {"conv": array.transpose(axes)})


def test_an_array_that_stays_open_is_reported_as_open(tmp_path):
    arrays = {"a": drawn(3, 3, 3, 3), "c": drawn(3, 3, 8, 16), "d": drawn(16, 8, 3, 3)}
    np.savez(tmp_path / "net.npz", **arrays)
    found = weights.read(tmp_path / "net.npz")
    assert set(found.kernels) == {"c", "d"}
    assert "--layout decides" in found.skipped["a"]
    assert "layout of 1 left-out arrays is open (a)" in found.notes[0]


def test_a_pruned_weight_is_the_weight_times_its_mask(tmp_path):
    weight, mask = drawn(8, 8, 3, 3), (drawn(8, 8, 3, 3, seed=1) > 0).astype(np.float32)
    for names in (
        ("c.weight_orig", "c.weight_mask"),
        ("c.parametrizations.weight.original", "c.parametrizations.weight.0.mask"),
        ("module.c.weight_orig", "module.c.weight_mask"),
    ):
        tree = dict(zip(names, (weight, mask), strict=True))
        found = weights.read(pickled(tmp_path / "net.pkl", tree))
        require(found, {"c": from_torch(weight * mask)})
        assert list(found.skipped) == [names[1].removeprefix("module.")]


@pytest.mark.parametrize("name", ["c.weight_mask", "c.mask"])
def test_a_mask_beside_a_weight_is_applied(tmp_path, name):
    weight = drawn(8, 8, 3, 3)
    mask = drawn(8, 8, 3, 3, seed=1) > 0
    found = weights.read(pickled(tmp_path / "net.pkl", {"c.weight": weight, name: mask}))
    require(found, {"c": from_torch(weight * mask)})
    other = {"c.weight": weight, name: drawn(8, 8, 3, 3, seed=1)}
    require(weights.read(pickled(tmp_path / "net.pkl", other)), {"c": from_torch(weight)})


def test_the_weight_beside_the_parts_of_an_old_spectral_norm_is_read_once(tmp_path):
    array, left, right = drawn(8, 3, 3, 3), drawn(8), drawn(27)
    parts = {"c.weight_orig": array, "c.weight_u": left, "c.weight_v": right}
    found = weights.read(pickled(tmp_path / "a.pkl", {"c.weight": array / 2, **parts}))
    require(found, {"c": from_torch(array / 2)})
    assert set(found.skipped) == set(parts)
    bar = {"c.module.weight_bar": array, "c.module.weight_u": left, "c.module.weight_v": right}
    (kernel,) = weights.read(pickled(tmp_path / "b.pkl", bar)).kernels.values()
    wanted = from_torch(array) / (left @ array.reshape(8, 27) @ right)
    np.testing.assert_allclose(kernel.weight, wanted, rtol=1e-5)


def test_a_name_of_flax_does_not_make_a_kernel_of_64_rows(tmp_path):
    path = tmp_path / "net.msgpack"
    path.write_bytes(serialization.to_bytes({"a": {"kernel": drawn(64, 32, 3, 3)}}))
    require(weights.read(path), {"a": from_torch(drawn(64, 32, 3, 3))})


def test_a_new_spectral_norm_is_named_after_its_layer(tmp_path):
    array = drawn(8, 3, 3, 3)
    left, right = drawn(8), drawn(27)
    stem = "block.conv.parametrizations.weight"
    tree = {f"{stem}.original": array, f"{stem}.0._u": left, f"{stem}.0._v": right}
    found = weights.read(pickled(tmp_path / "a.pkl", tree)).kernels
    assert list(found) == ["block.conv"]
    wanted = from_torch(array) / (left @ array.reshape(8, 27) @ right)
    np.testing.assert_allclose(found["block.conv"].weight, wanted, rtol=1e-5)
    tree.pop(f"{stem}.0._v")
    require(weights.read(pickled(tmp_path / "b.pkl", tree)), {"block.conv": from_torch(array)})


def test_weights_made_of_parts_are_those_of_pytorch(fixtures, tmp_path):
    path = tmp_path / "parts.pt"
    path.write_bytes(gzip.decompress((fixtures / "parts.pt.gz").read_bytes()))
    kernels = weights.read(path).kernels
    assert len(kernels) == 10
    for name in "abcde":
        found, wanted = kernels[f"state_dict.{name}"], kernels[f"wanted.{name}"]
        np.testing.assert_allclose(found.weight, wanted.weight, rtol=2e-5, atol=1e-7)


def test_weights_of_one_length_of_several_parts_and_of_unknown_ones(fixtures, tmp_path):
    path = tmp_path / "parts.pt"
    path.write_bytes(gzip.decompress((fixtures / "parts_further.pt.gz").read_bytes()))
    found = weights.read(path)
    kernels = found.kernels
    names = {name.removeprefix("state_dict.") for name in kernels if name.startswith("state")}
    assert names == {"a", "b", "c", "s"}
    for name in names:
        wanted = kernels[f"wanted.{name}"].weight
        np.testing.assert_allclose(kernels[f"state_dict.{name}"].weight, wanted, rtol=2e-5)
    for name in ("d.parametrizations.weight.0.base", "e.parametrizations.weight.original"):
        assert found.skipped[f"state_dict.{name}"].startswith("its layer computes the weight")


@pytest.mark.parametrize(
    "stem", ["stem.parametrizations.weight.", "net.stem.parametrizations.weight."]
)
@pytest.mark.parametrize(
    "parts",
    [
        {"original": (16, 3, 3, 3)},
        {"original": (16, 3, 3, 3), "0.scale": (1,)},
        {"original0": (16, 1, 1, 1), "original1": (16, 3, 3, 3), "1.scale": (1,)},
    ],
)
def test_a_layer_whose_weight_is_not_known_stays_the_first(tmp_path, stem, parts):
    arrays = {"odd.weight": drawn(3, 32, 3, 3), "even.weight": drawn(16, 16, 3, 3)}
    arrays |= {f"{stem}{name}": drawn(*shape) for name, shape in parts.items()}
    path = pickled(tmp_path / "net.pkl", {**arrays, "last.weight": drawn(32, 16, 3, 3)})
    found = weights.read(path)
    assert list(found.kernels) == ["odd", "even", "last"]
    assert found.first == stem.partition(".param")[0]
    assert {role for _, role in roles(path).values()} == {None}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_wrappers_are_taken_off(tmp_path, prefix):
    arrays = {f"{prefix}conv.weight": drawn(8, 3, 3, 3), f"{prefix}fc.weight": drawn(4, 8)}
    found = weights.read(pickled(tmp_path / "net.pkl", arrays))
    assert list(found.kernels) == ["conv"]
    assert list(found.skipped) == ["fc.weight"]


def roles(path):
    table = report.table(path)
    return {row["layer"]: (row["kind"], row["role"]) for row in table.rows}


@pytest.mark.parametrize(
    ("stem", "others"),
    [
        (("conv_stem", (16, 3, 3, 3)), [16, 16]),
        (("zz.stem", (16, 1, 3, 3)), [16, 16]),
        (("patch", (24, 13, 3, 3)), [24, 24]),
    ],
)
def test_the_first_layer_is_found_wherever_the_file_lists_it(tmp_path, stem, others):
    name, shape = stem
    arrays = {
        f"blocks.{i}.0.conv_dw.weight": drawn(channels, 1, 3, 3, seed=i)
        for i, channels in enumerate(others)
    }
    arrays |= {f"blocks.{i}.0.conv_pw.weight": drawn(16, shape[0], 1, 1) for i in range(2)}
    arrays[f"{name}.weight"] = drawn(*shape)
    save_file(arrays, tmp_path / "net.safetensors")
    found = roles(tmp_path / "net.safetensors")
    assert found.pop(name) == ("conv", "first")
    assert set(found.values()) == {("depthwise", "depthwise")}


@pytest.mark.parametrize(
    ("kernels", "first"),
    [
        # A decoder: its convolutions read what transposed ones make.
        ({"up1": (100, 32, 4), "up2": (32, 16, 4), "tail": (16, 16, 3), "last": (3, 16, 3)}, "up1"),
        ({"refine": (3, 3, 3), "up2": (32, 3, 4), "up1": (100, 32, 4)}, "up1"),
        # Autoencoders: what they read, they make at their end.
        ({"up": (16, 13, 4), "down": (16, 13, 3)}, "down"),
        ({"up": (16, 3, 4), "down": (16, 3, 3)}, "down"),
        ({"up": (16, 1, 4), "down": (16, 1, 3)}, "down"),
        # A decoder and what tells its images from others.
        ({"up1": (100, 32, 4), "up2": (32, 3, 4), "eye": (32, 3, 3)}, "eye"),
    ],
)
def test_a_transposed_layer_may_be_the_first_and_makes_what_others_read(tmp_path, kernels, first):
    arrays = {}
    for name, (left, right, size) in kernels.items():
        arrays[f"{name}.weight"] = drawn(left, right, size, size)
        arrays[f"{name}.bias"] = drawn(right if name.startswith("up") else left)
    found = weights.read(pickled(tmp_path / "net.pkl", arrays), layout="OIHW")
    assert {name: kernel.kind for name, kernel in found.kernels.items()} == {
        name: "transposed" if name.startswith("up") else "conv" for name in kernels
    }
    assert found.first == first


def test_groups_and_joined_maps_are_not_taken_for_the_image(tmp_path):
    arrays = {
        "decoder.weight": drawn(8, 24, 3, 3),
        "layer1.0.conv2.weight": drawn(128, 4, 3, 3),
        "layer1.1.conv2.weight": drawn(128, 4, 3, 3, seed=1),
        "stem.weight": drawn(64, 3, 7, 7),
    }
    save_file(arrays, tmp_path / "net.safetensors")
    found = roles(tmp_path / "net.safetensors")
    assert [name for name, (_, role) in found.items() if role == "first"] == ["stem"]


def test_fixed_filters_are_no_layers(tmp_path):
    taps = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
    tree = {
        "conv.weight": drawn(8, 3, 3, 3),
        "blur.kernel": np.broadcast_to(taps, (8, 1, 3, 3)).copy(),
        "smooth.weight": taps[None, None],
        "window": np.ones((1, 1, 5, 5), np.float32),
        "dw.weight": drawn(8, 1, 3, 3),
        "grey.weight": drawn(1, 1, 3, 3),
    }
    found = weights.read(pickled(tmp_path / "net.pkl", tree))
    assert set(found.kernels) == {"conv", "dw", "grey"}
    for name in ("blur.kernel", "smooth.weight", "window"):
        assert found.skipped[name] == "a fixed filter, not trained"
    assert found.kernels["dw"].kind == "depthwise"


def test_the_evidence_for_a_layout_is_told(tmp_path):
    np.savez(tmp_path / "net.npz", **{"conv/kernel": drawn(3, 3, 3, 8)})
    assert weights.read(tmp_path / "net.npz").layout == "HWIO (by name)"
    table = report.table(tmp_path / "net.npz")
    assert json.dumps(table.weights.layout) == '"HWIO (by name)"'
