"""Trained weights as the variables of one of our models."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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
) -> dict[str, Any]:
    """Fits trained weights to a model.

    The source has the names of torchvision's model of the same name, or of akamaster's CIFAR
    ResNets (``layer1.0.conv1.weight``, perhaps after ``module.``), with kernels as (out, in, kh,
    kw)
    and dense layers as (out, in); or the names of our own models (``layer1_0/conv1/kernel``) with
    arrays as they are.

    Args:
      model: a module of ``kernsym_jax.models``.
      source: any file or directory that keeps arrays by name (PyTorch, safetensors, npz, msgpack,
        orbax, a run directory), or a mapping of arrays, nested or not.
      input_shape: (batch, height, width, channels) of images that the model takes; None for
        224×224 images of as many channels as the source's first kernel has.

    Returns:
      ``{"params": …, "batch_stats": …}`` for ``model.apply``, of the model's own dtypes.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the source cannot be read, or does not fit: with the paths that are missing,
        left over, or of another shape.
    """
    import jax.numpy as jnp

    if isinstance(source, Mapping):
        leaves = checkpoint.model_arrays(checkpoint.leaves(source)).arrays
        arrays: Arrays = {"/".join(path): array for path, array in leaves.items()}
        label = "the mapping"
    else:
        arrays, label = read_arrays(source), os.fspath(source)
    found = _renamed(arrays)
    wanted = _variable_shapes(model, input_shape or _IMAGES)
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
        # A copy: the array may be a view of a mapped file, which must not be donated.
        node[path[-1]] = jnp.array(found[path].read().astype(target.dtype), copy=True)
    return tree


def _renamed(arrays: Arrays) -> dict[Path, StoredArray]:
    """The arrays under the paths, and in the layout, of our models' variables."""
    # Scalars are counters: of batches, of steps.
    arrays = {name: array for name, array in arrays.items() if array.shape}
    if any(re.search(r"(^|[./])kernel$", name) for name in arrays):
        return dict(_from_flax(name, array) for name, array in arrays.items())
    prefix = "module." if all(name.startswith("module.") for name in arrays) else ""
    return dict(_from_torch(name.removeprefix(prefix), array) for name, array in arrays.items())


def _from_flax(name: str, array: StoredArray) -> tuple[Path, StoredArray]:
    path = tuple(re.split(r"[./]", name))
    return (path if path[0] in ("params", "batch_stats") else ("params", *path)), array


def _from_torch(name: str, array: StoredArray) -> tuple[Path, StoredArray]:
    """``layer1.0.conv1.weight`` (out, in, kh, kw) becomes ``layer1_0/conv1/kernel``, turned."""
    layer, _, leaf = name.replace("/", ".").rpartition(".")
    path = tuple(re.sub(r"\.([0-9]+)(?=\.|$)", r"_\1", layer).split("."))
    if leaf != "weight":
        collection, leaf = _TORCH_LEAVES.get(leaf, ("params", leaf))
        return (collection, *path, leaf), array
    axes = _OUTPUT_FIRST.get(len(array.shape))
    if axes is None:
        return ("params", *path, "scale"), array
    shape = tuple(array.shape[axis] for axis in axes)
    kernel = StoredArray(shape, array.dtype, lambda: np.transpose(array.read(), axes))
    return ("params", *path, "kernel"), kernel


def _variable_shapes(model: "nn.Module", input_shape: Sequence[int]) -> dict[Path, Any]:
    import jax
    import jax.numpy as jnp

    images = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {tuple(str(key.key) for key in keys): leaf for keys, leaf in leaves}


def _input_channels(wanted: Mapping[Path, Any], found: Mapping[Path, StoredArray]) -> int:
    """The source's channels at the one kernel that differs from the model's in nothing else."""
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
