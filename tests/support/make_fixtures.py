"""Makes the small files in ``fixtures/`` with PyTorch, Keras and TensorFlow, which the suite lacks.

Run in an environment that has them, once for each framework that is wanted::

    pip install torch==2.13.0 torchvision==0.28.0 && python tests/support/make_fixtures.py torch
"""

import gzip
import io
import json
import pathlib
import pickle
import sys
import tempfile

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


def make_keras():
    """The network of network.py as Keras and TensorFlow Lite save it."""
    import keras
    import tensorflow as tf

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
    model = keras.Model(images, x)
    kernels = network.KERNELS
    norm = network.NORM
    model.get_layer("layer1").set_weights([kernels["layer1"]])
    model.get_layer("layer1_bn").set_weights(list(norm.values()))
    model.get_layer("layer2").set_weights([kernels["layer2"].reshape(3, 3, 4, 1)])
    model.get_layer("layer3").set_weights([kernels["layer3"]])
    model.get_layer("inner").set_weights([kernels["layer10"], network.BIAS])
    model.get_layer("head").set_weights([network.DENSE])
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
    makers["torch_objects"] = make_torch_objects
    makers[sys.argv[1]]()
