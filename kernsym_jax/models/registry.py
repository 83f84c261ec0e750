"""The networks by name: making one of ours or of the user's own, and its intermediate maps."""

import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from kernsym_jax.cli import nearest
from kernsym_jax.layers import DOWNSAMPLINGS, PADDINGS
from kernsym_jax.models.classic import VGG, AlexNet, SmallCNN, UNet
from kernsym_jax.models.depthwise import ConvNeXt, EfficientNet, MobileNetV2
from kernsym_jax.models.inception_v3 import InceptionV3
from kernsym_jax.models.resnet import CifarResNet, DenseNet, ResNet
from kernsym_jax.models.variant import make_variant


class Model(NamedTuple):
    """A network of the registry.

    Attributes:
      module: class of the network.
      fields: values of its fields.
      input_size: height and width of the images that the network was designed for.
      description: the network in one line.
    """

    module: type[nn.Module]
    fields: dict[str, Any]
    input_size: int
    description: str


_BASIC, _DEEP = {"bottleneck": False}, {"bottleneck": True}
_BN = {"batch_norm": True}
# torchvision's BatchNorm of EfficientNet B5 to B7.
_SLOW_NORM = {"bn_epsilon": 1e-3, "bn_momentum": 0.99}


def _resnet(blocks: tuple[int, ...], what: str, **fields: int) -> Model:
    text = f"{sum(blocks)} bottleneck blocks, {what}"
    return Model(ResNet, {"blocks": blocks, "bottleneck": True, **fields}, 224, text)


def _densenet(blocks: tuple[int, ...], *, growth: int, width: int) -> Model:
    fields = {"blocks": blocks, "growth": growth, "width": width}
    text = f"4 dense blocks of {sum(blocks)} layers, each adding {growth} channels"
    return Model(DenseNet, fields, 224, text)


def _efficientnet(input_size: int, **fields: float) -> Model:
    scales = f"width × {fields['width']}, depth × {fields['depth']}"
    text = f"inverted residual blocks with squeeze-and-excitation, {scales}"
    return Model(EfficientNet, fields, input_size, text)


def _convnext(blocks: tuple[int, ...], *, width: int, stochastic_depth: float) -> Model:
    fields = {"blocks": blocks, "width": width, "stochastic_depth": stochastic_depth}
    text = f"{sum(blocks)} blocks with depthwise 7×7 convolutions, {width} channels at first"
    return Model(ConvNeXt, fields, 224, text)


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
    "resnext50_32x4d": _resnet((3, 4, 6, 3), "32 groups", groups=32, width_per_group=4),
    "resnext101_32x8d": _resnet((3, 4, 23, 3), "32 groups", groups=32, width_per_group=8),
    "wide_resnet50_2": _resnet((3, 4, 6, 3), "twice the inner width", width_per_group=128),
    "wide_resnet101_2": _resnet((3, 4, 23, 3), "twice the inner width", width_per_group=128),
    "cifar_resnet20": Model(CifarResNet, {"blocks": (3,) * 3}, 32, "9 basic blocks, option A"),
    "cifar_resnet32": Model(CifarResNet, {"blocks": (5,) * 3}, 32, "15 basic blocks, option A"),
    "cifar_resnet44": Model(CifarResNet, {"blocks": (7,) * 3}, 32, "21 basic blocks, option A"),
    "cifar_resnet56": Model(CifarResNet, {"blocks": (9,) * 3}, 32, "27 basic blocks, option A"),
    "cifar_resnet110": Model(CifarResNet, {"blocks": (18,) * 3}, 32, "54 basic blocks, option A"),
    "inception_v3": Model(InceptionV3, {}, 299, "11 mixed blocks, auxiliary head in training"),
    "mobilenet_v2": Model(MobileNetV2, {}, 224, "17 inverted residual blocks"),
    "densenet121": _densenet((6, 12, 24, 16), growth=32, width=64),
    "densenet161": _densenet((6, 12, 36, 24), growth=48, width=96),
    "densenet169": _densenet((6, 12, 32, 32), growth=32, width=64),
    "densenet201": _densenet((6, 12, 48, 32), growth=32, width=64),
    "efficientnet_b0": _efficientnet(224, width=1.0, depth=1.0, dropout=0.2),
    "efficientnet_b1": _efficientnet(240, width=1.0, depth=1.1, dropout=0.2),
    "efficientnet_b2": _efficientnet(288, width=1.1, depth=1.2, dropout=0.3),
    "efficientnet_b3": _efficientnet(300, width=1.2, depth=1.4, dropout=0.3),
    "efficientnet_b4": _efficientnet(380, width=1.4, depth=1.8, dropout=0.4),
    "efficientnet_b5": _efficientnet(456, width=1.6, depth=2.2, dropout=0.4, **_SLOW_NORM),
    "efficientnet_b6": _efficientnet(528, width=1.8, depth=2.6, dropout=0.5, **_SLOW_NORM),
    "efficientnet_b7": _efficientnet(600, width=2.0, depth=3.1, dropout=0.5, **_SLOW_NORM),
    "convnext_tiny": _convnext((3, 3, 9, 3), width=96, stochastic_depth=0.1),
    "convnext_small": _convnext((3, 3, 27, 3), width=96, stochastic_depth=0.4),
    "convnext_base": _convnext((3, 3, 27, 3), width=128, stochastic_depth=0.5),
    "convnext_large": _convnext((3, 3, 27, 3), width=192, stochastic_depth=0.5),
    "unet": Model(UNet, {}, 256, "4 levels down and up with skips, a class for every pixel"),
}

NAMES = tuple(_MODELS)
"""The names that `create` takes."""
_VARIANT_FIELDS = {"padding", "downsample", "blur_size", "bn_axis_name", "dtype"}


def create(
    name: str,
    num_classes: int | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    **fields: Any,
) -> nn.Module:
    """Makes a network.

    Args:
      name: one of ``NAMES``; or ``package.module:Class`` for a Linen module of your own, whose call
        takes (images, train=…). The package is imported from the current directory or from the
        installed packages. The class gets ``num_classes`` and ``bn_axis_name`` if it has such
        fields, and the choices for the layers as a `Variant` if it has a field
        ``variant: models.Variant``.
      num_classes: number of outputs; None for that of the published network.
      kwargs: fields of the network's module, for a class of your own whose ``padding``, say, means
        something else.
      **fields: choices for the layers, ``padding`` (one of ``layers.PADDINGS``, default "zero"),
        ``downsample`` (one of ``layers.DOWNSAMPLINGS``, default "stride"), ``blur_size``,
        ``bn_axis_name`` and ``dtype`` (a float type or its name, default float32); and fields of
        the network's module, for example ``width``.

    Returns:
      The Linen module.

    Raises:
      ValueError: if ``num_classes`` is below 1, or the name, the padding, the downsampling, the
        type or a field is unknown.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import models
    >>> model = models.create("small_cnn", num_classes=10, padding="reflect")
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> model.apply(variables, jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
    if is_own(name):
        choices = {key: fields.pop(key) for key in _VARIANT_FIELDS & set(fields)}
        return create_own(name, num_classes, choices, _joined(name, kwargs, fields))
    model = _model(name)
    fields = _joined(name, kwargs, fields)
    of_module = {f.name for f in dataclasses.fields(model.module)} - {"parent", "name", "variant"}
    unknown = sorted(set(fields) - of_module - _VARIANT_FIELDS)
    if unknown:
        wanted = sorted(of_module | _VARIANT_FIELDS)
        close = nearest(unknown[0], {*wanted, "name"})
        raise ValueError(f"{name}: unknown fields {unknown}; wanted some of {wanted}{close}")
    variant = make_variant(name, **{key: fields.pop(key) for key in _VARIANT_FIELDS & set(fields)})
    if num_classes is not None:
        fields["num_classes"] = num_classes
    return model.module(**{**model.fields, **fields, "variant": variant})


def known_names() -> dict[str, dict[str, str]]:
    """Returns the names that arguments of ``create`` take, each with a line on it.

    Returns:
      ``{"model": {"resnet18": "8 basic blocks", …}, "padding": {…}, "downsample": {…}}``

    >>> from kernsym_jax import models
    >>> list(models.known_names()["downsample"])
    ['stride', 'blur', 'sbpool', 'aps', 'lps']
    """
    return {
        "model": {name: model.description for name, model in _MODELS.items()},
        "padding": dict.fromkeys(PADDINGS, ""),
        "downsample": dict.fromkeys(DOWNSAMPLINGS, ""),
    }


def default_input_size(name: str) -> int:
    """Returns the height and width of the images that the network was designed for.

    Args:
      name: one of `NAMES`.

    Raises:
      ValueError: for an unknown network, or one of your own, which has no default.

    >>> from kernsym_jax import models
    >>> models.default_input_size("resnet50"), models.default_input_size("inception_v3")
    (224, 299)
    """
    if is_own(name):
        raise ValueError(f"{name}: give its input size; a network of your own has no default")
    return _model(name).input_size


def describe(name: str) -> str:
    """Returns a description of the network in one line.

    Args:
      name: one of `NAMES`.

    Raises:
      ValueError: for an unknown network.

    >>> from kernsym_jax import models
    >>> models.describe("cifar_resnet20")
    '9 basic blocks, option A'
    """
    return _model(name).description


def intermediates(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Evaluates a network and keeps the output of every layer and block.

    Args:
      model: a network made by ``create``.
      variables: its variables.
      images: (batch, height, width, channels), float32, already normalised.

    Returns:
      The logits, and a map per layer by its path, for example
      ``{"conv1": …, "bn1": …, "layer1_0/conv1": …}``. The map of a layer is its own output, before
      the activation that follows; the map of a ``…_down`` is taken after the activation and the
      step of a strided layer. They are in forward order, under ``jit`` in alphabetical order.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import models
    >>> model = models.create("small_cnn", num_classes=10)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> logits, maps = models.intermediates(model, variables, jnp.zeros((2, 8, 8, 1)))
    >>> logits.shape, next(iter(maps))
    ((2, 10), 'conv1')
    """
    logits, kept = model.apply(
        variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    maps = {}
    for path, calls in flatten_dict(kept["intermediates"]).items():
        if len(path) > 1:
            value = calls[0]
            maps["/".join(path[:-1])] = value[0] if isinstance(value, tuple) else value
    return logits, maps


def _joined(
    name: str, kwargs: Mapping[str, Any] | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of a module, hashable."""
    kwargs = dict(kwargs or {})
    twice = sorted(set(kwargs) & set(fields))
    if twice:
        raise ValueError(f"{name}: {twice[0]} is given in kwargs and beside them")
    # Configs hold lists, and the fields of a module must be hashable.
    both = {**fields, **kwargs}.items()
    return {key: tuple(value) if isinstance(value, list) else value for key, value in both}


def _model(name: str) -> Model:
    if name not in _MODELS:
        known = "; `kernsym-audit --model=list` shows them, package.module:Class is one of your own"
        raise ValueError(f"unknown model {name!r}{nearest(name, NAMES) or known}")
    return _MODELS[name]


def is_own(name: str) -> bool:
    """Returns whether a name is that of a user's class, not of a network of the registry."""
    return ":" in name


def create_own(
    name: str, num_classes: int | None, choices: Mapping[str, Any], fields: Mapping[str, Any]
) -> nn.Module:
    """Makes a network of the user's own.

    Args:
      name: ``package.module:Class``.
      num_classes: number of outputs, for a class with such a field.
      choices: arguments of `make_variant`, for a class with a field ``variant: models.Variant``;
        other classes accept only the defaults, and ``bn_axis_name`` if they have that field.
      fields: fields of the class.

    Returns:
      The Linen module.

    Raises:
      ValueError: if there is no such class, it is no Linen module that takes ``train``, or it does
        not have one of the fields.
    """
    module = _find_class(name)
    types = {f.name: str(f.type) for f in dataclasses.fields(module) if f.init}
    known = set(types) - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{name}: unknown fields {unknown}; wanted some of {sorted(known)}")
    given = dict(fields)
    if num_classes is not None and "num_classes" in known:
        given.setdefault("num_classes", num_classes)
    variant, plain = make_variant(name, **choices), make_variant(name)
    takes_variant = "Variant" in types.get("variant", "")
    if takes_variant:
        given.setdefault("variant", variant)
    if "bn_axis_name" in known:
        given.setdefault("bn_axis_name", variant.bn_axis_name)
        plain = dataclasses.replace(plain, bn_axis_name=variant.bn_axis_name)
    for key, value in choices.items():
        if not takes_variant and getattr(variant, key) != getattr(plain, key):
            raise ValueError(
                f"{name}: {key}={value!r} needs a field `variant: models.Variant`, which the class "
                "does not have; kwargs set its own fields"
            )
    with naming_failures(module):
        return module(**given)


@contextlib.contextmanager
def naming_failures(network: nn.Module | type[nn.Module]) -> Iterator[None]:
    """Turns what the code of a network of the user's own raises into one line on it.

    Args:
      network: the module, or its class; what a network of this package raises stays as it is.

    Raises:
      ValueError: with the class, its error, and the line of its file that raised it.

    >>> from kernsym_jax import models
    >>> with models.naming_failures(models.create("small_cnn")):
    ...     pass
    """
    kind = network if isinstance(network, type) else type(network)
    try:
        yield
    # The user's code runs here and may raise anything.
    except Exception as error:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
        if ours or (not lines and isinstance(error, ValueError)):
            raise
        place = f" ({os.path.basename(str(file))}, line {lines[-1]})" if lines else ""
        said = next(iter(str(error).splitlines()), "")
        raised = f"{type(error).__name__}: {said}".removesuffix(": ")
        raise ValueError(f"{kind.__module__}:{kind.__qualname__}: {raised}{place}") from error


def _find_class(name: str) -> type[nn.Module]:
    place, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), attribute)):
        raise ValueError(f"unknown model {name!r}; a class of your own is package.module:Class")
    with _current_directory_first():
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name}: there is no module {error.name!r} in the current directory or among the "
                "installed packages"
            ) from error
        # The user's code runs here and may raise anything.
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(f"{name}: importing {place} fails: {kind}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ValueError(f"{name}: {place} has no class {attribute!r}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name}: {attribute} is not a class of flax.linen.Module")
    parameters = inspect.signature(found.__call__).parameters.values()
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"{name}: its call does not take train; wanted (images, train=…)")
    return found


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    """Makes imports find modules in the current directory, as ``python -m`` does."""
    folder = os.getcwd()
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # The imported module may have changed the list itself.
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
