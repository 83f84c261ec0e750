"""Small files that cost a careless reader seconds, gigabytes or its life: name -> a function.

Each takes an empty folder and returns the file or folder to read.
"""

import functools
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import onnx
import writers
from onnx import TensorProto, helper

W = np.arange(108, dtype="<f4").tobytes()


def _text(text):
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def _get(number):
    return b"j" + struct.pack("<I", number)


def _put(number):
    return b"r" + struct.pack("<I", number) + b"0"


def _tensor(shape=(4, 3, 3, 3), size=108):
    """The pickle of a tensor, without the frame around it."""
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    numbers = [b"(" + b"".join(b"J" + struct.pack("<i", n) for n in ns) + b"t"
               for ns in (shape, strides)]  # fmt: skip
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    storage += b"J" + struct.pack("<i", size) + b"tQ"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + b"".join(numbers) + tail


def _torch(path, program, storage=W):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("net/data/0", storage)
    return path


def torch_deep_names(folder):
    """Long names above many arrays."""
    inner = b"](" + _get(7) * 100_000 + b"e"
    for number in range(58):
        inner = b"}" + _text(f"{number:03d}" + "n" * 990) + inner + b"s"
    return _torch(folder / "net.pt", _tensor() + _put(7) + b"}" + _text("deep") + inner + b"s")


def torch_order_laughs(folder):
    """Lists of one list twice, 60 deep, where the names of storages belong."""
    import pickle

    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    laughs = b"\x80\x02]q\x00K\x01a"
    for number in range(60):
        laughs += b"](" + (b"h" + bytes([number])) * 2 + b"eq" + bytes([number + 1])
    path = folder / "net.pth"
    tree = b"\x80\x02}" + _text("w") + _tensor() + b"s."
    path.write_bytes(head + tree + laughs + b"]h<a." + struct.pack("<q", 108) + W)
    return path


def torch_subclasses_copy_their_state(folder):
    """Tensors of a subclass, each of which is given one large state."""
    state = b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(100_000)) + b"u"
    start = state + _put(1) + b"ctorch._tensor\n_rebuild_from_type_v2\n" + _put(2)
    start += b"ctorch._utils\n_rebuild_tensor_v2\n" + _put(4)
    start += b"ctorch.nn.parameter\nParameter\n" + _put(5)
    arguments = _tensor().partition(b"_rebuild_tensor_v2\n")[2].removesuffix(b"R")
    start += arguments + _put(3)
    call = _get(2) + b"(" + _get(4) + _get(5) + _get(3) + _get(1) + b"tR"
    tree = b"}" + _text("many") + b"](" + call * 5000 + b"es" + _text("w") + _tensor() + b"s"
    return _torch(folder / "net.pt", start + tree)


def tflite_strings_that_overlap(folder):
    """Layers by the thousand whose names are one string of a million characters."""
    ints, name, count = functools.partial(np.array, dtype="<i4"), "n" * 1_000_000, 2000
    kernel = {0: ints((4, 3, 3, 3)), 1: ("<b", 0), 2: ("<I", 1), 3: name}
    image, result = {0: ints((1, 9, 9, 3)), 3: "image"}, {0: ints((1, 9, 9, 4)), 3: name}
    options = {0: ("<b", 0), 1: ("<i", 1), 2: ("<i", 1)}
    convolutions = [
        {0: ("<I", 0), 1: ints([0, 1 + n]), 2: ints([1 + count + n]), 4: options}
        for n in range(count)
    ]
    graph = {0: [image, *[kernel] * count, *[result] * count], 3: convolutions}
    values = np.frombuffer(W, np.uint8)
    model = {0: ("<I", 3), 1: [{0: ("<b", 3), 3: ("<i", 3)}], 2: [graph], 4: [{}, {0: values}]}
    path = folder / "net.tflite"
    path.write_bytes(writers.flatbuffer(model, b"TFL3"))
    return path


def torch_one_array_thousands_of_times(folder):
    """Kernels of gigabytes that share one array of two megabytes."""
    big = _tensor((256, 256, 3, 3), 589_824)
    program = b"}(" + b"".join(_text(f"c{n}.weight") + big for n in range(1000)) + b"u"
    return _torch(folder / "net.pt", program, bytes(4 * 589_824))


def msgpack_deep_names(folder):
    """Long names above many arrays, within the library's limits on each list."""
    array = b"\xc7\x0d\x01\x93\x91\x01\xa5uint8\xc4\x01\0"
    inner = b"\xdc" + struct.pack(">H", 4000) + array * 4000
    for number in range(58):
        name = f"{number:03d}".encode() + b"n" * 990
        inner = b"\x81\xda" + struct.pack(">H", len(name)) + name + inner
    path = folder / "net.msgpack"
    path.write_bytes(b"\x81\xa4deep" + inner)
    return path


def _npy(header):
    content = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(content)) + content


def _zip(path, body, count):
    """An archive whose directory names one member again and again."""
    sizes = struct.pack("<III", zlib.crc32(body), len(body), len(body))
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 0, 0, 0) + sizes + b"\5\0\0\0" + b"0.npy"
    names = [f"{number:x}.npy".encode() for number in range(count)]
    head = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 0) + sizes
    entries = [head + struct.pack("<HHHHHII", len(n), 0, 0, 0, 0, 0, 0) + n for n in names]
    directory = b"".join(entries)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(local) + len(body), 0)
    path.write_bytes(local + body + directory + b"PK\5\6" + end)
    return path


def npz_one_member_many_names(folder):
    """Names of one member, whose header takes milliseconds each time."""
    header = "{'descr':'<f4','fortran_order':False,'shape':(1,),'x':[" + "1," * 4900 + "]}"
    return _zip(folder / "net.npz", _npy(header) + bytes(4), 30_000)


def npz_slow_headers(folder):
    """Headers that take milliseconds each, in members of their own."""
    header = "{'descr':'<f4','fortran_order':False,'shape':(1,),'x':[" + "1," * 4900 + "]}"
    with zipfile.ZipFile(folder / "net.npz", "w") as archive:
        for number in range(4000):
            archive.writestr(f"{number}.npy", _npy(header) + bytes(4))
    return folder / "net.npz"


def safetensors_name_of_many_parts(folder):
    """A name with a thousand beginnings, each of them looked up by a careless reader."""
    return _safetensors(folder, "a." * 1000 + "weight")


def safetensors_long_name(folder):
    """A name that no member of an archive can have."""
    return _safetensors(folder, "n" * 70_000 + ".weight")


def _safetensors(folder, name):
    entry = {"dtype": "F32", "shape": [4, 3, 3, 3], "data_offsets": [0, 432]}
    header = json.dumps({name: entry}).encode()
    path = folder / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + W)
    return path


def _model(nodes, functions=(), shape=(1, 3, 32, 32)):
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 3, 3), W, raw=True)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [output], [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


def _function(name, calls):
    """A function of the domain d that calls others one after the other."""
    places = ["a", *(f"t{number}" for number in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [places[i]], [places[i + 1]], domain="d")
        for i, call in enumerate(calls)
    ]
    opsets = [helper.make_opsetid("d", 1)]
    return helper.make_function("d", name, ["a"], ["b"], nodes, opsets)


def onnx_functions_call_each_other_twice(folder):
    """Functions that unfold to 2**40 nodes."""
    calls = [_function(f"f{n}", [f"f{n - 1}"] * 2) for n in range(1, 40)]
    nodes = [helper.make_node("f39", ["x"], ["z"], domain="d"),
             helper.make_node("Conv", ["z", "w"], ["y"])]  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(_model(nodes, [_function("f0", ["g"]), *calls]), path)
    return path


def onnx_function_calls_itself(folder):
    """A function that unfolds for ever."""
    nodes = [helper.make_node("f", ["x"], ["z"], domain="d"),
             helper.make_node("Conv", ["z", "w"], ["y"])]  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(_model(nodes, [_function("f", ["f"])]), path)
    return path


def onnx_link_to_itself(folder):
    """External values in a link that leads to itself."""
    path = writers.write_onnx(folder / "net.onnx", external="values.bin")
    (folder / "values.bin").unlink()
    os.symlink("values.bin", folder / "values.bin")
    return path


def _orbax(folder, description):
    array = folder / "checkpoint" / "params.conv.kernel"
    array.mkdir(parents=True)
    if description is not None:
        (array / ".zarray").write_text(description)
    keys = [{"key": key} for key in ("params", "conv", "kernel")]
    entry = {"key_metadata": keys, "value_metadata": {"value_type": "np.ndarray"}}
    (folder / "checkpoint" / "_METADATA").write_text(json.dumps({"tree_metadata": {"k": entry}}))
    return folder / "checkpoint", array


_ZARRAY = json.dumps({
    "zarr_format": 2, "shape": [3, 3, 3, 4], "chunks": [3, 3, 3, 2], "dtype": "<f4",
    "compressor": None, "fill_value": None, "filters": None, "order": "C",
})  # fmt: skip


def orbax_pipe_for_a_description(folder):
    """A named pipe in place of an array's description: a reader waits for ever."""
    path, array = _orbax(folder, None)
    os.mkfifo(array / ".zarray")
    return path


def orbax_pipe_for_a_chunk(folder):
    """A named pipe in place of a chunk."""
    path, array = _orbax(folder, _ZARRAY)
    os.mkfifo(array / "0.0.0.0")
    return path


def orbax_missing_chunk(folder):
    """A checkpoint that has lost half of a kernel, which would be read as zeros."""
    path, array = _orbax(folder, _ZARRAY)
    (array / "0.0.0.0").write_bytes(W[:216])
    return path


def orbax_link_that_leads_out(folder):
    """A chunk that is a link to another file of the user."""
    (folder / "secret").write_bytes(W[:216])
    path, array = _orbax(folder, _ZARRAY.replace("3, 2]", "3, 4]"))
    os.symlink(folder / "secret", array / "0.0.0.0")
    return path


def zarr_nested_200_000_deep(folder):
    """A description whose nesting overflows the stack of a recursive parser."""
    return _orbax(folder, "[" * 200_000)[0]


def hdf5_never_written(folder):
    """A kernel of which no value was written; the library gives zeros."""
    import h5py

    path = folder / "net.h5"
    with h5py.File(path, "w") as file:
        chunks = {"shape": (3, 3, 4, 4), "dtype": "f4", "chunks": (3, 3, 4, 2)}
        kernel = file.create_dataset("layers/conv2d/vars/0", **chunks)
        kernel[..., :2] = 1
    return path


def index_of_a_pipe(folder):
    """A shard that is a named pipe."""
    os.mkfifo(folder / "part.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": "part.safetensors"}}))
    return path


def index_cut_shard(folder):
    """A shard that has lost its end."""
    (folder / "net").mkdir()
    path = writers.write_safetensors_sharded(folder / "net")
    shard = sorted((folder / "net").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-4])
    return path


def onnx_cut_external_values(folder):
    """External values that have lost their end."""
    path = writers.write_onnx(folder / "net.onnx", external="values.bin")
    values = folder / "values.bin"
    values.write_bytes(values.read_bytes()[: values.stat().st_size // 2])
    return path


REFUSED = {name: value for name, value in list(globals().items()) if name[0].islower() and
           getattr(value, "__module__", "") == __name__}  # fmt: skip


def surrogate_names(folder):
    """A name that UTF-8 cannot hold, and so no file of results."""
    return _safetensors(folder, "a\ud800.weight")


def kernel_of_a_million_cells(folder):
    """A kernel whose null would take 150 GB."""
    values = np.random.default_rng(0).normal(size=(1, 1, 1000, 1000)).astype(np.float32)
    return writers.write_torch(folder / "net.pt", {"conv.weight": values})


def kernels_of_many_sizes(folder):
    """Kernels that would need a program and a null each."""
    rng = np.random.default_rng(0)
    state = {
        f"c{kh}_{kw}.weight": rng.normal(size=(2, 1, kh, kw)).astype(np.float32)
        for kh in range(2, 9)
        for kw in range(2, 9)
    }
    return writers.write_torch(folder / "net.pt", state)


def fixed_input_of_a_trillion_pixels(folder):
    """A model for images of 2**40 by 2**40 pixels."""
    side = 1 << 40
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    path = folder / "net.onnx"
    onnx.save(_model([node], shape=(1, 3, side, side)), path)
    return path


def kernel_of_2_to_the_31_taps(folder):
    """A kernel whose shape a graph declares, and whose values nobody gives."""
    side = 1 << 31
    model = _model([helper.make_node("Conv", ["x", "k"], ["y"], pads=[side] * 4)])
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, (4, 3, side, 3)))
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def padding_of_2_to_the_63(folder):
    """Paddings, steps and distances of taps that no machine number holds when they are added."""
    far = {"pads": [(1 << 63) - 1] * 4, "strides": [1 << 62, 1], "dilations": [1 << 60] * 2}
    path = folder / "net.onnx"
    onnx.save(_model([helper.make_node("Conv", ["x", "w"], ["y"], **far)]), path)
    return path


def convolutions_by_the_thousand(folder):
    """A graph of more layers than a terminal should show."""
    nodes = [
        helper.make_node("Conv", [f"x{n}" if n else "x", "w"], [f"x{n + 1}"], pads=[1] * 4)
        for n in range(2100)
    ]
    path = folder / "net.onnx"
    onnx.save(_model(nodes), path)
    return path


def constants_by_the_ten_thousand(folder):
    """A graph of constants that nobody reads."""
    value = helper.make_tensor("", TensorProto.FLOAT, (1,), [1.0])
    nodes = [helper.make_node("Constant", [], [f"c{n}"], value=value) for n in range(20_000)]
    nodes.append(helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2]))
    path = folder / "net.onnx"
    onnx.save(_model(nodes), path)
    return path


def torch_build_copies(folder):
    """BUILD gives one large dict into thousands of new objects; no copy is needed."""
    big = b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(100_000)) + b"u"
    start = big + _put(1) + b"cargparse\nNamespace\n" + _put(2) + b")" + _put(3)
    call = _get(2) + _get(3) + b"R" + _get(1) + b"b"
    junk = _text("junk") + b"](" + call * 30_000 + b"es"
    return _torch(folder / "net.pt", start + b"}" + junk + _text("w") + _tensor() + b"s")
