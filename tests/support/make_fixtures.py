"""Makes the small files in ``fixtures/`` with PyTorch, Keras and TensorFlow, which the suite lacks.

Run in an environment that has them, once for each framework that is wanted::

    pip install torch==2.13.0 torchvision==0.28.0 && python tests/support/make_fixtures.py torch
"""

import gzip
import json
import pathlib
import sys
import tempfile

import network
import numpy as np

_FIXTURES = pathlib.Path(__file__).parent / "fixtures"
_NAMES = ("alexnet", "resnet18", "mobilenet_v2", "inception_v3")
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
    makers[sys.argv[1]]()
