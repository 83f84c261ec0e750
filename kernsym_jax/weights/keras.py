"""Reads models and weights of Keras 2 and 3: ``.keras``, ``.h5`` and ``.weights.h5``."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats import hdf5
from kernsym_jax.formats.arrays import StoredArray, natural_order, parse_json
from kernsym_jax.formats.hdf5 import Hdf5
from kernsym_jax.formats.keras_config import Layer, all_layers, read_model
from kernsym_jax.formats.zip_archive import ZipMembers
from kernsym_jax.weights import fold
from kernsym_jax.weights.conv_kernel import (
    CONV,
    DEPTHWISE,
    TRANSPOSED,
    ConvKernel,
    Padding,
    Weights,
)
from kernsym_jax.weights.kernels import POINTWISE, describe_axes
from kernsym_jax.weights.layout import HWIO, looks_like_kernel

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LISTED = "Keras HDF5"
_EPSILON = 1e-3
_OPTIMIZER = re.compile(r"(optimizer|optimizer_weights|_optimizer)/")
_CLASSES = {
    "conv2d": "Conv2D",
    "conv2d_transpose": "Conv2DTranspose",
    "depthwise_conv2d": "DepthwiseConv2D",
    "separable_conv2d": "SeparableConv2D",
    "batch_normalization": "BatchNormalization",
    "dense": "Dense",
}
# The variables of a layer in a .weights.h5 file have numbers instead of names.
_VARIABLES = {
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def is_keras_archive(names: list[str]) -> bool:
    """Returns whether a zip archive with these members is a ``.keras`` file."""
    return _CONFIG in names and _WEIGHTS in names


def read_archive(path: str | os.PathLike, *, fold_batchnorm: bool = False) -> Weights:
    """Reads a ``.keras`` file.

    Args:
      path: the file, a zip archive.
      fold_batchnorm: multiplies a kernel by the scale of the BatchNormalization that follows it.

    Raises:
      ValueError: if it is damaged.
    """
    members = ZipMembers(path)
    layers = all_layers(read_model(parse_json(members.read(_CONFIG).tobytes())))
    place = members.place(_WEIGHTS)
    if place is not None:
        content = hdf5.read(path, *place)
    else:
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            file.write(members.read(_WEIGHTS).data)
            file.flush()
            content = hdf5.read(file.name)
    return _weights(content, _numbered(content, layers), layers, "Keras", path, fold_batchnorm)


def read_hdf5(path: str | os.PathLike, *, fold_batchnorm: bool = False) -> Weights:
    """Reads an ``.h5`` or ``.weights.h5`` file.

    Args:
      path: the file.
      fold_batchnorm: multiplies a kernel by the scale of the BatchNormalization that follows it; in
        a file without a configuration, of the one that its name tells.

    Raises:
      ValueError: if it is damaged, or not from Keras.
    """
    content = hdf5.read(path)
    config = content.groups[""].get("model_config")
    layers = all_layers(read_model(parse_json(config))) if config else {}
    for root in ("model_weights/", ""):
        if "layer_names" in content.groups.get(root.rstrip("/"), {}):
            variables = _named(content, root, layers)
            return _weights(content, variables, layers, _LISTED, path, fold_batchnorm)
    variables = _numbered(content, {})
    if not variables:
        raise ValueError("an HDF5 file that is not from Keras: it has neither layer_names nor vars")
    return _weights(content, variables, {}, "Keras weights", path, fold_batchnorm)


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
    for group in content.groups[root.rstrip("/")]["layer_names"]:
        for name in content.groups.get(f"{root}{group}", {}).get("weight_names", []):
            array = content.arrays.get(f"{root}{group}/{name}")
            if array is None:
                raise ValueError(f"the weight {name!r} of {group!r} is not in the file")
            path, _, leaf = name.split(":")[0].rpartition("/")
            known = layers.get(path) or by_name.get(path.rsplit("/", 1)[-1]) or layers.get(group)
            kind = known.kind if known else _class_of(path.rsplit("/", 1)[-1])
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
        known = keys.get(key)
        kind = known.kind if known else _class_of(key.rsplit("/", 1)[-1])
        name = known.path if known else _given_name(content, group) or key
        variables = _variable_names(kind, known)
        index = int(number)
        leaf = variables[index] if index < len(variables) else number
        found.append(_Variable(name, leaf, array, kind, known))
    if layers:
        return sorted(found, key=lambda variable: place.get(variable.layer, len(place)))
    return sorted(found, key=lambda variable: natural_order(variable.layer))


def _given_name(content: Hdf5, group: str) -> str:
    """Returns the name that the file notes for a layer, after those of the models around it."""
    parts = group.split("/")
    names = []
    for index, part in enumerate(parts):
        if part != "layers":
            noted = content.groups.get("/".join([*parts[: index + 1], "vars"]), {}).get("name")
            names.append(noted or part)
    return "/".join(names)


def _variable_names(kind: str, known: Layer | None) -> tuple[str, ...]:
    names = _VARIABLES.get(kind, ("kernel", "bias") if "Conv" in kind else ())
    absent = set()
    if kind == "BatchNormalization" and known is not None:
        absent = {"gamma"} if known.settings.get("scale") is False else set()
        absent |= {"beta"} if known.settings.get("center") is False else set()
    return tuple(name for name in names if name not in absent)


def _class_of(key: str) -> str:
    return _CLASSES.get(re.sub(r"_\d+$", "", key), "")


def _weights(
    content: Hdf5,
    variables: list[_Variable],
    layers: Mapping[str, Layer],
    name: str,
    path: str | os.PathLike,
    fold_batchnorm: bool,
) -> Weights:
    listed = name == _LISTED
    kernels: dict[str, ConvKernel] = {}
    skipped: dict[str, str] = {}
    for variable in variables:
        label = f"{variable.layer}/{variable.name}"
        reason = _why_not(variable)
        if reason is not None:
            skipped[label] = reason
            continue
        layer = variable.layer if variable.layer not in kernels else label
        kernels[layer] = _kernel(variable, layers)
    optimizer = sum(bool(_OPTIMIZER.match(path)) for path in content.arrays)
    if optimizer:
        skipped["optimizer"] = f"optimizer state: {optimizer} arrays"
    arrays = {f"{variable.layer}/{variable.name}": variable.array for variable in variables}
    notes: tuple[str, ...] = ()
    if fold_batchnorm and layers:
        kernels, notes = _fold(kernels, arrays, layers)
    elif fold_batchnorm:
        kernels, notes = fold.fold(kernels, arrays, listed, _EPSILON)
    return Weights(
        kernels=kernels,
        skipped=skipped,
        source=os.fspath(path),
        format=name,
        order="forward" if layers else "file" if listed else "name",
        layout="HWIO (the format's rule)",
        notes=notes,
    )


def _why_not(variable: _Variable) -> str | None:
    shape = variable.array.shape
    if len(shape) != 4:
        return describe_axes(variable.array)
    if 0 in shape:
        return "an empty array"
    if "Conv" not in variable.kind and not looks_like_kernel(HWIO, shape):
        return f"4-D array {shape}: no two axes can be a kernel's height and width"
    return POINTWISE if shape[:2] == (1, 1) else None


def _kernel(variable: _Variable, layers: Mapping[str, Layer]) -> ConvKernel:
    weight = variable.array.read()
    kh, kw, third, fourth = weight.shape
    known = variable.known
    groups = known.settings.get("groups", 1) if known else None
    kind = CONV
    if variable.kind == "DepthwiseConv2D" or variable.name == "depthwise_kernel":
        kind, groups = DEPTHWISE, third
        weight = weight.reshape(kh, kw, 1, third * fourth)
    elif variable.kind == "Conv2DTranspose":
        kind, weight = TRANSPOSED, np.swapaxes(weight, 2, 3)
    return ConvKernel(
        weight,
        kind,
        stride=known.pair("strides") if known else None,
        padding=_padding_before(known, layers) if known else None,
        dilation=known.pair("dilation_rate") if known else None,
        groups=groups,
    )


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
        linear: Any = layers[name].settings.get("activation")
        if (
            variance is None
            or variance.shape != kernel.shape[-1:]
            or linear not in (None, "linear")
        ):
            continue
        epsilon = float(norm.settings.get("epsilon", _EPSILON))
        values = fold.Norm(scale.read() if scale else None, variance.read(), epsilon)
        folded[name] = values.fold(kernel)
        done += 1
    return folded, (f"BatchNorm folded into {done} of {len(kernels)} kernels",)


def _padding_before(layer: Layer, layers: Mapping[str, Layer]) -> Padding | None:
    """Returns the padding of a convolution, including that of a ZeroPadding2D in front of it."""
    rule = layer.settings.get("padding")
    if rule == "same":
        return "SAME"
    if rule != "valid":
        return None
    feeding = [layers[path] for path in layer.inputs if path in layers]
    if len(feeding) == 1 and feeding[0].kind == "ZeroPadding2D":
        value = feeding[0].settings.get("padding")
        if isinstance(value, int):
            return (value, value), (value, value)
        if isinstance(value, list) and len(value) == 2:
            rows, columns = (([side] * 2 if isinstance(side, int) else side) for side in value)
            return (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))
    return (0, 0), (0, 0)
