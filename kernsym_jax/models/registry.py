"""Every model by name, one line each."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from kernsym_jax.layers import check_downsample, check_padding
from kernsym_jax.models.alexnet import AlexNet
from kernsym_jax.models.cifar_resnet import CifarResNet
from kernsym_jax.models.inception_v3 import InceptionV3
from kernsym_jax.models.mobilenet_v2 import MobileNetV2
from kernsym_jax.models.resnet import ResNet
from kernsym_jax.models.small_cnn import SmallCNN
from kernsym_jax.models.unet import UNet
from kernsym_jax.models.vgg import VGG


class Model(NamedTuple):
    """A line of the registry."""

    module: type[nn.Module]
    fields: dict[str, Any]
    input_size: int
    description: str


_BASIC, _DEEP = {"bottleneck": False}, {"bottleneck": True}
_BN = {"batch_norm": True}

_MODELS: dict[str, Model] = {
    "small_cnn": Model(SmallCNN, {}, 32, "3×3 convolutions, BatchNorm, global average pooling"),
    "alexnet": Model(AlexNet, {}, 224, "5 convolutions from 11×11 to 3×3, 3 dense layers"),
    "vgg11": Model(VGG, {"convs": (1, 1, 2, 2, 2)}, 224, "8 convolutions 3×3, 3 dense layers"),
    "vgg13": Model(VGG, {"convs": (2, 2, 2, 2, 2)}, 224, "10 convolutions 3×3, 3 dense layers"),
    "vgg16": Model(VGG, {"convs": (2, 2, 3, 3, 3)}, 224, "13 convolutions 3×3, 3 dense layers"),
    "vgg19": Model(VGG, {"convs": (2, 2, 4, 4, 4)}, 224, "16 convolutions 3×3, 3 dense layers"),
    "vgg11_bn": Model(VGG, {"convs": (1, 1, 2, 2, 2)} | _BN, 224, "VGG-11 with BatchNorm"),
    "vgg13_bn": Model(VGG, {"convs": (2, 2, 2, 2, 2)} | _BN, 224, "VGG-13 with BatchNorm"),
    "vgg16_bn": Model(VGG, {"convs": (2, 2, 3, 3, 3)} | _BN, 224, "VGG-16 with BatchNorm"),
    "vgg19_bn": Model(VGG, {"convs": (2, 2, 4, 4, 4)} | _BN, 224, "VGG-19 with BatchNorm"),
    "resnet18": Model(ResNet, {"blocks": (2, 2, 2, 2)} | _BASIC, 224, "8 basic blocks"),
    "resnet34": Model(ResNet, {"blocks": (3, 4, 6, 3)} | _BASIC, 224, "16 basic blocks"),
    "resnet50": Model(ResNet, {"blocks": (3, 4, 6, 3)} | _DEEP, 224, "16 bottleneck blocks"),
    "resnet101": Model(ResNet, {"blocks": (3, 4, 23, 3)} | _DEEP, 224, "33 bottleneck blocks"),
    "resnet152": Model(ResNet, {"blocks": (3, 8, 36, 3)} | _DEEP, 224, "50 bottleneck blocks"),
    "cifar_resnet20": Model(CifarResNet, {"blocks": (3,) * 3}, 32, "9 basic blocks, option A"),
    "cifar_resnet32": Model(CifarResNet, {"blocks": (5,) * 3}, 32, "15 basic blocks, option A"),
    "cifar_resnet44": Model(CifarResNet, {"blocks": (7,) * 3}, 32, "21 basic blocks, option A"),
    "cifar_resnet56": Model(CifarResNet, {"blocks": (9,) * 3}, 32, "27 basic blocks, option A"),
    "cifar_resnet110": Model(CifarResNet, {"blocks": (18,) * 3}, 32, "54 basic blocks, option A"),
    "inception_v3": Model(InceptionV3, {}, 299, "11 mixed blocks, auxiliary head in training"),
    "mobilenet_v2": Model(MobileNetV2, {}, 224, "17 inverted residual blocks"),
    "unet": Model(UNet, {}, 256, "4 levels down and up with skips, a class for every pixel"),
}

NAMES = tuple(_MODELS)


def create(
    name: str,
    num_classes: int | None = None,
    padding: str = "zero",
    downsample: str = "stride",
    dtype: Any = jnp.float32,
    **fields: Any,
) -> nn.Module:
    """Makes a model.

    Args:
      name: one of ``NAMES``.
      num_classes: number of outputs; None for those of the published network.
      padding: one of ``layers.PADDINGS``.
      downsample: one of ``layers.DOWNSAMPLINGS``.
      dtype: type of the computation, ``jnp.float32`` or ``jnp.bfloat16``, or its name.
      **fields: further fields of the model's module, for example ``width``, ``blur_size`` or
        ``bn_axis_name``.

    Returns:
      The Linen module.

    Raises:
      ValueError: for an unknown name, padding, downsampling, type or field, or no classes.
    """
    model = _model(name)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
    check_padding(padding, name)
    check_downsample(downsample, name)
    known = {f.name for f in dataclasses.fields(model.module)} - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{name}: unknown fields {unknown}; wanted some of {sorted(known)}")
    return model.module(
        **{
            **model.fields,
            **{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()},
            **({} if num_classes is None else {"num_classes": num_classes}),
            "padding": padding,
            "downsample": downsample,
            "dtype": _float_type(name, dtype),
        }
    )


def default_input_size(name: str) -> int:
    """Height and width of the images that the model was designed for."""
    return _model(name).input_size


def describe(name: str) -> str:
    """The model in one line."""
    return _model(name).description


def _float_type(name: str, dtype: Any) -> Any:
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"{name}: dtype must be a float type such as bfloat16, got {dtype!r}")
    return kind


def _model(name: str) -> Model:
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; wanted one of {NAMES}")
    return _MODELS[name]
