"""safetensors, NumPy and msgpack files: every element type, views instead of copies."""

import json
import struct

import ml_dtypes
import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights

_FLOATS = {
    name: np.dtype(getattr(ml_dtypes, name, None) or name)
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
_NUMBERS = (np.arange(16 * 8 * 9) % 13 - 6).astype(np.float32).reshape(16, 8, 3, 3)


@pytest.mark.parametrize("name", list(_FLOATS))
def test_every_float_of_safetensors_is_read_exactly(tmp_path, name):
    path = tmp_path / "net.safetensors"
    writers.write_safetensors(path, {"w": _NUMBERS.astype(_FLOATS[name])})
    assert weights.read_arrays(path)["w"].dtype == _FLOATS[name]
    np.testing.assert_array_equal(
        weights.read(path).kernels["w"].weight, _NUMBERS.transpose(2, 3, 1, 0)
    )


# As text: an ONNX model's first byte, a pickle's first two, a zip archive's.
@pytest.mark.parametrize("size", [0x108, 0x280, 0x4B50])
def test_the_size_of_a_header_may_look_like_another_format(tmp_path, size):
    path = tmp_path / "net.safetensors"
    content = writers.write_safetensors(path, {"w": _NUMBERS}).read_bytes()
    old = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + old].ljust(size)
    path.write_bytes(size.to_bytes(8, "little") + header + content[8 + old :])
    found = weights.read(path)
    assert found.format == "safetensors"
    np.testing.assert_array_equal(found.kernels["w"].weight, _NUMBERS.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_of_npz_is_read_exactly(tmp_path, name, order):
    path = tmp_path / "net.npz"
    np.savez(path, w=np.asarray(_NUMBERS.astype(_FLOATS[name]), order=order))
    np.testing.assert_array_equal(
        weights.read(path).kernels["w"].weight, _NUMBERS.transpose(2, 3, 1, 0)
    )


def test_objects_and_text_in_an_npz_are_listed_and_not_read(tmp_path):
    np.savez(tmp_path / "net.npz", w=_NUMBERS, notes=np.array("text"), objects=np.array([{}]))
    found = weights.read(tmp_path / "net.npz")
    assert list(found.kernels) == ["w"]
    assert "other than numbers" in found.skipped["notes"]
    assert "other than numbers" in found.skipped["objects"]


def test_an_npz_of_a_sorted_tree_is_put_in_natural_order_and_folded(tmp_path):
    variables = network.flax_variables()
    flat = {
        f"{collection}/{layer}/{leaf}": array
        for collection, layers in variables.items()
        for layer, leaves in layers.items()
        for leaf, array in leaves.items()
    }
    np.savez(tmp_path / "net.npz", **{name: flat[name] for name in sorted(flat)})
    found = weights.read(tmp_path / "net.npz", fold_batchnorm=True)
    assert list(found.kernels) == network.SPATIAL
    assert found.order == "name"
    np.testing.assert_allclose(found.kernels["layer1"].weight, network.FOLDED, rtol=1e-6)


def test_big_endian_npz_is_read(tmp_path):
    np.savez(tmp_path / "net.npz", w=_NUMBERS.astype(">f4"))
    kernel = weights.read(tmp_path / "net.npz").kernels["w"].weight
    np.testing.assert_array_equal(kernel, _NUMBERS.transpose(2, 3, 1, 0))


def test_a_single_npy_is_named_after_its_file(tmp_path):
    np.save(tmp_path / "stem.npy", _NUMBERS)
    assert list(weights.read(tmp_path / "stem.npy").kernels) == ["stem"]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_every_float_of_msgpack_is_read_exactly(tmp_path, name):
    tree = {"params": {"conv": {"kernel": _NUMBERS.transpose(2, 3, 1, 0).astype(_FLOATS[name])}}}
    path = writers.write_msgpack(tmp_path / "net.msgpack", tree)
    np.testing.assert_array_equal(
        weights.read(path).kernels["conv"].weight, _NUMBERS.transpose(2, 3, 1, 0)
    )


def test_an_array_that_msgpack_keeps_in_pieces_is_joined(tmp_path, monkeypatch):
    from flax import serialization

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    kernel = _NUMBERS.transpose(2, 3, 1, 0)
    tree = {"params": {"conv": {"kernel": kernel}}}
    path = writers.write_msgpack(tmp_path / "net.msgpack", tree)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    np.testing.assert_array_equal(weights.read(path).kernels["conv"].weight, kernel)


@pytest.mark.parametrize("name", ["safetensors", "torch", "torch legacy", "npz", "onnx", "msgpack"])
def test_float32_kernels_are_views_of_the_file(files, name):
    kernel = weights.read(files[name]).kernels["layer1"]
    assert not kernel.weight.flags.owndata
    assert not kernel.weight.flags.writeable
    assert kernel.weight.base is not None


def test_arrays_in_bfloat16_are_exact_in_every_format_that_keeps_them(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in network.state_dict().items()}
    for path in (
        writers.write_safetensors(tmp_path / "net.safetensors", half),
        writers.write_torch(tmp_path / "net.pt", half),
        writers.write_torch_legacy(tmp_path / "net.th", half),
    ):
        for layer, kernel in weights.read(path).kernels.items():
            np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])


def with_unknown_type(path, kind="F4"):
    """A file with a kernel in float32 and an array of an unknown type."""
    kernel = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    size = kernel.nbytes
    header = {
        "conv.weight": {"dtype": "F32", "shape": [16, 3, 3, 3], "data_offsets": [0, size]},
        "fc.weight": {"dtype": kind, "shape": [16, 16], "data_offsets": [size, size + 128]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + kernel.tobytes() + bytes(128))
    return kernel


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "NUMBER_OF_LATER"])
def test_an_array_of_an_unknown_type_is_left_out_and_the_others_are_read(tmp_path, kind):
    kernel = with_unknown_type(tmp_path / "net.safetensors", kind)
    found = weights.read(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(found.kernels["conv"].weight, kernel.transpose(2, 3, 1, 0))
    assert found.skipped == {"fc.weight": f"numbers of the type {kind}: not read"}


def test_an_array_of_an_unknown_type_may_lie_in_a_shard(tmp_path):
    with_unknown_type(tmp_path / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(("conv.weight", "fc.weight"), "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    found = weights.read(index)
    assert list(found.kernels) == ["conv"]
    assert "F4" in found.skipped["fc.weight"]


def test_the_bytes_of_an_array_of_an_unknown_type_are_checked_too(tmp_path):
    with_unknown_type(tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="the file is cut"):
        weights.read(tmp_path / "net.safetensors")
