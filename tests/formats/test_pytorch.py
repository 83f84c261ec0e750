"""PyTorch's files, read without PyTorch; what they would run is refused by name."""

import gzip
import os
import pickle
import zipfile

import make_fixtures
import ml_dtypes
import network
import numpy as np
import pytest
import writers

from kernsym_jax import weights
from kernsym_jax.formats import containers
from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.formats.pickle_data import Inert

_BASE = (np.arange(54) / 4).reshape(2, 3, 3, 3)
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64"),
)


@pytest.mark.parametrize("file", ["tensors.pt", "tensors_legacy.pt"])
def test_every_dtype_is_read_exactly(fixtures, file):
    arrays = weights.read_arrays(fixtures / file)
    present = [name for name in _DTYPES if name in arrays]
    assert len(present) == (14 if file == "tensors.pt" else 11)
    for name in present:
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        assert arrays[name].dtype == dtype
        np.testing.assert_array_equal(arrays[name].read(), _BASE.astype(np.float32).astype(dtype))


@pytest.mark.parametrize("file", ["tensors.pt", "tensors_legacy.pt"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("channels_last", _BASE),
        ("transposed", _BASE.transpose(2, 3, 1, 0)),
        ("every_other", _BASE),
        ("offset", _BASE[1:]),
        ("shared", _BASE[:1]),
        ("expanded", np.full((2, 3, 3, 3), 2.5)),
        ("parameter", _BASE),
        ("scalar", np.array(7)),
        ("empty", np.zeros((0, 3, 3, 3))),
        ("quantized", np.round(_BASE / 0.5) * 0.5),
    ],
)
def test_strided_shared_and_wrapped_tensors_are_read_exactly(fixtures, file, name, wanted):
    np.testing.assert_array_equal(weights.read_arrays(fixtures / file)[name].read(), wanted)


def test_stored_floats_of_every_width_become_float32_kernels(fixtures):
    kernels = weights.read(fixtures / "tensors.pt").kernels
    for name in ("float64", "float16", "bfloat16", "float8_e5m2"):
        assert kernels[name].weight.dtype == np.float32
    np.testing.assert_array_equal(kernels["float64"].weight, _BASE.transpose(2, 3, 1, 0))
    assert "int8" in weights.read(fixtures / "tensors.pt").skipped


@pytest.mark.parametrize(("file", "layer"), [("script.pt", "conv"), ("frozen.pt", "constants.0")])
def test_torchscript_gives_its_parameters(fixtures, file, layer):
    found = weights.read(fixtures / file)
    assert found.format == "TorchScript"
    np.testing.assert_array_equal(found.kernels[layer].weight, _BASE.transpose(2, 3, 1, 0))


def test_data_parallel_prefixes_and_wrapping_dictionaries_are_taken_off(tmp_path):
    arrays = {f"module.{name}": array for name, array in network.state_dict().items()}
    inner = writers.torch_pickle(arrays)[:-1]
    pickled = (
        b"\x80\x02}(X\x05\x00\x00\x00epochK\x07X\x0a\x00\x00\x00state_dict" + inner[2:] + b"u."
    )
    path = writers.write_torch(tmp_path / "net.pt", arrays, pickled)
    assert list(weights.read(path).kernels) == network.SPATIAL


def test_an_optimizers_state_is_no_kernel(tmp_path):
    arrays = network.state_dict()
    inner = writers.torch_pickle(arrays)[2:-1]
    pickled = (
        b"\x80\x02}(X\x05\x00\x00\x00model" + inner + b"X\x09\x00\x00\x00optimizer" + inner + b"u."
    )
    found = weights.read(writers.write_torch(tmp_path / "net.pt", arrays, pickled))
    assert list(found.kernels) == network.SPATIAL
    assert found.skipped["optimizer"] == f"optimizer state: {len(arrays)} arrays"


def test_a_moving_average_is_taken_only_where_nothing_else_is(tmp_path):
    arrays = network.state_dict()
    inner = writers.torch_pickle(arrays)[2:-1]
    both = (
        b"\x80\x02}(X\x05\x00\x00\x00model" + inner + b"X\x09\x00\x00\x00model_ema" + inner + b"u."
    )
    found = weights.read(writers.write_torch(tmp_path / "both.pt", arrays, both))
    assert "moving average" in found.skipped["model_ema"]
    alone = b"\x80\x02}(X\x09\x00\x00\x00model_ema" + inner + b"u."
    found = weights.read(writers.write_torch(tmp_path / "alone.pt", arrays, alone))
    assert list(found.kernels) == network.SPATIAL
    assert "moving average" in found.notes[0]


def test_a_plain_pickle_of_numpy_arrays_is_read(tmp_path):
    path = tmp_path / "net.pkl"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"conv.weight": _BASE.astype(np.float32)}, protocol))
        kernel = weights.read(path).kernels["conv"]
        np.testing.assert_array_equal(kernel.weight, _BASE.transpose(2, 3, 1, 0))


def test_weight_normalisation_is_undone(tmp_path):
    length = np.array([2, 3], np.float32).reshape(2, 1, 1, 1)
    direction = (_BASE + 1).astype(np.float32)
    arrays = {"conv.weight_g": length, "conv.weight_v": direction}
    found = weights.read(writers.write_torch(tmp_path / "net.pt", arrays))
    norms = np.linalg.norm(direction.reshape(2, -1), axis=1)
    wanted = (direction * (length.reshape(-1) / norms).reshape(2, 1, 1, 1)).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(found.kernels["conv"].weight, wanted, rtol=1e-6)


class _Runs:
    """Unpickling this would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _forbidden(flag):
    return {
        "posix.system": _Runs(os.system, f"touch {flag}"),
        "builtins.eval": _Runs(eval, f"open({str(flag)!r}, 'w')"),
        "builtins.getattr": _Runs(getattr, "text", "format"),
        "pickle.loads": _Runs(pickle.loads, b"."),
        "importlib.import_module": _Runs(__import__("importlib").import_module, "this"),
        "kernsym_jax.weights.read.read": _Runs(weights.read, str(flag)),
    }


@pytest.mark.parametrize("name", list(_forbidden("flag")))
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", ["zip", "legacy", "plain"])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, name, protocol, container):
    flag = tmp_path / "ran"
    content = pickle.dumps({"weights": _forbidden(flag)[name]}, protocol)
    # Python 2's names are what old protocols write.
    wanted = name.replace("builtins", "(builtins|__builtin__)").replace(".", r"\.")
    path = tmp_path / "net.pt"
    if container == "zip":
        writers.write_torch(path, {}, content)
    elif container == "legacy":
        writers.write_torch_legacy(path, {}, content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"net\.pt: refused: .*{wanted}"):
        weights.read(path)
    assert not flag.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81}X\x04\x00\x00\x00truecos\nsystem\nsb.",
    ],
)
def test_every_way_to_name_a_global_is_refused(tmp_path, program):
    path = writers.write_torch(tmp_path / "net.pt", {}, program)
    with pytest.raises(ValueError, match=r"refused: .*os\.system"):
        weights.read(path)


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "changes torch._utils"),
        (b"\x80\x02K\x01)R.", "calls an object of type int"),
        (b"\x80\x02\x82\x01.", "the operation EXT1"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytes made of something else"),
        # Hashing a tuple of tuples of tuples would visit every path through it.
        (b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"K\x01u.", "type tuple as a key"),
        (b"\x80\x02" + b"]" * 70 + b"a" * 69 + b".", "nested more than"),
    ],
)
def test_odd_programs_are_refused(tmp_path, program, word):
    path = writers.write_torch(tmp_path / "net.pt", {}, program)
    with pytest.raises(ValueError, match=word):
        weights.read(path)


def test_a_far_place_in_the_memo_takes_no_memory(tmp_path):
    path = writers.write_torch(tmp_path / "net.pt", {}, b"\x80\x02]r\xff\xff\xff\xff.")
    assert weights.read(path).kernels == {}


def test_a_list_that_doubles_forty_times_does_not_unfold(tmp_path):
    nested = b"\x80\x02]q\x00"
    for index in range(40):
        nested += b"](h" + bytes([index]) + b"h" + bytes([index]) + b"eq" + bytes([index + 1])
    path = writers.write_torch(tmp_path / "net.pt", {}, nested + b".")
    assert weights.read(path).kernels == {}


@pytest.mark.parametrize(
    ("size", "strides", "offset"),
    [
        ((2, 3, 3, 3), (27, 9, 3, 1), 1),
        ((2, 3, 3, 4), (27, 9, 3, 1), 0),
        ((99, 1, 1, 1), (1, 1, 1, 1), 0),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, size, strides, offset):
    array = _BASE.astype(np.float32)
    program = writers.torch_pickle({"w": array})
    old = b"QK\x00(" + b"".join(b"J%c\0\0\0" % n for n in array.shape) + b"t("
    new = b"QK%c(" % offset + b"".join(b"J%c\0\0\0" % n for n in size) + b"t("
    assert program.count(old) == 1
    program = program.replace(old, new)
    path = writers.write_torch(tmp_path / "net.pt", {"w": array}, program)
    with pytest.raises(ValueError, match="does not fit its storage"):
        weights.read(path)


def test_tensors_of_unknown_types_beside_a_kernel_are_listed(fixtures, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(gzip.decompress((fixtures / "unknown_types.pt.gz").read_bytes()))
    found = weights.read(path)
    wanted = network.values("conv.weight", (4, 3, 3, 3)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.kernels["conv"].weight, wanted)
    for name in make_fixtures.UNKNOWN_TYPES:
        assert "not run: 1 object" in found.skipped[f"a tensor of torch.{name}"]


def test_a_file_of_one_tensor_alone_is_read(fixtures, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(gzip.decompress((fixtures / "tensor.pt.gz").read_bytes()))
    assert list(weights.read(path, layout="OIHW").kernels) == ["array"]


def test_a_storage_of_another_size_than_its_tensors_say_is_refused(tmp_path):
    arrays = {"conv.weight": _BASE.astype(np.float32)}
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", writers.torch_pickle(arrays))
        archive.writestr("net/data/0", arrays["conv.weight"].tobytes()[:-4])
    with pytest.raises(ValueError, match="212 bytes for 54"):
        weights.read(path)


def test_a_changed_byte_of_a_weight_is_noticed(tmp_path):
    path = writers.write_torch(tmp_path / "net.pt", network.state_dict())
    content = bytearray(path.read_bytes())
    place = content.find(network.state_dict()["layer1.weight"].tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        weights.read(path)


def test_real_checkpoints_are_read_in_full(shared):
    for depth, convolutions in ((20, 19), (32, 31), (44, 43), (56, 55)):
        found = weights.read(shared / "weights" / f"cifar_resnet{depth}.th")
        assert len(found.kernels) == convolutions
        assert list(found.kernels)[:2] == ["conv1", "layer1.0.conv1"]
    found = weights.read(shared / "weights" / "captum_cifar_lenet.pt")
    assert [kernel.shape for kernel in found.kernels.values()] == [(5, 5, 3, 6), (5, 5, 6, 16)]


@pytest.mark.parametrize("kind", ["torch.nn.modules.conv", "__torch__.torch.nn.modules.conv"])
def test_a_convolution_that_keeps_no_settings_is_told_by_its_class(kind):
    records = {}
    for name in ("ConvTranspose2d", "Conv2d"):
        records[name] = Inert(f"{kind}.{name}")
        records[name].set_state({"weight": StoredArray.of(np.ones((4, 4, 3, 3), np.float32))})
    found = containers.leaves(records)
    told = {
        path[0].split(".")[0]: found.calls.get(id(array)) for path, array in found.arrays.items()
    }
    assert told == {"ConvTranspose2d": {"transposed": True}, "Conv2d": None}


def test_a_quantised_convolution_keeps_its_settings_in_a_row():
    weight, bias = (StoredArray.of(np.ones(shape, np.float32)) for shape in ((4, 4, 3, 3), (4,)))
    settings = (4, 4, (3, 3), (2, 1), (1, 1), (1, 1), True, (0, 0), 1, "zeros")
    record = Inert("__torch__.torch.ao.nn.quantized.modules.conv.ConvTranspose2d")
    record.set_state((*settings, weight, bias, 0.5, 0, False))
    (facts,) = containers.leaves({"up": record}).calls.values()
    assert (facts["transposed"], facts["stride"], facts["groups"]) == (True, (2, 1), 1)
    assert facts["padding"] == ((1, 1), (1, 1))
