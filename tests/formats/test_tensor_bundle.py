"""TensorFlow's checkpoints: real ones, tables written by hand, and hostile ones."""

import contextlib
import shutil
import struct

import damage
import make_fixtures
import network
import numpy as np
import pytest

from kernsym_jax import weights
from kernsym_jax.formats import tensor_bundle, tensorflow_file

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def varint(number):
    made = b""
    while number >= 0x80:
        made += bytes([number & 0x7F | 0x80])
        number >>= 7
    return made + bytes([number])


def field(number, value):
    """A field of a protocol buffer: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(shape, offset=0, size=None, dtype=1, shard=0):
    dims = b"".join(field(2, field(1, n)) for n in shape)
    size = 4 * int(np.prod(shape)) if size is None else size
    return field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)


def block(pairs, pack=None):
    """A block of a table, with its compression and checksum; later keys share what they can."""
    content, before = b"", b""
    for key, value in pairs:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        before = key
    content += struct.pack("<II", 0, 1)
    return (pack(content) + b"\1" if pack else content + b"\0") + bytes(4)


def table(path, pairs, pack=None):
    """Writes the index of a checkpoint."""
    data = block([(b"", field(1, 1)), *pairs], pack)
    handle = varint(0) + varint(len(data) - 5)
    index = block([(b"\xff", handle)])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    path.write_bytes(data + index + footer.ljust(40, b"\0") + MAGIC)
    return path


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of float32 arrays; gives its index."""

    def write(arrays, pack=None, **entries):
        content = b"".join(array.tobytes() for array in arrays.values())
        (tmp_path / "net.data-00000-of-00001").write_bytes(content)
        pairs, offset = [], 0
        for name, array in sorted(arrays.items()):
            pairs.append((name.encode(), entry(array.shape, offset)))
            offset += array.nbytes
        pairs += [(name.encode(), value) for name, value in entries.items()]
        return table(tmp_path / "net.index", sorted(pairs), pack)

    return write


def literals(content):
    """Snappy's format without any copy."""
    parts = [content[start : start + 60] for start in range(0, len(content), 60)]
    return varint(len(content)) + b"".join(bytes([len(p) - 1 << 2]) + p for p in parts)


@pytest.mark.parametrize(
    ("name", "prefix"), [("tensorflow", ""), ("saved model", ""), ("tensorflow 1", "Net/")]
)
def test_real_checkpoints_have_the_networks_kernels(files, name, prefix):
    found = weights.read(files[name])
    assert found.format == "TensorFlow"
    by_layer = {layer.rsplit("/", 1)[-1]: kernel for layer, kernel in found.kernels.items()}
    assert list(by_layer) == network.SPATIAL or prefix
    assert set(by_layer) == set(network.SPATIAL)
    for layer, kernel in by_layer.items():
        np.testing.assert_array_equal(kernel.weight, network.KERNELS[layer])
    assert (by_layer["layer2"].kind, by_layer["layer2"].groups) == ("depthwise", 4)


def test_optimizers_and_averages_are_left_out_with_their_reasons(files):
    assert weights.read(files["tensorflow"]).skipped["optimizer (optimizer state)"] == (
        "optimizer state: 18 arrays"
    )
    skipped = weights.read(files["tensorflow 1"]).skipped
    assert skipped["Net/layer1/weights/Momentum"] == "optimizer state: 1 array"
    assert skipped["Net/layer1/weights/ExponentialMovingAverage"] == "moving average: 1 array"


def test_layers_have_the_names_that_keras_gave_them(files):
    layers = ["layer1", "layer2", "inner/layer10"]
    for name in ("tensorflow", "saved model", "keras 3 keras"):
        assert list(weights.read(files[name]).kernels) == layers


def test_a_checkpoint_is_found_by_any_of_its_names(files, tmp_path):
    wanted = weights.read(files["tensorflow"]).kernels
    for end in ("net-1", "net-1.index", "net-1.data-00000-of-00001"):
        assert set(weights.read(files["tensorflow"] / end).kernels) == set(wanted)
    for number in (1, 2):
        for file in files["tensorflow"].glob("net-1.*"):
            shutil.copy(file, tmp_path / file.name.replace("net-1", f"net-{number}"))
    with pytest.raises(ValueError, match="a folder with no checkpoint"):
        weights.read(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/far/away/net-2"\n')
    for place in (tmp_path, tmp_path / "checkpoint"):
        assert tensor_bundle.index_of(place).name == "net-2.index"
        assert set(weights.read(place).kernels) == set(wanted)


def test_names_in_the_tree_of_objects_lose_its_suffix(save):
    kernel = np.arange(216, dtype=np.float32).reshape(3, 3, 3, 8)
    attributes = "/.ATTRIBUTES/VARIABLE_VALUE"
    slot = f"net/conv/kernel/.OPTIMIZER_SLOT/opt/m{attributes}"
    path = save({f"net/conv/kernel{attributes}": kernel, slot: kernel})
    found = weights.read(path)
    assert list(found.kernels) == ["net/conv"]
    np.testing.assert_array_equal(found.kernels["net/conv"].weight, kernel)
    assert list(found.skipped.values()) == ["optimizer state: 1 array"]


def test_the_length_of_a_bias_tells_depthwise_kernels_with_a_multiplier(save):
    kernels = {"dw": (3, 3, 4, 2), "one": (3, 3, 5, 1), "up": (3, 3, 4, 6), "last": (3, 3, 6, 1)}
    kernels = {name: network.values(name, shape) for name, shape in kernels.items()}
    biases = {"dw": 8, "one": 5, "up": 4, "last": 1}
    arrays = {f"{name}/kernel": kernel for name, kernel in kernels.items()}
    arrays |= {f"{name}/bias": np.zeros(size, np.float32) for name, size in biases.items()}
    found = weights.read(save(dict(sorted(arrays.items())))).kernels
    told = {name: (kernel.kind, kernel.shape) for name, kernel in found.items()}
    assert told == {
        "dw": ("depthwise", (3, 3, 1, 8)),
        "one": ("depthwise", (3, 3, 1, 5)),
        "up": ("transposed", (3, 3, 6, 4)),
        "last": ("conv", (3, 3, 6, 1)),
    }
    np.testing.assert_array_equal(found["dw"].weight, kernels["dw"].reshape(3, 3, 1, 8))


def test_blocks_packed_by_snappy_are_read(save):
    arrays = {f"net/conv{n}/kernel": np.full((3, 3, 2, 4), n, np.float32) for n in range(9)}
    found = weights.read(save(arrays, literals))
    assert len(found.kernels) == 9
    assert found.kernels["net/conv7"].weight.max() == 7


@pytest.mark.parametrize(
    ("packed", "wanted"),
    [
        (b"\x05\x10abcde", b"abcde"),
        # "ab", then ten bytes from two back: by a copy of one byte and by one of two.
        (b"\x0c\x04ab" + bytes([0b000_110_01, 2]), b"ab" * 6),
        (b"\x0c\x04ab" + bytes([9 << 2 | 2, 2, 0]), b"ab" * 6),
        (b"\x3d\xf0\x3c" + b"x" * 61, b"x" * 61),
    ],
)
def test_snappys_literals_and_copies(packed, wanted):
    assert tensorflow_file.unpack_snappy(packed, 1000) == wanted


@pytest.mark.parametrize(
    "packed",
    [
        b"\x05\x10abcd",
        b"\x0c\x04ab" + bytes([0b000_110_01, 3]),
        b"\x0c\x04ab" + bytes([0b000_110_01, 0]),
        b"\x03\x04ab" + bytes([0b000_110_01, 2]),
        b"\xff\xff\xff\xff\x0f\x04ab",
        b"\x0c\x04ab",
        b"\xff",
    ],
)
def test_damaged_blocks_are_refused(packed):
    with pytest.raises(ValueError, match=r"block|cut"):
        tensorflow_file.unpack_snappy(packed, 1000)


@pytest.mark.usefixtures("within_a_gigabyte")
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (entry((3, 3, 3, 8), size=4), "has 4 bytes for"),
        (entry((3, 3, 3, 8), offset=1 << 40), "cut or damaged"),
        (entry((1 << 40, 1 << 40, 3, 3), size=864), "has 864 bytes for"),
        (entry(((1 << 63) - 1,), size=864), "of shape"),
        (entry((3,) * 40, size=864), "cannot have the shape"),
        (entry((3, 3, 3, 8), shard=1), "values in file 1 of 1"),
        (b"\x12\xff\xff\xff\xff\x0f", "cut or damaged"),
        (field(1, b"text"), "a field of another type"),
    ],
)
def test_entries_that_claim_too_much_are_refused(save, value, says):
    path = save({"conv/kernel": np.ones((3, 3, 3, 8), np.float32)}, bad=value)
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match=says):
        weights.read(path)


@pytest.mark.usefixtures("within_a_gigabyte")
def test_a_long_key_that_many_entries_share_is_refused(tmp_path):
    key = b"a" * 100_000
    path = table(tmp_path / "net.index", [(key + bytes([n]), entry((1,))) for n in range(200)])
    (tmp_path / "net.data-00000-of-00001").write_bytes(bytes(4))
    assert damage.fault(path) is None
    with pytest.raises(ValueError, match="beyond its block"):
        weights.read(path)


def test_objects_that_hold_one_another_end(save):
    child = field(1, field(1, 0) + field(2, b"again"))
    attribute = field(2, field(1, b"VARIABLE_VALUE") + field(3, b"k/.ATTRIBUTES/VARIABLE_VALUE"))
    graph = field(1, child + attribute)
    text = varint(len(graph)) + bytes(4) + graph
    kernel = np.ones((3, 3, 3, 8), np.float32)
    path = save({"k/.ATTRIBUTES/VARIABLE_VALUE": kernel})
    values = path.with_name("net.data-00000-of-00001")
    values.write_bytes(values.read_bytes() + text)
    pairs = [
        (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry((), kernel.nbytes, len(text), 7)),
        (b"k/.ATTRIBUTES/VARIABLE_VALUE", entry(kernel.shape)),
    ]
    assert len(tensor_bundle.read_bundle(table(path, pairs)).arrays) == 1


def in_objects(save, arrays, paths):
    """Writes a checkpoint whose tree of objects leads by `paths` to variables of these names."""
    suffix = b"/.ATTRIBUTES/VARIABLE_VALUE"
    nodes, tree = [b""], {(): 0}
    for path, name in paths.items():
        parts = tuple(path.split("/"))
        for end in range(1, len(parts) + 1):
            if parts[:end] not in tree:
                tree[parts[:end]] = len(nodes)
                nodes.append(b"")
                child = field(1, tree[parts[:end]]) + field(2, parts[end - 1].encode())
                nodes[tree[parts[: end - 1]]] += field(1, child)
        nodes[tree[parts]] += field(2, field(2, name.encode()) + field(3, path.encode() + suffix))
    graph = b"".join(field(1, node) for node in nodes)
    text = varint(len(graph)) + bytes(4) + graph
    stored = {f"{path}{suffix.decode()}": arrays[path] for path in sorted(paths)}
    path = save(stored)
    values = path.with_name("net.data-00000-of-00001")
    content = values.read_bytes()
    values.write_bytes(content + text)
    pairs = [(b"_CHECKPOINTABLE_OBJECT_GRAPH", entry((), len(content), len(text), 7))]
    offset = 0
    for name, array in stored.items():
        pairs.append((name.encode(), entry(array.shape, offset)))
        offset += array.nbytes
    return table(path, sorted(pairs))


def test_objects_of_keras_3_tell_transposed_and_depthwise_kernels(save):
    shapes = {
        "model/1/_kernel": (3, 3, 3, 8),
        "model/2/kernel": (3, 3, 8, 1),
        "model/3/_kernel": (3, 3, 8, 1),
        "model/4/_kernel": (5, 5, 1, 4),
        "model/5/kernel": (3, 3, 6, 4),
        "model/6/_kernel": (3, 3, 6, 1),
        "model/7/kernel": (4, 4, 2, 1),
        "model/7/bias": (2,),
    }
    layers = ["stem", "dw", "mask", "mix", "up", "out", "last"]
    names = {
        path: f"{layers[int(path.split('/')[1]) - 1]}/{path.rpartition('/')[2].strip('_')}"
        for path in shapes
    }
    arrays = {path: network.values(path, shape) for path, shape in shapes.items()}
    found = weights.read(in_objects(save, arrays, names))
    assert {name: (kernel.kind, kernel.shape) for name, kernel in found.kernels.items()} == {
        "stem": ("conv", (3, 3, 3, 8)),
        "dw": ("depthwise", (3, 3, 1, 8)),
        "mask": ("conv", (3, 3, 8, 1)),
        "mix": ("conv", (5, 5, 1, 4)),
        "up": ("transposed", (3, 3, 4, 6)),
        "out": ("conv", (3, 3, 6, 1)),
        "last": ("transposed", (4, 4, 1, 2)),
    }


def test_kernels_that_a_checkpoint_without_a_graph_leaves_open_are_named(save):
    shapes = {
        "net/stem/kernel": (3, 3, 3, 8),
        "net/same/kernel": (3, 3, 8, 8),
        "net/conv2d_2/kernel": (3, 3, 8, 8),
        "net/point/kernel": (1, 1, 8, 8),
        "net/mask/kernel": (3, 3, 8, 1),
        "net/last/kernel": (3, 3, 8, 1),
        "net/last/bias": (1,),
    }
    found = weights.read(save({name: network.values(name, s) for name, s in shapes.items()}))
    assert {kernel.kind for kernel in found.kernels.values()} == {"conv"}
    (note,) = found.notes
    assert note == (
        "read as ordinary convolutions, but may be transposed or depthwise: net/mask, net/same; "
        "the file does not say"
    )


def test_a_numbered_list_of_variables_is_named_layer_by_layer(save):
    shapes = {
        "variables/0": ("net/kernel", (3, 3, 3, 8)),
        "variables/1": ("net/bias", (8,)),
        "variables/2": ("net/kernel", (3, 3, 4, 8)),
        "variables/3": ("net/bias", (4,)),
        "variables/4": ("net/depthwise_kernel", (3, 3, 4, 1)),
    }
    arrays = {path: network.values(path, shape) for path, (_, shape) in shapes.items()}
    found = weights.read(
        in_objects(save, arrays, {path: name for path, (name, _) in shapes.items()})
    )
    assert {name: kernel.kind for name, kernel in found.kernels.items()} == {
        "variables/0": "conv",
        "variables/2": "transposed",
        "variables/4": "depthwise",
    }


def test_variables_in_parts_are_put_together(fixtures, tmp_path):
    shutil.unpack_archive(fixtures / "tf1_parts.zip", tmp_path)
    found = weights.read(tmp_path / "model.ckpt")
    assert set(found.kernels) == {"net/inputs", "net/outputs"}
    for name, shape in make_fixtures.PARTS.items():
        kernel = found.kernels[name.removesuffix("/weights")]
        np.testing.assert_array_equal(kernel.weight, network.values(name, shape))


def in_parts(save, parts, shape=(3, 3, 3, 8)):
    """A variable whose parts have places and shapes: (starts and lengths) -> shape."""
    numbers = [
        field(7, b"".join(field(1, field(1, a) + field(2, n)) for a, n in part)) for part in parts
    ]
    whole = entry(shape, size=0) + b"".join(numbers)
    stored = np.arange(np.prod(shape), dtype=np.float32)
    index = save({"zz": stored}, **{"net/kernel": whole})
    pairs = list(tensorflow_file.read_table(np.fromfile(index, np.uint8)))[1:]
    pairs += [(tensor_bundle.part_key("net/kernel", p), entry(s)) for p, s in parts.items()]
    return table(index, sorted(pairs))


def test_parts_fill_their_variable_or_it_is_refused(save):
    whole = tuple((0, n) for n in (3, 3, 3))
    halves = {(*whole, (0, 4)): (3, 3, 3, 4), (*whole, (4, 4)): (3, 3, 3, 4)}
    assert weights.read(in_parts(save, halves)).kernels["net"].shape == (3, 3, 3, 8)
    for parts, says in (
        ({(*whole, (0, 4)): (3, 3, 3, 4)}, "do not fill"),
        ({(*whole, (0, 4)): (3, 3, 3, 4), (*whole, (1, 4)): (3, 3, 3, 4)}, "do not fill"),
        ({(*whole, (0, 4)): (3, 3, 3, 4), (*whole, (5, 4)): (3, 3, 3, 4)}, "does not fit"),
        ({(*whole, (0, 8)): (3, 3, 3, 7)}, "of another shape"),
        ({whole: (3, 3, 3)}, "with other axes"),
    ):
        with pytest.raises(ValueError, match=says):
            weights.read(in_parts(save, parts)).kernels["net"].weight  # noqa: B018


def test_a_part_that_the_index_lacks_is_named(save):
    part = field(7, field(1, field(2, 8)))
    index = save({"zz": np.ones(3, np.float32)}, kernel=entry((8,), size=0) + part)
    with pytest.raises(ValueError, match="a part of 'kernel' that the index lacks"):
        weights.read(index)


def test_a_missing_file_of_values_is_named(save):
    path = save({"conv/kernel": np.ones((3, 3, 3, 8), np.float32)})
    path.with_name("net.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.data-00000-of-00001"):
        weights.read(path)


@pytest.fixture
def saved_model(fixtures, tmp_path):
    """Unpacks a SavedModel; gives its folder."""

    def unpack(name="graph"):
        shutil.unpack_archive(fixtures / f"{name}.zip", tmp_path)
        return tmp_path

    return unpack


@pytest.mark.parametrize(
    ("name", "dilated"),
    [("graph", (((0, 0), (0, 0)), (1, 1))), ("tf1_graph", (None, (2, 2)))],
)
def test_the_graph_of_a_saved_model_tells_what_reads_a_kernel(saved_model, name, dilated):
    found = weights.read(saved_model(name))
    facts = {
        layer.removeprefix("kernels/"): (k.kind, k.shape, k.stride, k.padding, k.dilation)
        for layer, k in found.kernels.items()
    }
    # The graph has its own order; in a second function, gradients are read by other operations.
    assert list(facts) == ["a", "b", "c", "d", "f", "e"]
    none = ((0, 0), (0, 0))
    assert facts == {
        "a": ("conv", (3, 3, 3, 4), (2, 2), ((1, 0), (0, 1)), (1, 1)),
        "b": ("transposed", (3, 3, 4, 4), (2, 2), "SAME", (1, 1)),
        "c": ("depthwise", (3, 3, 1, 8), (2, 2), none, (1, 1)),
        "d": ("conv", (3, 3, 8, 8), (1, 1), *dilated),
        "f": ("transposed", (3, 3, 1, 6), (4, 4), "SAME", (1, 1)),
        "e": ("conv", (5, 5, 1, 8), (1, 1), ((2, 2), (2, 1)), (1, 1)),
    }
    assert (found.order, found.first) == ("forward", next(iter(found.kernels)))
    stored = network.values("b", (3, 3, 4, 4))
    turned = next(k for layer, k in found.kernels.items() if layer[-1] == "b")
    np.testing.assert_array_equal(turned.weight, stored.swapaxes(2, 3))


def test_a_cut_graph_of_a_saved_model_is_refused(saved_model):
    folder = saved_model()
    graph = folder / "saved_model.pb"
    whole = graph.read_bytes()
    for place in np.random.default_rng(0).integers(1, len(whole), 20):
        graph.write_bytes(whole[:place])
        with pytest.raises(ValueError, match=r"\A[^\n]*(cut|damaged)[^\n]*\Z"):
            weights.read(folder, trusted=True)


def test_a_changed_graph_of_a_saved_model_raises_nothing_but_a_value_error(saved_model):
    folder = saved_model()
    graph = folder / "saved_model.pb"
    whole = graph.read_bytes()
    random = np.random.default_rng(1)
    read = 0
    for place in random.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(8)
        graph.write_bytes(changed)
        with contextlib.suppress(ValueError):
            assert len(weights.read(folder, trusted=True).kernels) == 6
            read += 1
    assert 0 < read < 60


def test_functions_that_call_one_another_end():
    def function(name, called):
        signature = field(1, name) + field(2, field(1, b"x"))
        node = field(1, b"call") + field(2, called) + field(3, b"x")
        return field(1, field(1, signature) + field(3, node) * 100)

    library = function(b"f", b"g") + function(b"g", b"f")
    bound = field(1, b"f") + field(2, field(2, 1))
    objects = field(1, b"") + field(2, bound)
    data = field(2, field(2, field(2, library)) + field(7, objects))
    assert tensorflow_file.read_graph(data).uses == {}
