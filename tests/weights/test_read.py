"""One network, every format: the same kernels, whatever the file."""

import json
import os
import time

import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights
from kernsym_jax.formats.copies import weight_of_slot

FORMATS = (
    *("npz", "npz compressed", "safetensors", "safetensors bfloat16", "safetensors sharded"),
    *("torch", "torch legacy", "onnx", "msgpack", "orbax", "keras hdf5", "tflite"),
    *("keras 3 keras", "keras 3 h5", "keras 3 weights.h5"),
)


def _short(layer):
    """``layer2`` of ``functional_1/layer2_1/depthwise`` or ``inner/layer2``."""
    return next(part.removesuffix("_1") for part in layer.split("/") if part.startswith("layer"))


@pytest.mark.parametrize("name", FORMATS)
def test_equal_weights_give_equal_kernels(files, name):
    found = weights.read(files[name])
    kernels = {_short(layer): kernel for layer, kernel in found.kernels.items()}
    # The converter has folded the BatchNorm after the first layer, and nothing tells it apart.
    first = network.FOLDED if name == "tflite" else network.KERNELS["layer1"]
    for layer, wanted in (network.KERNELS | {"layer1": first}).items():
        if layer in network.SPATIAL:
            weight = kernels[layer].weight
            assert weight.dtype == np.float32
            np.testing.assert_allclose(weight, wanted, rtol=1e-6, atol=1e-6)
            assert kernels[layer].shape == wanted.shape
    assert {layer: kernel.kind for layer, kernel in kernels.items()} == {
        "layer1": "conv",
        "layer2": "depthwise",
        "layer10": "conv",
    }


@pytest.mark.parametrize("name", FORMATS)
def test_layers_come_in_forward_order_where_the_format_keeps_one(files, name):
    found = weights.read(files[name])
    if name == "keras 3 weights.h5":
        assert found.order == "name"
        assert sorted(map(_short, found.kernels)) == sorted(network.SPATIAL)
    else:
        assert [_short(layer) for layer in found.kernels] == network.SPATIAL


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "keras hdf5"])
def test_folding_batchnorm_gives_equal_kernels(files, name):
    found = weights.read(files[name], fold_batchnorm=True)
    kernels = {_short(layer): kernel.weight for layer, kernel in found.kernels.items()}
    # Of those without an epsilon of their own, Keras has another default than PyTorch and Flax;
    # bfloat16 rounds the variances.
    tolerance = {"keras 3 weights.h5": 1e-3, "safetensors bfloat16": 1e-2}.get(name, 1e-6)
    np.testing.assert_allclose(kernels["layer1"], network.FOLDED, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(kernels["layer2"], network.KERNELS["layer2"])
    assert found.notes


@pytest.mark.parametrize("name", FORMATS)
def test_every_other_array_is_listed_with_a_reason(files, name):
    found = weights.read(files[name])
    reasons = " ".join(found.skipped.values())
    assert "1×1 convolution" in reasons
    if name not in ("keras hdf5", "onnx"):
        assert "dense layer" in reasons
    assert len(found.kernels) == 3


def test_the_record_says_what_it_was_read_from(files):
    found = weights.read(files["torch"])
    assert found.source == str(files["torch"])
    assert (found.format, found.order) == ("PyTorch", "file")
    assert "OIHW" in found.layout


@pytest.mark.parametrize("name", ["torch", "onnx", "safetensors", "tflite"])
def test_the_content_tells_the_format_and_not_the_name(files, name, tmp_path):
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes(files[name].read_bytes())
    assert len(weights.read(renamed).kernels) == 3


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"GIF89a" + bytes(100), b"\x1f\x8b" + bytes(50), bytes(1000)]
)
def test_an_unsupported_file_is_named_and_the_formats_are_listed(tmp_path, content):
    path = tmp_path / "strange.dat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"strange\.dat") as caught:
        weights.read(path)
    if content:
        for word in ("safetensors", "ONNX", "PyTorch", "Keras", "orbax", "npz"):
            assert word in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        weights.read(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        weights.read(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: neither a file nor a directory"):
        weights.read(tmp_path / "pipe")


def test_a_pytorch_checkpoint_in_several_files_is_read(tmp_path):
    arrays = network.state_dict()
    shards = {"part-1.bin": list(arrays)[::2], "part-2.bin": list(arrays)[1::2]}
    for file, names in shards.items():
        writers.write_torch(tmp_path / file, {name: arrays[name] for name in names})
    index = {name: file for file, names in shards.items() for name in names}
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {name: index[name] for name in arrays}}))
    found = weights.read(path)
    assert list(found.kernels) == network.SPATIAL
    assert found.format == "PyTorch, sharded"


def test_a_folder_with_one_safetensors_file_or_index_is_read(files, tmp_path):
    writers.write_safetensors(tmp_path / "model.safetensors")
    assert len(weights.read(tmp_path).kernels) == 3
    assert len(weights.read(files["safetensors sharded"]).kernels) == 3
    index = files["safetensors sharded"] / "model.safetensors.index.json"
    assert weights.read(index).format == "safetensors, sharded"


def test_layer_names_are_data(tmp_path):
    name = "<script>alert(1)</script>\x1b[31m ../../etc {0} %s"
    path = writers.write_safetensors(
        tmp_path / "net.safetensors", {f"{name}.weight": np.ones((4, 2, 3, 3), np.float32)}
    )
    # The dots in a name part it into blocks; the last part is the array's own.
    assert list(weights.read(path).kernels) == [name]


def test_a_name_of_underscores_is_searched_at_its_end_alone():
    name, begin = "conv/" + "_" * 940 + "/exp_avg_sq", time.process_time()
    for _ in range(20_000):
        assert weight_of_slot(name) == name.removesuffix("/exp_avg_sq")
    assert time.process_time() - begin < 2
