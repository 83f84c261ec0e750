"""The network of network.py in every format that can be written without its framework."""

import functools
import gzip
import json
import pathlib
import pickle
import re
import struct
import zipfile

import h5py
import ml_dtypes
import numpy as np
import onnx
import safetensors.numpy
from flax import serialization
from network import BIAS, KERNELS, NORM, PADS, STRIDES, flax_variables, state_dict
from onnx import helper, numpy_helper

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
"""Files that other frameworks have made, see make_fixtures.py."""

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


def torch_pickle(arrays):
    """The pickle of a state dict as ``torch.save`` writes it, assembled by hand."""

    def text(value):
        content = value.encode()
        return b"X" + struct.pack("<I", len(content)) + content

    def numbers(sequence):
        return b"(" + b"".join(b"J" + struct.pack("<i", each) for each in sequence) + b"t"

    program = b"\x80\x02ccollections\nOrderedDict\n)R("
    for key, (name, array) in enumerate(arrays.items()):
        storage = _STORAGES[array.dtype.name].encode()
        strides = [stride // array.itemsize for stride in array.strides]
        program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        program += text("storage") + b"ctorch\n" + storage + b"\n" + text(str(key)) + text("cpu")
        program += b"J" + struct.pack("<i", array.size) + b"tQK\x00"
        program += numbers(array.shape) + numbers(strides)
        program += b"\x89ccollections\nOrderedDict\n)RtR"
    return program + b"u."


def write_torch(path, arrays, pickled=None):
    """A ``torch.save`` file of today: a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", torch_pickle(arrays) if pickled is None else pickled)
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"net/data/{key}", array.tobytes())
        archive.writestr("net/version", "3\n")
    return path


def write_torch_legacy(path, arrays, pickled=None):
    """A ``torch.save`` file of the years before 2020: pickles and then the values."""
    content = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    content += pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    content += torch_pickle(arrays) if pickled is None else pickled
    content += pickle.dumps([str(key) for key in range(len(arrays))], 2)
    for array in arrays.values():
        content += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(content)
    return path


def write_onnx(path, external=None):
    """An ONNX model with a BatchNormalization after the first convolution."""
    tensors, nodes, before = [], [], "image"
    for name, kernel in KERNELS.items():
        tensors.append(
            numpy_helper.from_array(kernel.transpose(3, 2, 0, 1).copy(), f"{name}.weight")
        )
        inputs = [before, f"{name}.weight"]
        if name == "layer10":
            tensors.append(numpy_helper.from_array(BIAS, "layer10.bias"))
            inputs.append("layer10.bias")
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [f"{name}_out"],
                name=name,
                strides=[STRIDES[name]] * 2,
                pads=[PADS[name]] * 4,
                group=4 if name == "layer2" else 1,
            )
        )
        before = f"{name}_out"
        if name == "layer1":
            tensors += [numpy_helper.from_array(v, f"bn.{k}") for k, v in NORM.items()]
            nodes.append(
                helper.make_node("BatchNormalization", [before, *(f"bn.{k}" for k in NORM)], ["bn"])
            )
            before = "bn"
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 16, 16])
    result = helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "net", [image], [result], tensors))
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0}
    onnx.save(model, path, **(options if external else {}))
    return path


def write_safetensors(path, arrays=None):
    """A safetensors file."""
    safetensors.numpy.save_file(state_dict() if arrays is None else arrays, path)
    return path


def write_safetensors_sharded(folder):
    """Two safetensors files and their index."""
    arrays = state_dict()
    names = list(arrays)
    shards = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, members in shards.items():
        write_safetensors(folder / file, {name: arrays[name] for name in members})
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def write_npz(path, compressed=False):
    """An npz file with PyTorch's names."""
    (np.savez_compressed if compressed else np.savez)(path, **state_dict())
    return path


def write_msgpack(path, tree=None):
    """A Flax msgpack file."""
    path.write_bytes(serialization.to_bytes(flax_variables() if tree is None else tree))
    return path


def write_keras_hdf5(path, compression=None):
    """The weights of a Keras 2 model: names, but no configuration."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in KERNELS]
        for name, kernel in KERNELS.items():
            depthwise = name == "layer2"
            leaf = f"{name}/{'depthwise_kernel' if depthwise else 'kernel'}:0"
            group = file.create_group(name)
            group.attrs["weight_names"] = [leaf.encode()]
            stored = kernel.reshape(3, 3, 4, 1) if depthwise else kernel
            group.create_dataset(leaf, data=stored, compression=compression)
    return path


def write_darknet(folder):
    """Weights of Darknet with their configuration, by its documented layout; no library writes it.

    The network is that of network.py: Darknet numbers its layers.
    """
    config = ["[net]", "channels=3", "height=16", "width=16"]
    numbers = [np.array([0, 2, 0], "<i4").tobytes(), np.array([77], "<i8").tobytes()]
    for name, kernel in KERNELS.items():
        size, _, _, filters = kernel.shape
        config += ["", "[convolutional]", f"filters={filters}", f"size={size}"]
        config += [f"stride={STRIDES[name]}", f"padding={PADS[name]}", "activation=linear"]
        config += ["groups=4"] if name == "layer2" else []
        if name == "layer1":
            config += ["batch_normalize=1"]
            order = ("bias", "scale", "mean", "var")
            numbers += [NORM[each].tobytes() for each in order]
        else:
            bias = BIAS if name == "layer10" else np.zeros(filters, np.float32)
            numbers.append(bias.tobytes())
        numbers.append(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)).tobytes())
    (folder / "net.cfg").write_text("\n".join(config))
    path = folder / "net.weights"
    path.write_bytes(b"".join(numbers))
    return path


def unpack_fixture(name, folder):
    """A file or a folder that another framework has written, out of its archive."""
    if (FIXTURES / f"{name}.zip").exists():
        with zipfile.ZipFile(FIXTURES / f"{name}.zip") as archive:
            archive.extractall(folder / name)
    else:
        content = gzip.decompress((FIXTURES / f"{name}.gz").read_bytes())
        (folder / name).write_bytes(content)
    return folder / name


def write_orbax(folder, tree=None):
    """An orbax checkpoint of one tree."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, flax_variables() if tree is None else tree)
    return folder


def flatbuffer(table, identifier, first=0):
    """A FlatBuffer.

    Args:
      table: field -> a number as (its type for `struct`, number), a string, an array, a table or a
        list of tables. A string of thousands of characters is stored once, behind all else.
      identifier: the four bytes that name the schema.
      first: where the table lies, a multiple of 8; 0 for as early as can be.
    """
    content = bytearray(4) + identifier
    late: dict[str, list[int]] = {}

    def point(place, value):
        if isinstance(value, str) and len(value) > 1000:
            late.setdefault(value, []).append(place)
            return
        content[place : place + 4] = struct.pack("<I", put(value) - place)

    def put(value):
        content.extend(bytes(-len(content) % 8))
        start = len(content)
        if isinstance(value, dict):
            fields = max(value, default=-1) + 1
            offsets = {field: 4 + 4 * index for index, field in enumerate(value)}
            size = 4 + 2 * fields
            content.extend(struct.pack("<HH", size, 4 + 4 * len(value)))
            content.extend(struct.pack(f"<{fields}H", *(offsets.get(f, 0) for f in range(fields))))
            content.extend(bytes(-size % 4))
            start = len(content)
            content.extend(struct.pack("<i", size + -size % 4) + bytes(4 * len(value)))
            for field, item in value.items():
                place = start + offsets[field]
                if isinstance(item, tuple):
                    struct.pack_into(item[0], content, place, item[1])
                else:
                    point(place, item)
        elif isinstance(value, list):
            content.extend(struct.pack("<I", len(value)) + bytes(4 * len(value)))
            for index, item in enumerate(value):
                point(start + 4 + 4 * index, item)
        elif isinstance(value, str):
            content.extend(struct.pack("<I", len(value.encode())) + value.encode() + b"\0")
        else:
            content.extend(struct.pack("<I", len(value)) + value.tobytes())
        return start

    head = 4 + 2 * (max(table) + 1)
    content.extend(bytes(max(0, first - head - -head % 4 - len(content))))
    point(0, table)
    for text, places in late.items():
        start = put(text)
        for place in places:
            content[place : place + 4] = struct.pack("<I", start - place)
    return bytes(content)


def sparse_levels(array, order, blocks, csr, kind=3):
    """An array as TensorFlow Lite keeps it if most of it is 0.

    Args:
      array: the whole array.
      order: of its axes, and then of the axes inside the blocks, which are numbered after them.
      blocks: axis -> the size of the blocks that it is cut into.
      csr: for each level whether it lists its indices, instead of having them all.
      kind: 1, 2 or 3: the indices are int32, uint16 or uint8.

    Returns:
      The values that are stored, and the table ``SparsityParameters``.
    """
    dtype = {1: "<i4", 2: "<u2", 3: "u1"}[kind]
    sizes, outer, inner = [], [], {}
    for axis, size in enumerate(array.shape):
        outer.append(len(sizes))
        sizes.append(size // blocks.get(axis, 1))
        if axis in blocks:
            inner[axis] = len(sizes)
            sizes.append(blocks[axis])
    places = outer + [inner[axis] for axis in blocks]
    nodes = [array.reshape(sizes).transpose([places[axis] for axis in order])]
    levels = []
    for lists in csr:
        segments, indices, below = [0], [], []
        size = nodes[0].shape[0] if nodes else 0
        for node in nodes:
            kept = [index for index, part in enumerate(node) if not lists or part.any()]
            below.extend(node[index] for index in kept)
            indices.extend(kept)
            segments.append(len(indices))
        nodes = below
        level = {0: ("<b", 0), 1: ("<i", size)}
        if lists:
            vectors = [{0: np.array(numbers, dtype)} for numbers in (segments, indices)]
            level = {0: ("<b", 1), 2: ("<B", kind), 3: vectors[0], 4: ("<B", kind), 5: vectors[1]}
        levels.append(level)
    sparsity = {0: np.array(order, "<i4"), 1: np.array(list(blocks), "<i4"), 2: levels}
    return np.array(nodes, array.dtype), sparsity


def write_sparse_tflite(path, values, sparsity, shape, quantization=None, first=0):
    """A TensorFlow Lite model of one convolution whose kernel is a sparse tensor."""
    types = {"float32": 0, "float16": 1, "int8": 9}
    ints = functools.partial(np.array, dtype="<i4")
    stored = {
        0: ints(shape),
        1: ("<b", types[values.dtype.name]),
        2: ("<I", 1),
        3: "kernel",
        6: sparsity,
    }
    if quantization is not None:
        stored[4] = quantization
    tensors = [{3: "image"}, stored, {3: "whole"}, {3: "numbers"}, {3: "result"}]
    codes = (124, 6, 3)
    steps = (
        ([1], [2], {}),
        ([2], [3], {}),
        ([0, 3], [4], {0: ("<b", 1), 1: ("<i", 2), 2: ("<i", 1)}),
    )
    operators = [
        {0: ("<I", code), 1: ints(inputs), 2: ints(outputs), 4: options}
        for code, (inputs, outputs, options) in enumerate(steps)
    ]
    model = {
        0: ("<I", 3),
        1: [{0: ("<b", code), 3: ("<i", code)} for code in codes],
        2: [{0: tensors, 3: operators}],
        4: [{}, {0: np.frombuffer(values.tobytes(), np.uint8)}],
    }
    path.write_bytes(flatbuffer(model, b"TFL3", first))
    return path


def write_onnx_integers(path, integers, zero=None, scale=None):
    """An ONNX model of one ConvInteger, as quantisation of what runs makes it.

    Args:
      path: where to write it.
      integers: the kernel, (out, in, kh, kw).
      zero: the integers that stand for 0; None leaves the input out.
      scale: what the integers are multiplied by, or None for the result without its scale.
    """
    arrays = {"integers": integers, "bias": np.ones((1, len(integers), 1, 1), np.int32)}
    arrays |= {} if zero is None else {"zero": zero}
    arrays |= {} if scale is None else {"scale": scale}
    inputs = ["whole", "integers", "image_zero", *(["zero"] if zero is not None else [])]
    nodes = [
        helper.make_node(
            "DynamicQuantizeLinear", ["image"], ["whole", "image_scale", "image_zero"]
        ),
        helper.make_node("ConvInteger", inputs, ["sums"], name="first"),
        helper.make_node("Add", ["sums", "bias"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["cast"], to=onnx.TensorProto.FLOAT),
    ]
    if scale is not None:
        nodes.append(helper.make_node("Mul", ["image_scale", "scale"], ["scales"]))
        nodes.append(helper.make_node("Mul", ["cast", "scales"], ["result"]))
    names = ("image", nodes[-1].output[0])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)), path)
    return path


def write_all(folder):
    """Every format at once, with what other frameworks have written: name -> path."""
    folder = pathlib.Path(folder)
    sharded = folder / "sharded"
    sharded.mkdir()
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in state_dict().items()}
    written = {
        "npz": write_npz(folder / "net.npz"),
        "npz compressed": write_npz(folder / "small.npz", compressed=True),
        "safetensors": write_safetensors(folder / "net.safetensors"),
        "safetensors bfloat16": write_safetensors(folder / "half.safetensors", half),
        "safetensors sharded": write_safetensors_sharded(sharded).parent,
        "torch": write_torch(folder / "net.pt", state_dict()),
        "torch legacy": write_torch_legacy(folder / "net.th", state_dict()),
        "onnx": write_onnx(folder / "net.onnx"),
        "msgpack": write_msgpack(folder / "net.msgpack"),
        "keras hdf5": write_keras_hdf5(folder / "net.h5"),
        "orbax": write_orbax(folder / "orbax"),
        "tflite": FIXTURES / "net.tflite",
        "torchscript": FIXTURES / "script.pt",
    }
    (folder / "darknet").mkdir()
    written["darknet"] = write_darknet(folder / "darknet").parent
    names = {
        "torch.export": "exported.pt2",
        "torch.export of old": "exported_old.pt2",
        "torch distributed": "distributed",
        "tensorflow": "tf2",
        "tensorflow 1": "tf1",
        "saved model": "saved",
        "equinox": "tree.eqx",
        "equinox with settings": "settings.eqx",
    }
    written |= {format: unpack_fixture(name, folder) for format, name in names.items()}
    for packed in sorted(FIXTURES.glob("net.*.gz")):
        path = folder / f"keras3-{packed.name.removesuffix('.gz')}"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        written[f"keras 3 {path.name.removeprefix('keras3-net.')}"] = path
    return written


def write_cifar_resnet20(path):
    """A CIFAR ResNet-20 that nobody has trained, under the names of its PyTorch state dict."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from kernsym_jax import models

    model = models.create("cifar_resnet20")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    last = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    arrays = {}
    for collection in ("params", "batch_stats"):
        for (*layer, name), like in traverse_util.flatten_dict(shapes[collection]).items():
            array = np.full(like.shape, name in ("scale", "var"), np.float32)
            if name == "kernel":
                deviation = np.sqrt(2 / np.prod(like.shape[:-1]))
                array = rng.normal(0, deviation, like.shape).astype(np.float32)
                array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
            place = re.sub(r"_(\d)", r".\1", ".".join(layer))
            arrays[f"{place}.{last.get(name, name)}"] = array
    return write_torch(path, arrays)


def write_image_archive(path, *, images=1, size=32):
    """An archive of noise images in ten class folders, as ``folder:`` sources take it."""
    import io
    import tarfile

    from PIL import Image

    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for split in ("train", "test"):
            for label in "abcdefghij":
                for number in range(images):
                    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                    content = io.BytesIO()
                    Image.fromarray(pixels).save(content, "PNG")
                    member = tarfile.TarInfo(f"{split}/{label}/{number}.png")
                    member.size = content.tell()
                    content.seek(0)
                    archive.addfile(member, content)
    return path
