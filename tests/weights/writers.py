"""The network of network.py in every format that can be written without its framework."""

import gzip
import json
import pathlib
import pickle
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


def write_orbax(folder, tree=None):
    """An orbax checkpoint of one tree."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, flax_variables() if tree is None else tree)
    return folder


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
    for packed in sorted(FIXTURES.glob("net.*.gz")):
        path = folder / f"keras3-{packed.name.removesuffix('.gz')}"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        written[f"keras 3 {path.name.removeprefix('keras3-net.')}"] = path
    return written
