"""Loads trained weights into one of our models."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernsym_jax.formats import containers
from kernsym_jax.formats.arrays import StoredArray
from kernsym_jax.weights import checkpoint
from kernsym_jax.weights.read import read_arrays

if TYPE_CHECKING:
    import flax.linen as nn

_LISTED = 5
_IMAGES = (1, 224, 224, 3)
_TORCH_LEAVES = {
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_OUTPUT_FIRST = {2: (1, 0), 4: (2, 3, 1, 0)}

Arrays = Mapping[str, StoredArray]
Path = tuple[str, ...]


def load_into(
    model: "nn.Module",
    source: str | os.PathLike | Mapping[str, Any],
    input_shape: Sequence[int] | None = None,
    *,
    trusted: bool = False,
) -> dict[str, Any]:
    """Loads trained weights as the variables of a model.

    The source has the names of torchvision's model, of antialiased-cnns' model, or of akamaster's
    CIFAR ResNets (``layer1.0.conv1.weight``), with kernels (out, in, kh, kw) and dense layers (out,
    in); or it has the names and layouts of our own models (``layer1_0/conv1/kernel``). Any prefix
    may stand before the names (``module.``, ``model.backbone.``).

    Args:
      model: a module of ``kernsym_jax.models``.
      source: any file or directory that keeps arrays by name (PyTorch, safetensors, npz, msgpack,
        orbax, a run directory), or a mapping of arrays, nested or not.
      input_shape: (batch, height, width, channels) of the images that the model takes; None for
        224×224 images with as many channels as the source's first kernel.
      trusted: as for `read`.

    Returns:
      ``{"params": …, "batch_stats": …}`` for ``model.apply``, in the model's own dtypes.

    Raises:
      FileNotFoundError: if the source does not exist.
      ValueError: if the source cannot be read, or does not fit; the message names the paths that
        are missing, that the model lacks, or that have another shape.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import models, weights
    >>> model = models.create("small_cnn", num_classes=10)
    >>> stored = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> variables = weights.load_into(model, stored, input_shape=(1, 8, 8, 1))
    >>> model.apply(variables, jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    import jax.numpy as jnp

    if isinstance(source, Mapping):
        leaves = containers.leaves(source)
        kept = checkpoint.model_arrays(leaves.arrays, leaves.optimizers).arrays
        arrays: Arrays = {"/".join(path): array for path, array in kept.items()}
        label = "the mapping"
    else:
        arrays, label = read_arrays(source, trusted=trusted), os.fspath(source)
    wanted = _variable_shapes(model, input_shape or _IMAGES)
    found = _without_prefix(_renamed(arrays), wanted)
    if input_shape is None:
        channels = _input_channels(wanted, found)
        if channels != _IMAGES[-1]:
            wanted = _variable_shapes(model, (*_IMAGES[:-1], channels))
    _require_fit(wanted, {path: array.shape for path, array in found.items()}, model, label)
    tree: dict[str, Any] = {}
    for path, target in wanted.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        # Copied, because JAX may donate the buffer, and the array may be a view of a mapped file.
        node[path[-1]] = jnp.array(found[path].read().astype(target.dtype), copy=True)
    return tree


def _renamed(arrays: Arrays) -> dict[Path, StoredArray]:
    """Returns the arrays under the paths and in the layouts of our models' variables."""
    # Scalars count batches or steps.
    arrays = {name: array for name, array in arrays.items() if array.shape}
    if any(re.search(r"(^|[./])kernel$", name) for name in arrays):
        return dict(_from_flax(name, array) for name, array in arrays.items())
    # The filters of BlurPool are fixed.
    names, _ = without_blur(list(arrays))
    renamed = zip(names, arrays.values(), strict=True)
    return dict(_from_torch(name, array) for name, array in renamed if name is not None)


def _without_prefix(
    found: Mapping[Path, StoredArray], wanted: Mapping[Path, Any]
) -> dict[Path, StoredArray]:
    """Removes a prefix of the names of all layers, such as ``model/backbone``."""
    (collection, *first) = next(path for path, leaf in wanted.items() if len(leaf.shape) == 4)
    prefixes = [
        path[1 : len(path) - len(first)]
        for path in found
        if path[0] == collection and list(path[len(path) - len(first) :]) == first
    ]

    def layers_behind(prefix: Path) -> int:
        return sum((path[0], *prefix, *path[1:]) in found for path in wanted)

    # The first of those that fit equally well, so that every process chooses the same one.
    prefix = max(dict.fromkeys(prefixes), key=layers_behind, default=())
    return {
        (path[0], *path[1 + len(prefix) :]) if path[1 : 1 + len(prefix)] == prefix else path: array
        for path, array in found.items()
    }


def _from_flax(name: str, array: StoredArray) -> tuple[Path, StoredArray]:
    path = tuple(re.split(r"[./]", name))
    return (path if path[0] in ("params", "batch_stats") else ("params", *path)), array


def _from_torch(name: str, array: StoredArray) -> tuple[Path, StoredArray]:
    """Turns ``layer1.0.conv1.weight`` (out, in, kh, kw) into ``layer1_0/conv1/kernel`` of ours."""
    layer, _, leaf = name.replace("/", ".").rpartition(".")
    path = tuple(flax_layer(layer).split("/"))
    if leaf != "weight":
        collection, leaf = _TORCH_LEAVES.get(leaf, ("params", leaf))
        return (collection, *path, leaf), array
    axes = _OUTPUT_FIRST.get(len(array.shape))
    if axes is None:
        return ("params", *path, "scale"), array
    shape = tuple(array.shape[axis] for axis in axes)
    kernel = StoredArray(shape, array.dtype, lambda: np.transpose(array.read(), axes))
    return ("params", *path, "kernel"), kernel


def flax_layer(name: str) -> str:
    """Returns the path in our models of a layer with PyTorch's name.

    Args:
      name: such as ``layer1.0.conv1``.

    Returns:
      Such as ``layer1_0/conv1``: a number joins the name before it, and a slash replaces each dot.

    >>> from kernsym_jax import weights
    >>> weights.flax_layer("layer1.0.conv1")
    'layer1_0/conv1'
    """
    # torchvision's DenseNet files keep the names of its first version: ``norm.1`` for ``norm1``.
    name = re.sub(r"(denselayer[0-9]+\.(?:norm|conv))\.([12])(?=\.|$)", r"\1\2", name)
    return re.sub(r"\.([0-9]+)(?=\.|$)", r"_\1", name).replace(".", "/")


def without_blur(names: Sequence[str]) -> tuple[list[str | None], str]:
    """Renumbers layers as if there were no filters of BlurPool between them.

    Networks of antialiased-cnns have ``downsample.0.filt`` before ``downsample.1.weight``, and
    ``conv2.0.filt`` before ``conv2.1.weight``; without blur these are ``downsample.0.weight`` and
    ``conv2.weight``.

    Returns:
      The new names, None for a filter; and the downsampling.
    """
    filters: dict[str, list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(?:(.*)\.)?(\d+)\.filt", name)
        if match:
            filters.setdefault(match[1] or "", []).append(int(match[2]))
    if not filters:
        return list(names), "stride"

    def renumbered(name: str) -> str | None:
        if name.endswith(".filt"):
            return None
        for parent, removed in filters.items():
            match = re.fullmatch(re.escape(parent) + r"\.(\d+)(\..*)", name)
            if match:
                number = int(match[1]) - sum(index < int(match[1]) for index in removed)
                alone = re.search(r"(^|\.)conv\d$", parent) and number == 0
                return f"{parent}{match[2]}" if alone else f"{parent}.{number}{match[2]}"
        return name

    return [renumbered(name) for name in names], "blur"


def _variable_shapes(model: "nn.Module", input_shape: Sequence[int]) -> dict[Path, Any]:
    import jax
    import jax.numpy as jnp

    images = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    # A network of the user's own may need the argument, and another may not know it.
    takes_train = "train" in inspect.signature(type(model).__call__).parameters
    fixed: dict[str, Any] = {"train": False} if takes_train else {}
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **fixed), images)
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {tuple(str(key.key) for key in keys): leaf for keys, leaf in leaves}


def _input_channels(wanted: Mapping[Path, Any], found: Mapping[Path, StoredArray]) -> int:
    """Returns the input channels of the one kernel that differs from the model's only in them."""
    other = [
        found[path].shape[2]
        for path, target in wanted.items()
        if len(target.shape) == 4
        and path in found
        and found[path].shape != target.shape
        and target.shape[2] == _IMAGES[-1]
        and np.delete(found[path].shape, 2).tolist() == np.delete(target.shape, 2).tolist()
    ]
    return other[0] if len(other) == 1 else _IMAGES[-1]


def _require_fit(
    wanted: Mapping[Path, Any], found: Mapping[Path, tuple[int, ...]], model: Any, label: str
) -> None:
    missing = ["/".join(path) for path in wanted if path not in found]
    extra = ["/".join(path) for path in found if path not in wanted]
    bent = [
        f"{'/'.join(path)} {found[path]} instead of {target.shape}"
        for path, target in wanted.items()
        if path in found and found[path] != target.shape
    ]
    problems = {"missing": missing, "not in the model": extra, "of another shape": bent}
    if any(problems.values()):
        parts = [
            f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names
        ]
        raise ValueError(f"{label} does not fit {type(model).__name__}: {'; '.join(parts)}")


def _some(names: Sequence[str]) -> str:
    more = f", … {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
