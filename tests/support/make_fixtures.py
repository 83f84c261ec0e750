"""Makes the small files in ``fixtures/`` with PyTorch, Keras and TensorFlow, which the suite lacks.

Run in an environment that has them, once for each framework that is wanted::

    pip install torch==2.13.0 torchvision==0.28.0 && python tests/support/make_fixtures.py torch

PyTorch stores the paths of this file and of its own sources in scripts and whole modules. So make
these in a folder without a name of yours in its path, such as ``/usr/src/fixtures``.
"""

import gzip
import io
import json
import pathlib
import pickle
import sys
import tempfile
import zipfile

import network
import numpy as np

try:
    from torch.nn import Module as _Module
except ImportError:
    _Module = object

_FIXTURES = pathlib.Path(__file__).parent / "fixtures"
_NAMES = (
    *("alexnet", "resnet18", "mobilenet_v2", "inception_v3"),
    *("resnext50_32x4d", "wide_resnet50_2", "densenet161", "efficientnet_b5", "convnext_tiny"),
)
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64"),
)


def make_torch():
    """Tensors of every dtype and form, the same network in three formats, torchvision's names."""
    import torch

    flat = torch.arange(2 * 3 * 3 * 3) / 4
    base = flat.reshape(2, 3, 3, 3)
    tensors = {name: base.to(getattr(torch, name)) for name in _DTYPES}
    tensors |= {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.permute(2, 3, 1, 0),
        "every_other": torch.arange(216.0)[::4].reshape(2, 3, 3, 3) / 16,
        "offset": flat[27:].reshape(1, 3, 3, 3),
        "shared": flat[:27].reshape(1, 3, 3, 3),
        "expanded": torch.tensor(2.5).expand(2, 3, 3, 3),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3, 3, 3),
        "quantized": torch.quantize_per_tensor(base, 0.5, 3, torch.qint8),
    }
    torch.save(tensors, _FIXTURES / "tensors.pt")
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16"):  # the old format has none of these
        del tensors[name]
    torch.save(tensors, _FIXTURES / "tensors_legacy.pt", _use_new_zipfile_serialization=False)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 3, bias=False)
            self.conv.weight = torch.nn.Parameter(base)

        def forward(self, x):
            return self.conv(x)

    torch.jit.script(Net()).save(_FIXTURES / "script.pt")
    torch.jit.freeze(torch.jit.script(Net().eval())).save(_FIXTURES / "frozen.pt")


class Whole(_Module):
    """A network that is saved as a whole; at the top of the file, where its class has a name."""

    def __init__(self):
        import torch

        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.BatchNorm2d(4))
        for name, parameter in self.named_parameters():
            parameter.data = torch.from_numpy(network.values(name, tuple(parameter.shape)))


def make_torch_objects():
    """Whole modules, a pickled state dict, quantised scripts and weights made of parts."""
    import torch
    from torch.ao import quantization
    from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

    def write(name, save):
        content = io.BytesIO()
        save(content)
        (_FIXTURES / f"{name}.gz").write_bytes(gzip.compress(content.getvalue(), 9, mtime=0))

    module = Whole()
    write("module.pt", lambda file: torch.save(module, file))
    old = {"_use_new_zipfile_serialization": False}
    write("module_legacy.pt", lambda file: torch.save(module, file, **old))
    write("tensors.pkl", lambda file: pickle.dump(module.state_dict(), file))

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=4))
    stubs = quantization.QuantStub(), quantization.DeQuantStub()
    module = torch.nn.Sequential(stubs[0], *module, stubs[1]).eval()
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(network.values(name, tuple(parameter.shape)))
    module.qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.prepare(module, inplace=True)
    module(torch.ones(1, 3, 8, 8))
    quantization.convert(module, inplace=True)
    script = torch.jit.script(module)
    wanted = {name: module[int(name)].weight().dequantize() for name in ("1", "2")}
    write("quantized.pt", lambda file: torch.jit.save(script, file))
    write("quantized_frozen.pt", lambda file: torch.jit.save(torch.jit.freeze(script), file))
    write("quantized_wanted.pt", lambda file: torch.save(wanted, file))

    torch.manual_seed(0)
    layers = {name: torch.nn.Conv2d(2, 3, 3, bias=False) for name in ("a", "b", "c", "d", "e")}
    layers = {name: layer.eval() for name, layer in layers.items()}
    parametrizations.spectral_norm(layers["a"])
    parametrizations.weight_norm(layers["b"])
    layers["c"] = spectral_norm(layers["c"]).eval()
    weight_norm(layers["d"])
    prune.l1_unstructured(layers["e"], "weight", 0.5)
    module = torch.nn.ModuleDict(layers).eval()
    for layer in layers.values():
        layer(torch.ones(1, 2, 3, 3))
    wanted = {name: layer.weight.detach() for name, layer in layers.items()}
    tree = {"state_dict": module.state_dict(), "wanted": wanted}
    write("parts.pt", lambda file: torch.save(tree, file))


class _Mirrored:
    """A parametrization of the user's own."""

    def __new__(cls):
        import torch

        class Mirrored(torch.nn.Module):
            def forward(self, weight):
                return weight + weight.flip(-1)

        return Mirrored()


def make_torch_parts_further():
    """Weights of one length, of several parametrizations, of unknown ones, and a sparse one."""
    import torch
    from torch.nn.utils import parametrizations, parametrize, weight_norm

    torch.manual_seed(0)
    layers = {name: torch.nn.Conv2d(2, 3, 3, bias=False).eval() for name in "abcde"}
    parametrizations.weight_norm(layers["a"], dim=None)
    weight_norm(layers["b"], dim=None)
    parametrizations.weight_norm(layers["c"])
    parametrizations.spectral_norm(layers["c"])
    parametrizations.orthogonal(layers["d"])
    parametrize.register_parametrization(layers["e"], "weight", _Mirrored())
    module = torch.nn.ModuleDict(layers).eval()
    wanted = {name: layers[name].weight.detach() for name in "abc"}
    sparse = torch.nn.functional.dropout(torch.randn(3, 2, 3, 3), 0.7)
    wanted["s"] = sparse
    tree = {"state_dict": module.state_dict() | {"s.weight": sparse.to_sparse()}, "wanted": wanted}
    content = io.BytesIO()
    torch.save(tree, content)
    packed = gzip.compress(content.getvalue(), 9, mtime=0)
    (_FIXTURES / "parts_further.pt.gz").write_bytes(packed)


def make_torch_frozen():
    """A frozen module, whose kernels have numbers, with transposed and padded convolutions."""
    import torch

    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 1, bias=False),
        torch.nn.Conv2d(3, 4, 3, 2, 1),
        torch.nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        torch.nn.Conv2d(6, 2, 3, 2, 1, padding_mode="reflect", bias=False),
        torch.nn.Conv2d(2, 2, 4, padding="same"),
    ).eval()
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(network.values(name, tuple(parameter.shape)))
    content = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(module)), content)
    packed = gzip.compress(content.getvalue(), 9, mtime=0)
    (_FIXTURES / "frozen_further.pt.gz").write_bytes(packed)


class _Net:
    """The network of network.py in PyTorch."""

    def __new__(cls):
        import torch

        layers = torch.nn.Sequential()
        conv = torch.nn.Conv2d
        layers.add_module("layer1", conv(3, 4, 3, 2, 1, bias=False))
        layers.add_module("layer1_bn", torch.nn.BatchNorm2d(4))
        layers.add_module("layer2", conv(4, 4, 3, 1, 1, groups=4, bias=False))
        layers.add_module("layer3", conv(4, 4, 1, bias=False))
        layers.add_module("layer10", conv(4, 2, 5, padding=2))
        layers.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
        layers.add_module("flat", torch.nn.Flatten())
        layers.add_module("head", torch.nn.Linear(2, 5, bias=False))
        layers.load_state_dict({k: torch.tensor(v) for k, v in network.state_dict().items()})
        return layers.eval()


def make_torch_types():
    """A kernel beside tensors whose elements NumPy does not know, and a kernel alone."""
    import torch

    kernel = torch.from_numpy(network.values("conv.weight", (4, 3, 3, 3)))
    others = {name: torch.empty(4, dtype=getattr(torch, name)) for name in UNKNOWN_TYPES}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"conv.weight": kernel, **others}, f"{folder}/unknown_types.pt")
        torch.save(kernel, f"{folder}/tensor.pt")
        for file in sorted(pathlib.Path(folder).iterdir()):
            _pack(file)


UNKNOWN_TYPES = ("complex32", "bits8", "float4_e2m1fn_x2")


def make_torch_export():
    """The network of network.py as ``torch.export`` saves it, today and before PyTorch 2.8."""
    import torch
    from torch._export.serde.serialize import SCHEMA_VERSION, serialize

    program = torch.export.export(_Net(), (torch.zeros(1, 3, 16, 16),))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds the paths of this machine
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, f"{folder}/exported.pt2")
        # PyTorch's own reader still takes the old layout, whose writer is gone.
        made = serialize(program)
        with zipfile.ZipFile(f"{folder}/exported_old.pt2", "w") as archive:
            archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
            archive.writestr("serialized_exported_program.json", made.exported_program)
            archive.writestr("serialized_state_dict.pt", made.state_dict)
            archive.writestr("serialized_constants.pt", made.constants)
            archive.writestr("serialized_example_inputs.pt", made.example_inputs)
        torch.export.load(f"{folder}/exported_old.pt2")
        for file in sorted(pathlib.Path(folder).iterdir()):
            _pack(file)


def make_torch_distributed():
    """The network of network.py and an optimizer, saved by two processes that share each kernel."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/distributed"
        torch.multiprocessing.spawn(_save_distributed, (place, f"{folder}/store"), nprocs=2)
        _pack_folder(pathlib.Path(place))


def _save_distributed(rank, place, store):
    import torch
    from torch.distributed import checkpoint, tensor

    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    state = dict(_Net().state_dict())
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = tensor.distribute_tensor(value, mesh, [tensor.Shard(0)])
    slots = {"state": {"layer1.weight": {"exp_avg": torch.ones(4, 3, 3, 3)}}}
    whole = {"model": state, "optim": {**slots, "param_groups": [{"lr": 0.1}]}, "step": 7}
    checkpoint.save(whole, checkpoint_id=place)


def make_equinox():
    """A tree of Equinox, alone and behind a line of hyperparameters."""
    import equinox
    import jax.numpy as jnp

    kernel = jnp.asarray(network.KERNELS["layer1"].transpose(3, 2, 0, 1))
    tree = [{"weight": kernel, "bias": None}, jnp.asarray(network.DENSE), 0.5, True]
    tree.append(jnp.asarray(network.KERNELS["layer10"].transpose(3, 2, 0, 1), jnp.bfloat16))
    with tempfile.TemporaryDirectory() as folder:
        equinox.tree_serialise_leaves(f"{folder}/tree.eqx", tree)
        with pathlib.Path(f"{folder}/settings.eqx").open("wb") as file:
            file.write(json.dumps({"width": 4}).encode() + b"\n")
            equinox.tree_serialise_leaves(file, tree)
        for file in sorted(pathlib.Path(folder).iterdir()):
            _pack(file)


def make_tensorflow():
    """The network of network.py as TensorFlow 2 and 1 save it, and as a SavedModel."""
    import tensorflow as tf

    model = _keras_model()
    model.compile("adam", "mse")
    model.fit(np.zeros((1, 16, 16, 3)), np.zeros((1, 5)), verbose=0)
    _set_keras_weights(model)
    first = tf.compat.v1
    with tempfile.TemporaryDirectory() as folder:
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(f"{folder}/tf2/net")
        tf.saved_model.save(model, f"{folder}/saved")
        with tf.Graph().as_default(), first.Session() as session:
            for name, value in _first_variables().items():
                first.get_variable(name, initializer=tf.constant(value))
            session.run(first.global_variables_initializer())
            first.train.Saver().save(session, f"{folder}/tf1/model.ckpt", global_step=7)
        for name in ("tf1", "tf2", "saved"):
            _pack_folder(pathlib.Path(folder, name))


def _first_variables():
    """Variables under the names that slim gives them, with slots of an optimizer."""
    kernels = network.KERNELS
    depthwise = kernels["layer2"].reshape(3, 3, 4, 1)
    return {
        "Net/layer1/weights": kernels["layer1"],
        "Net/layer1/weights/Momentum": np.ones((3, 3, 3, 4), np.float32),
        "Net/layer1/weights/ExponentialMovingAverage": np.ones((3, 3, 3, 4), np.float32),
        "Net/layer2/depthwise_weights": depthwise,
        "Net/layer10/weights": kernels["layer10"],
        "Net/layer10/biases": network.BIAS,
        "global_step": np.int64(7),
    }


PARTS = {"net/outputs/weights": (3, 3, 2, 70), "net/inputs/weights": (3, 3, 140, 1)}
"""Variables that TensorFlow keeps in parts, cut along their longest axes."""


def make_tensorflow_parts():
    """Variables in parts, as TensorFlow 1 saves those of a partitioner."""
    import tensorflow as tf

    first = tf.compat.v1

    def initial(name):
        def make(shape, dtype, partition_info):
            places = zip(partition_info.var_offset, shape, strict=True)
            part = tuple(slice(start, start + size) for start, size in places)
            return tf.constant(network.values(name, PARTS[name])[part], dtype)

        return make

    with (
        tempfile.TemporaryDirectory() as folder,
        tf.Graph().as_default(),
        first.Session() as session,
    ):
        for name, shape in PARTS.items():
            cut = first.fixed_size_partitioner(3, axis=int(np.argmax(shape)))
            first.get_variable(name, shape, initializer=initial(name), partitioner=cut)
        session.run(first.global_variables_initializer())
        first.train.Saver().save(session, f"{folder}/tf1_parts/model.ckpt")
        _pack_folder(pathlib.Path(folder, "tf1_parts"))


def _pack(file):
    content = gzip.compress(file.read_bytes(), 9, mtime=0)
    (_FIXTURES / f"{file.name}.gz").write_bytes(content)


GRAPH = {
    "a": (3, 3, 3, 4),
    "b": (3, 3, 4, 4),
    "c": (3, 3, 4, 2),
    "d": (3, 3, 8, 8),
    "e": (5, 5, 1, 8),
    "f": (3, 3, 6, 1),
}
"""Variables whose names and shapes leave open which convolutions read them."""


def _convolve(maps, kernels, first=False):
    """Reads the variables of `GRAPH`, in another order than theirs."""
    import tensorflow as tf

    maps = tf.pad(maps, [[0, 0], [1, 0], [0, 1], [0, 0]])
    maps = tf.nn.conv2d(maps, kernels["a"], 2, "VALID")
    maps = tf.nn.conv2d_transpose(maps, kernels["b"], (1, 16, 16, 4), 2, "SAME")
    maps = tf.nn.depthwise_conv2d(maps, kernels["c"], (1, 2, 2, 1), "VALID")
    # TensorFlow 2 calls it in a function of its own.
    dilated = (lambda x: tf.nn.atrous_conv2d(x, kernels["d"], 2, "SAME")) if first else None
    dilated = dilated or tf.function(lambda x: tf.nn.conv2d(x, kernels["d"], 1, "VALID"))
    maps = dilated(maps)[..., :1]
    size = 4 * maps.shape[1]
    maps = tf.nn.conv2d_transpose(maps, kernels["f"], (1, size, size, 6), 4, "SAME")[..., :1]
    return tf.nn.conv2d(maps, kernels["e"], 1, [[0, 0], [2, 2], [2, 1], [0, 0]])


def make_tensorflow_graph():
    """SavedModels of TensorFlow 2, with a function that computes gradients, and of TensorFlow 1."""
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernels = {n: tf.Variable(network.values(n, shape)) for n, shape in GRAPH.items()}

        @tf.function
        def __call__(self, images):
            return _convolve(images, self.kernels)

        @tf.function
        def gradients(self, images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(_convolve(images, self.kernels))
            return tape.gradient(loss, list(self.kernels.values()))

    net, images = Net(), tf.zeros((1, 16, 16, 3))
    net(images), net.gradients(images)
    first = tf.compat.v1
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(net, f"{folder}/graph")
        with tf.Graph().as_default(), first.Session() as session:
            images = first.placeholder(tf.float32, (1, 16, 16, 3))
            kernels = {
                name: first.get_variable(
                    f"{name}/weights", initializer=network.values(name, shape), use_resource=False
                )
                for name, shape in GRAPH.items()
            }
            logits = _convolve(images, kernels, first=True)
            session.run(first.global_variables_initializer())
            first.saved_model.simple_save(
                session, f"{folder}/tf1_graph", {"x": images}, {"y": logits}
            )
        for name in ("graph", "tf1_graph"):
            _pack_folder(pathlib.Path(folder, name), graph=True)


def _pack_folder(folder, *, graph=False):
    """Puts the files of a checkpoint into an archive, without the paths that it was at.

    The graph is left out too, unless it is wanted.
    """
    with zipfile.ZipFile(_FIXTURES / f"{folder.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            left_out = file.suffix in (".pb", ".meta") or file.name == "checkpoint"
            left_out &= not (graph and file.name == "saved_model.pb")
            if file.is_file() and not left_out:
                item = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                item.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(item, file.read_bytes())


def make_torchvision():
    """The names and shapes of torchvision's models, which `load_into` maps to ours."""
    import torchvision

    shapes = {}
    for name in _NAMES:
        options = {"init_weights": False} if name == "inception_v3" else {}
        model = getattr(torchvision.models, name)(num_classes=10, **options)
        shapes[name] = {key: list(value.shape) for key, value in model.state_dict().items()}
    text = json.dumps(shapes).encode()
    (_FIXTURES / "torchvision_shapes.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))


def _keras_model():
    """The network of network.py in Keras, with weights of its own."""
    import keras

    images = keras.Input((16, 16, 3), batch_size=1)
    layers = {
        "layer1": keras.layers.Conv2D(4, 3, 2, padding="same", use_bias=False, name="layer1"),
        "layer1_bn": keras.layers.BatchNormalization(epsilon=1e-5, name="layer1_bn"),
        "pad": keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad"),
        "layer2": keras.layers.DepthwiseConv2D(3, use_bias=False, name="layer2"),
        "layer3": keras.layers.Conv2D(4, 1, use_bias=False, name="layer3"),
        "inner": keras.Sequential(
            [keras.Input((7, 7, 4)), keras.layers.Conv2D(2, 5, name="layer10")], name="inner"
        ),
        "pool": keras.layers.GlobalAveragePooling2D(name="pool"),
        "head": keras.layers.Dense(5, use_bias=False, name="head"),
    }
    x = images
    for layer in layers.values():
        x = layer(x)
    return keras.Model(images, x)


def _set_keras_weights(model):
    kernels = network.KERNELS
    norm = network.NORM
    model.get_layer("layer1").set_weights([kernels["layer1"]])
    model.get_layer("layer1_bn").set_weights(list(norm.values()))
    model.get_layer("layer2").set_weights([kernels["layer2"].reshape(3, 3, 4, 1)])
    model.get_layer("layer3").set_weights([kernels["layer3"]])
    model.get_layer("inner").set_weights([kernels["layer10"], network.BIAS])
    model.get_layer("head").set_weights([network.DENSE])


def make_keras():
    """The network of network.py as Keras and TensorFlow Lite save it."""
    import tensorflow as tf

    model = _keras_model()
    _set_keras_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("net.keras", "net.h5"):
            model.save(f"{folder}/{name}")
        model.save_weights(f"{folder}/net.weights.h5")
        for file in sorted(pathlib.Path(folder).iterdir()):
            content = gzip.compress(file.read_bytes(), 9, mtime=0)
            (_FIXTURES / f"{file.name}.gz").write_bytes(content)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    (_FIXTURES / "net.tflite").write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: [[np.ones((1, 16, 16, 3), np.float32)]] * 2
    (_FIXTURES / "int8.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    _FIXTURES.mkdir(exist_ok=True)
    makers = {"torch": make_torch, "torchvision": make_torchvision, "keras": make_keras}
    makers["torch_frozen"] = make_torch_frozen
    makers |= {"torch_objects": make_torch_objects, "torch_parts": make_torch_parts_further}
    makers |= {"torch_export": make_torch_export, "torch_distributed": make_torch_distributed}
    makers |= {"equinox": make_equinox, "tensorflow": make_tensorflow}
    makers |= {"tensorflow_parts": make_tensorflow_parts, "torch_types": make_torch_types}
    makers["tensorflow_graph"] = make_tensorflow_graph
    makers[sys.argv[1]]()
