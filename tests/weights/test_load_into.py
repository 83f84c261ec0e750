"""Trained weights in our models: by name, by value, and by the accuracy they give."""

import functools
import gzip
import io
import json
import re
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import writers
from by_blocks import compile_for_many_runs
from flax import serialization
from PIL import Image

from kernsym_jax import models, weights

_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@functools.cache
def _torchvision_shapes(fixtures):
    return json.loads(gzip.decompress((fixtures / "torchvision_shapes.json.gz").read_bytes()))


def _torchvision_arrays(fixtures, name):
    one = np.float32(0.5)
    return {
        key: np.broadcast_to(one, shape)
        for key, shape in _torchvision_shapes(fixtures)[name].items()
    }


def _assert_fits(network, arrays):
    variables, wanted = weights.load_into(network.model, arrays), network.variables
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v2", "inception_v3"])
def test_torchvisions_names_and_shapes_fit(fixtures, name, traced):
    _assert_fits(traced(name, num_classes=10), _torchvision_arrays(fixtures, name))


@pytest.mark.parametrize(
    "name",
    ["resnext50_32x4d", "wide_resnet50_2", "densenet161", "efficientnet_b5", "convnext_tiny"],
)
def test_names_and_shapes_of_torchvisions_scaled_networks_fit(fixtures, name, traced):
    _assert_fits(traced(name, num_classes=10), _torchvision_arrays(fixtures, name))


def test_the_names_in_torchvisions_densenet_files_fit(fixtures, traced):
    arrays = _torchvision_arrays(fixtures, "densenet161")
    old = {
        re.sub(r"(denselayer\d+\.\w+)([12])\.", r"\1.\2.", name): v for name, v in arrays.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.running_mean" in old
    _assert_fits(traced("densenet161", num_classes=10), old)


@pytest.fixture(scope="module")
def small():
    """A small model, its variables, and the same arrays under PyTorch's names and axes."""
    model = models.create("cifar_resnet20", num_classes=3, width=4)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(1), images),
    )
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    torch = {}
    for keys, leaf in leaves:
        collection, *layers, name = (key.key for key in keys)
        layer = ".".join(layers).replace("_", ".")
        value = np.asarray(leaf)
        if name == "kernel":
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        stats = {"mean": "running_mean", "var": "running_var"}
        leafname = stats[name] if collection == "batch_stats" else name
        leafname = {"kernel": "weight", "scale": "weight"}.get(leafname, leafname)
        torch[f"{layer}.{leafname}"] = np.ascontiguousarray(value)
    return model, variables, torch


def _same(loaded, torch):
    kernel = np.asarray(loaded["params"]["layer2_0"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kernel, torch["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded["params"]["linear"]["kernel"], torch["linear.weight"].T)
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], torch["bn1.weight"])
    var = loaded["batch_stats"]["layer3_1"]["bn2"]["var"]
    np.testing.assert_array_equal(var, torch["layer3.1.bn2.running_var"])


def test_every_file_that_keeps_names_loads_alike(small, tmp_path):
    model, _, torch = small
    prefixed = {f"module.{name}": value for name, value in torch.items()}
    counted = torch | {"bn1.num_batches_tracked": np.array(7, np.int64)}
    np.savez(tmp_path / "net.npz", **torch)
    safetensors.numpy.save_file(torch, tmp_path / "net.safetensors")
    writers.write_torch(tmp_path / "net.pt", counted)
    writers.write_torch_legacy(tmp_path / "net.th", prefixed)
    for source in (torch, counted, *sorted(tmp_path.iterdir())):
        _same(weights.load_into(model, source), torch)


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "model.backbone.", "0."])
def test_any_prefix_before_the_names_is_taken_off(small, prefix):
    model, _, torch = small
    _same(
        weights.load_into(model, {f"{prefix}{key}": array for key, array in torch.items()}), torch
    )


def test_names_of_antialiased_cnns_load_into_the_network_with_blur(fixtures, traced):
    arrays = {}
    for name, array in _torchvision_arrays(fixtures, "resnet18").items():
        parts = name.split(".")
        if parts[0] in ("layer2", "layer3", "layer4") and parts[1] == "0":
            if parts[2] == "conv2":
                parts.insert(3, "1")
            elif parts[2] == "downsample":
                parts[3] = str(int(parts[3]) + 1)
        arrays[".".join(parts)] = array
    taps = np.full((64, 1, 4, 4), 1 / 16, np.float32)
    blurs = [f"layer{n}.0.{part}.0.filt" for n in (2, 3, 4) for part in ("conv2", "downsample")]
    arrays |= dict.fromkeys(["maxpool.1.filt", *blurs], taps)
    _assert_fits(traced("resnet18", num_classes=10, downsample="blur"), arrays)


def test_our_own_variables_load_from_a_tree_msgpack_and_npz(small, tmp_path):
    model, variables, _ = small
    (tmp_path / "net.msgpack").write_bytes(serialization.to_bytes(variables))
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    flat = {"/".join(key.key for key in keys): np.asarray(leaf) for keys, leaf in leaves}
    np.savez(tmp_path / "net.npz", **flat)
    for source in (variables, flat, tmp_path / "net.msgpack", tmp_path / "net.npz"):
        loaded = weights.load_into(model, source)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_half_precision_files_become_the_models_own_type(small):
    model, _, torch = small
    half = {name: value.astype(jnp.bfloat16) for name, value in torch.items()}
    loaded = weights.load_into(model, half)
    assert loaded["params"]["conv1"]["kernel"].dtype == jnp.float32


def test_every_difference_is_named_by_its_path(small):
    model, _, torch = small
    changed = dict(torch)
    del changed["layer2.0.conv1.weight"], changed["bn1.running_mean"]
    changed["extra.weight"] = np.zeros((3, 3, 3, 3), np.float32)
    changed["linear.weight"] = np.zeros((7, 16), np.float32)
    with pytest.raises(ValueError, match="does not fit CifarResNet") as caught:
        weights.load_into(model, changed)
    message = str(caught.value)
    assert "2 missing" in message
    assert "params/layer2_0/conv1/kernel" in message
    assert "batch_stats/bn1/mean" in message
    assert "1 not in the model (params/extra/kernel)" in message
    assert "params/linear/kernel (16, 7) instead of (16, 3)" in message
    assert "\n" not in message


def test_a_long_list_of_differences_is_counted_and_cut(small):
    model, _, torch = small
    with pytest.raises(ValueError, match=r"\d+ missing \(.*, … \d+ more\)") as caught:
        weights.load_into(model, {"conv1.weight": torch["conv1.weight"]})
    assert len(str(caught.value)) < 500


def test_the_images_channels_are_those_of_the_source(small):
    model, _, torch = small
    grey = torch | {"conv1.weight": torch["conv1.weight"][:, :1]}
    loaded = weights.load_into(model, grey)
    assert loaded["params"]["conv1"]["kernel"].shape == (3, 3, 1, 4)
    with pytest.raises(ValueError, match="conv1/kernel"):
        weights.load_into(model, grey, input_shape=(1, 32, 32, 3))


def test_a_graph_format_and_a_missing_file_are_refused_by_name(small, files):
    model, _, _ = small
    with pytest.raises(ValueError, match=r"net\.onnx"):
        weights.load_into(model, files["onnx"])
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        weights.load_into(model, "absent.pt")


@pytest.fixture(scope="module")
def test_images(shared):
    """The 10,000 test images of the JPEG copy of CIFAR-10, uint8, and their classes."""
    images, names = [], []
    with tarfile.open(shared / "data" / "cifar10_jpeg.tar.gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.isfile() and "test" in parts and member.name.endswith(".jpg"):
                content = archive.extractfile(member).read()
                images.append(np.asarray(Image.open(io.BytesIO(content))))
                names.append(parts[-2])
    classes = sorted(set(names))
    return np.stack(images), np.array([classes.index(name) for name in names])


# PyTorch's own figures with the same weights, on every fourth or tenth of the 10,000 images.
@pytest.mark.parametrize(
    ("depth", "every", "wanted", "tolerance"),
    [(20, 4, 81.44, 0.1), (32, 10, 80.8, 0.1), (56, 10, 83.8, 0.1)],
)
def test_real_networks_classify_as_they_do_in_pytorch(
    shared, test_images, depth, every, wanted, tolerance
):
    model = models.create(f"cifar_resnet{depth}")
    variables = weights.load_into(model, shared / "weights" / f"cifar_resnet{depth}.th")

    @jax.jit
    def classify(images):
        normal = (images.astype(jnp.float32) / 255 - _MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(
            1, 1, 1, 3
        )
        return jnp.argmax(model.apply(variables, normal), axis=-1)

    images, classes = (part[::every] for part in test_images)
    batches = np.split(images, len(images) // 500)
    compiled = compile_for_many_runs(classify.lower(batches[0]))
    predicted = np.concatenate([compiled(batch) for batch in batches])
    assert 100 * np.mean(predicted == classes) == pytest.approx(wanted, abs=tolerance)


def test_of_prefixes_that_fit_equally_badly_the_first_is_compared():
    """Sets of names have another order in each process."""
    arrays = {
        f"params/part{number}/conv1/kernel": np.ones((3, 3, 3, 5 + number), np.float32)
        for number in range(12)
    }
    model = models.create("small_cnn")
    with pytest.raises(ValueError, match=r"params/conv1/kernel \(3, 3, 3, 5\) instead of"):
        weights.load_into(model, arrays)
