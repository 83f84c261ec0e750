"""Reads models and weights of Keras 2 and 3: ``.keras``, ``.h5``, ``.weights.h5`` and in memory."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats import archive
from kernsym_jax.formats.archive import Hdf5, ZipMembers
from kernsym_jax.formats.arrays import StoredArray, natural_order, parse_json
from kernsym_jax.formats.keras_config import (
    Layer,
    all_layers,
    class_of,
    live_layers,
    live_model,
    live_optimizer,
    owner,
    padding_before,
    read_model,
    variable_names,
    wrapped,
)
from kernsym_jax.weights import fold
from kernsym_jax.weights.kernels import POINTWISE, describe_axes, find_kernels, same_values
from kernsym_jax.weights.layout import (
    BY_FORMAT,
    CONV,
    DEPTHWISE,
    GIVEN,
    HWIO,
    OIHW,
    TRANSPOSED,
    ConvKernel,
    Weights,
    axes_to_hwio,
    first_layer,
    looks_like_kernel,
    turned_note,
)

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LISTED = "Keras HDF5"
_LIVE = "Keras in memory"
_MODELS = ("Functional", "Model", "Sequential")
_OLDEST = re.compile(r"(.*/)?layer_\d{1,9}/param_\d{1,9}")
_EPSILON = 1e-3
_OPTIMIZER = re.compile(r"(optimizer|optimizer_weights|_optimizer)/")
# The names of a variable that is no kernel, such as the mask of a pruned one.
_NOT_KERNELS = re.compile(r"mask|mean|variance|threshold|moment|gamma|beta|bias|embedding")
_THEANO = "theano"
_MAYBE_TURNED = (
    "its kernels are ordered as Theano's: if it was trained with Theano, which turns kernels by "
    "180° where others do not, every skew points the other way; the file does not say"
)
_TURNED = "trained with Theano, whose convolutions turn kernels by 180°: they are turned back"


def is_keras_archive(names: list[str]) -> bool:
    """Returns whether a zip archive with these members is a ``.keras`` file."""
    return _CONFIG in names and _WEIGHTS in names


def read_archive(
    path: str | os.PathLike, *, layout: str | None = None, fold_batchnorm: bool = False
) -> Weights:
    """Reads a ``.keras`` file.

    Args:
      path: the file, a zip archive.
      layout: the axes of kernels if the user gives them.
      fold_batchnorm: multiplies a kernel by the scale of the BatchNormalization that follows it.

    Raises:
      ValueError: if it is damaged.
    """
    members = ZipMembers(path)
    layers = _layers(parse_json(members.read(_CONFIG).tobytes()))
    content = archive.read_hdf5_bytes(members.read(_WEIGHTS))
    variables = _numbered(content, layers)
    file = _File(content, variables, layers, "Keras", os.fspath(path), layout)
    return _weights(file, fold_batchnorm)


def read_live(model: Any, *, layout: str | None = None, fold_batchnorm: bool = False) -> Weights:
    """Reads a model or a layer in memory.

    Args:
      model: of Keras 2 or 3, with any backend.
      layout, fold_batchnorm: as for `read_archive`.

    Raises:
      ValueError: if it has no variables.
    """
    layers = live_model(model)
    variables = []
    for path, kind, settings, arrays in live_layers(model):
        known = layers.get(path)
        if known is None and settings.get("padding") == "valid":
            del settings["padding"]  # Only a graph tells whether the input is padded before.
        if known is not None or settings:
            known = known or Layer(path, kind, settings, (), "")
            known = dataclasses.replace(known, kind=kind, settings=settings or known.settings)
        kind = kind if "Conv" in kind else ""
        variables += [_Variable(path, name, array, kind, known) for name, array in arrays.items()]
    if not variables:
        raise ValueError("a Keras model without weights: build it, or call it once")
    optimizer, name = Hdf5({"": {}}, live_optimizer(model)), type(model).__name__
    return _weights(_File(optimizer, variables, layers, _LIVE, name, layout), fold_batchnorm)


def read_hdf5(
    path: str | os.PathLike, *, layout: str | None = None, fold_batchnorm: bool = False
) -> Weights | None:
    """Reads an ``.h5`` or ``.weights.h5`` file; returns None if Keras has not written it.

    Args:
      path: the file.
      layout: the axes of kernels if the user gives them.
      fold_batchnorm: multiplies a kernel by the scale of the BatchNormalization that follows it; in
        a file without a configuration, of the one that its name tells.

    Raises:
      ValueError: if it is damaged.
    """
    content = archive.read_hdf5(path)
    config = content.groups[""].get("model_config")
    layers = _layers(parse_json(config)) if config else {}
    for root in ("model_weights/", ""):
        if content.texts(root.rstrip("/"), "layer_names") is not None:
            variables = _named(content, root, layers)
            file = _File(content, variables, layers, _LISTED, os.fspath(path), layout)
            return _weights(file, fold_batchnorm)
    variables = _numbered(content, {})
    if variables:
        file = _File(content, variables, {}, "Keras weights", os.fspath(path), layout)
        return _weights(file, fold_batchnorm)
    unnamed = {name: array for name, array in content.arrays.items() if _OLDEST.fullmatch(name)}
    if unnamed:
        return _oldest(unnamed, os.fspath(path), layout)
    return None


def _layers(config: Any) -> dict[str, Layer]:
    """Returns the layers that a configuration lists; none for a model of the user's own class."""
    settings = config.get("config") if isinstance(config, dict) else None
    own = isinstance(settings, dict) and not isinstance(settings.get("layers"), list)
    if own and (config.get("registered_name") or config.get("class_name") not in _MODELS):
        return {}
    return all_layers(read_model(config))


def _oldest(arrays: Mapping[str, StoredArray], path: str, layout: str | None) -> Weights:
    """Reads the numbered arrays of a Keras before 1.0, which notes neither names nor axes."""
    ordered = {name: arrays[name] for name in sorted(arrays, key=natural_order)}
    found = find_kernels(
        ordered, rule=None, usual=None, layout=layout, fold_batchnorm=False, in_order=True
    )
    return Weights(
        kernels={name.rpartition("/")[0]: kernel for name, kernel in found.kernels.items()},
        skipped=found.skipped,
        source=path,
        format="Keras before 1.0",
        order="file",
        layout=found.layout,
        notes=found.notes + ((_MAYBE_TURNED,) if OIHW in found.layout else ()),
        first=(found.first or "").rpartition("/")[0] or None,
    )


@dataclasses.dataclass(frozen=True)
class _Variable:
    """An array of a layer, with the layer's class and settings where the file tells them."""

    layer: str
    name: str
    array: StoredArray
    kind: str
    known: Layer | None


def _named(content: Hdf5, root: str, layers: Mapping[str, Layer]) -> list[_Variable]:
    """Returns the variables of a file that lists their names layer by layer."""
    by_name = {path.rsplit("/", 1)[-1]: layer for path, layer in layers.items()}
    found = []
    for group in content.texts(root.rstrip("/"), "layer_names") or []:
        for name in content.texts(f"{root}{group}", "weight_names") or []:
            array = content.arrays.get(f"{root}{group}/{name}")
            if array is None:
                raise ValueError(f"the weight {name!r} of {group!r} is not in the file")
            path, _, leaf = name.split(":")[0].rpartition("/")
            known = layers.get(path) or by_name.get(path.rsplit("/", 1)[-1])
            outer, inner = layers.get(group), path.removeprefix(f"{group}/")
            if known is None and outer is not None:
                # A layer inside one of the user's own class has a name behind that one's.
                within = inner not in ("", group) and "Conv" not in outer.kind
                known = None if within else outer
                path = f"{outer.path}/{inner}"
            kind = known.kind if known else class_of(path)
            found.append(
                _Variable(known.path if known else path or group, leaf, array, kind, known)
            )
    return found


def _numbered(content: Hdf5, layers: Mapping[str, Layer]) -> list[_Variable]:
    """Returns the variables of a file that numbers them, in the order of the layers if known."""
    keys = {layer.key: layer for layer in layers.values()}
    place = {layer.path: index for index, layer in enumerate(layers.values())}
    found = []
    for path, array in content.arrays.items():
        if not re.search(r"(^|/)vars/\d{1,9}$", path) or _OPTIMIZER.match(path):
            continue
        group, number = path.rsplit("/vars/", 1) if "/vars/" in path else ("", path[5:])
        key = "/".join(part for part in group.split("/") if part != "layers")
        known, rest = owner(key, keys)
        name = content.given_name(group) or key
        if known is not None and set(rest) == {"layer"}:
            for _ in rest:
                known = wrapped(known)
        elif known is not None and rest:
            # A layer inside one of the user's own class, which the configuration does not list.
            name, known = "/".join((known.path, *name.split("/")[-len(rest) :])), None
        name = known.path if known else name
        kind = known.kind if known else class_of(key) or class_of(name)
        variables = variable_names(kind, known)
        index = int(number)
        leaf = variables[index] if index < len(variables) else number
        found.append(_Variable(name, leaf, array, kind, known))
    if not layers:
        return sorted(found, key=lambda variable: natural_order(variable.layer))

    def order(variable: _Variable) -> int:
        # A layer inside a layer of the user's own class takes that layer's place in the order.
        parts = variable.layer.split("/")
        outer = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((place[name] for name in outer if name in place), len(place))

    return sorted(found, key=order)


@dataclasses.dataclass(frozen=True)
class _File:
    """The content of a file, with what its configuration and its user say."""

    content: Hdf5
    variables: list[_Variable]
    layers: Mapping[str, Layer]
    format: str
    source: str
    layout: str | None

    def axes(self, variable: _Variable) -> str:
        """Returns the axes of a variable; Keras 1 has those of its configuration."""
        if self.layout is not None:
            return self.layout
        told = variable.known.settings.get("dim_ordering") if variable.known else None
        return OIHW if (told or self.ordering) == "th" else HWIO

    @functools.cached_property
    def ordering(self) -> str:
        """``th`` for axes of Theano, which an old file need not note, and ``tf`` for others."""
        if self.format != _LISTED or str(self.content.groups[""].get("keras_version", "")) >= "2":
            return "tf"
        shapes = [each.array.shape for each in self.variables if len(each.array.shape) == 4]
        theanos = any(looks_like_kernel(OIHW, s) > 2 > looks_like_kernel(HWIO, s) for s in shapes)
        return "th" if theanos else "tf"

    @property
    def is_turned(self) -> bool:
        """Returns whether the network was trained with Theano, which turns kernels by 180°."""
        backend = self.content.groups[""].get("backend")
        return (backend or self.content.groups.get("model_weights", {}).get("backend")) == _THEANO


def _weights(file: _File, fold_batchnorm: bool) -> Weights:
    listed = file.format in (_LISTED, _LIVE)
    kernels: dict[str, ConvKernel] = {}
    skipped: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    turned: dict[str, tuple[int, ...]] = {}
    axes: dict[str, None] = {}
    beside = {(each.layer, each.name): each.array.shape for each in file.variables}
    for variable in file.variables:
        label = f"{variable.layer}/{variable.name}"
        stored = file.axes(variable)
        reason = _why_not(variable, stored)
        if reason is None or reason == POINTWISE:
            kernel = _kernel(variable, stored, file, beside)
            is_turned = kernel.kind == TRANSPOSED and not file.layers
            (turned if is_turned else shapes)[label] = kernel.shape
        if reason is None and same_values(kernel, kernels.get(variable.layer)):
            reason = f"a second copy of {variable.layer}"
        if reason is not None:
            skipped[label] = reason
            continue
        outer = variable.layer.rpartition("/")[0]
        if same_values(kernel, kernels.get(outer)):
            # Without a configuration, the wrapper of the layer has come as a layer of its own.
            skipped[outer] = f"a second copy of {variable.layer}"
            del kernels[outer]
            shapes = {name: s for name, s in shapes.items() if name.rpartition("/")[0] != outer}
        axes[stored] = None
        kernels[variable.layer if variable.layer not in kernels else label] = kernel
    optimizer = sum(bool(_OPTIMIZER.match(path)) for path in file.content.arrays)
    if optimizer:
        skipped["optimizer"] = f"optimizer state: {optimizer} arrays"
    arrays = {f"{variable.layer}/{variable.name}": variable.array for variable in file.variables}
    notes: tuple[str, ...] = ()
    if fold_batchnorm and file.layers:
        kernels, notes = _fold(kernels, arrays, file.layers)
    elif fold_batchnorm:
        kernels, notes = fold.fold(kernels, arrays, in_order=listed, epsilon=_EPSILON)
    if file.is_turned:
        notes += (_TURNED,)
    elif OIHW in axes:
        notes += (_MAYBE_TURNED,)
    first = next(iter(shapes), None) if file.layers else first_layer(shapes, turned)
    first = first.rpartition("/")[0] if first else None
    known = {each.layer for each in file.variables if each.kind}
    told = known | {each.layer for each in file.variables if _bias(each, beside)}
    layers = {name.rpartition("/")[0]: shape for name, shape in shapes.items()}
    notes += turned_note(layers, told, first, known)
    return Weights(
        kernels=kernels,
        skipped=skipped,
        source=file.source,
        format=file.format,
        order="forward" if file.layers else "file" if listed else "name",
        layout=f"{' and '.join(axes) or HWIO} ({GIVEN if file.layout else BY_FORMAT})",
        notes=notes,
        first=first,
    )


def _why_not(variable: _Variable, axes: str) -> str | None:
    shape = variable.array.shape
    if len(shape) != 4:
        return describe_axes(variable.array)
    if 0 in shape:
        return "an empty array"
    if _NOT_KERNELS.search(variable.name):
        return f"4-D array {shape}: its name {variable.name!r} is not one of a kernel"
    if "Conv" not in variable.kind and not looks_like_kernel(axes, shape):
        return f"4-D array {shape}: no two axes can be a kernel's height and width"
    height, width, *_ = axes_to_hwio(axes)
    return POINTWISE if (shape[height], shape[width]) == (1, 1) else None


def _kernel(
    variable: _Variable,
    axes: str,
    file: _File,
    beside: Mapping[tuple[str, str], tuple[int, ...]],
) -> ConvKernel:
    weight = variable.array.read().transpose(axes_to_hwio(axes))
    if file.is_turned:
        weight = weight[::-1, ::-1]
    kh, kw, third, fourth = weight.shape
    known = variable.known
    groups = known.settings.get("groups", 1) if known else None
    kind = CONV
    if _is_depthwise(variable, weight.shape, beside):
        kind, groups = DEPTHWISE, third
        weight = weight.reshape(kh, kw, 1, third * fourth)
    elif _is_transposed(variable, weight.shape, beside):
        # Keras 1 kept the axes of a convolution.
        old = known is not None and "dim_ordering" in known.settings
        kind, weight = TRANSPOSED, weight if old else np.swapaxes(weight, 2, 3)
    return ConvKernel(
        weight,
        kind,
        stride=known.pair("strides") if known else None,
        padding=padding_before(known, file.layers) if known else None,
        dilation=known.pair("dilation_rate") if known else None,
        groups=groups,
    )


def _is_transposed(
    variable: _Variable,
    shape: tuple[int, ...],
    beside: Mapping[tuple[str, str], tuple[int, ...]],
) -> bool:
    """Returns whether a kernel has its outputs before its inputs, by its class or its bias."""
    if variable.kind:
        return variable.kind == "Conv2DTranspose"
    _, _, third, fourth = shape
    return third != fourth and _bias(variable, beside) == (third,)


def _bias(
    variable: _Variable, beside: Mapping[tuple[str, str], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Returns the shape of the bias of a kernel; variables of an unknown layer have numbers."""
    return beside.get((variable.layer, "1" if variable.name == "0" else "bias"))


def _is_depthwise(
    variable: _Variable,
    shape: tuple[int, ...],
    beside: Mapping[tuple[str, str], tuple[int, ...]],
) -> bool:
    """Returns whether a kernel has a group for each channel, by its class or what is beside it."""
    _, _, channels, multiplier = shape
    if variable.kind == "DepthwiseConv2D" or variable.name == "depthwise_kernel":
        return True
    if variable.kind or variable.name != "0" or channels == 1:
        return False
    # The variables of an unknown layer have numbers: a bias or a 1×1 kernel follows its kernel.
    after = beside.get((variable.layer, "1"), ())
    if len(after) == 4:
        return after[:3] == (1, 1, channels * multiplier)
    if multiplier != 1:
        return after == (channels * multiplier,)
    named = re.search(r"depthwise|dw", variable.layer.rsplit("/", 1)[-1], re.IGNORECASE)
    return after == (channels,) or (not after and named is not None)


def _fold(
    kernels: Mapping[str, ConvKernel],
    arrays: Mapping[str, StoredArray],
    layers: Mapping[str, Layer],
) -> tuple[dict[str, ConvKernel], tuple[str, ...]]:
    """Folds each BatchNormalization into the convolution that feeds it and nothing else."""
    users: dict[str, list[Layer]] = {}
    for layer in layers.values():
        for source in layer.inputs:
            users.setdefault(source, []).append(layer)
    folded = dict(kernels)
    done = 0
    for name, kernel in kernels.items():
        following = users.get(name, [])
        if [layer.kind for layer in following] != ["BatchNormalization"]:
            continue
        (norm,) = following
        variance = arrays.get(f"{norm.path}/moving_variance")
        scale = arrays.get(f"{norm.path}/gamma")
        linear = layers[name].settings.get("activation") in (None, "linear")
        if variance is None or variance.shape != kernel.shape[-1:] or not linear:
            continue
        epsilon = float(norm.settings.get("epsilon", _EPSILON))
        values = fold.Norm(scale.read() if scale else None, variance.read(), epsilon)
        folded[name] = values.fold(kernel)
        done += 1
    return folded, (f"BatchNorm folded into {done} of {len(kernels)} kernels",)
