"""Finds the network's arrays in a checkpoint that also holds an optimizer or moving averages."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import Path, StoredArray
from kernsym_jax.formats.pickle_data import Inert, NumpyArray

MAX_DEPTH = 64
MAX_NAME = 1000

_OPTIMIZER = re.compile(
    r"opt(im(izers?)?)?([_-].*)?$|.*_optimizer(_.*)?$|lr_sched.*|"
    r"(amp|scaler|grad_scaler|scheduler|loops|callbacks)$",
    re.IGNORECASE,
)
_AVERAGE = re.compile(r"(.*[_-])?(ema|averaged?|avg|shadow|swa)([_-].*)?$", re.IGNORECASE)
_WRAPPERS = frozenset(
    [
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "module",
        "params",
        "weights",
        "state",
        "variables",
        "target",
        "default",
        "item",
        "items",
        "train_state",
        "params_ema",
        "ema",
        "ema_params",
        "ema_state_dict",
        "state_dict_ema",
        "model_ema",
    ]
)
_BOXES = ("value", "raw_value")
_STEP_KEYS = ("step", "global_step", "iteration", "iter", "epoch")


@dataclasses.dataclass(frozen=True)
class ModelArrays:
    """The arrays of a checkpoint that belong to the network.

    Attributes:
      arrays: path -> array, without wrapping containers such as ``params`` or ``state_dict``.
      skipped: name of a group of other arrays -> the reason why it is left out.
      notes: remarks, such as that the file holds only a moving average.
    """

    arrays: dict[Path, StoredArray]
    skipped: dict[str, str]
    notes: tuple[str, ...]


def model_arrays(arrays: Mapping[Path, StoredArray]) -> ModelArrays:
    """Finds the network in a checkpoint that may hold more.

    Args:
      arrays: path -> array, of a state dict, a TrainState or a training script's own dictionary.
    """
    groups: dict[str, dict[Path, StoredArray]] = {"model": {}, "optimizer": {}, "average": {}}
    for path, array in arrays.items():
        groups[group(path)][path] = array
    chosen = groups["model"]
    notes: tuple[str, ...] = ()
    if not _has_kernels(chosen) and _has_kernels(groups["average"]):
        chosen, groups["average"] = groups["average"], {}
        notes = ("the weights are a moving average: the file has no others",)
    skipped: dict[str, str] = {}
    for kind, reason in (("optimizer", "optimizer state"), ("average", "moving average")):
        skipped |= _summarize(groups[kind], reason)
    return ModelArrays(_without_wrappers(chosen), skipped, notes)


def containers(source: Any) -> Any:
    """Turns weights in memory into nested mappings of arrays.

    Args:
      source: mappings and sequences of arrays, which stay as they are; an object with a method
        ``state_dict``, such as a module of PyTorch; or any pytree of JAX, such as a TrainState or a
        module of ``flax.nnx``.

    Returns:
      A container for `leaves`.
    """
    if isinstance(source, Mapping | Sequence):
        return source
    if callable(getattr(source, "state_dict", None)):
        return source.state_dict()
    import jax

    tree: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(source)[0]:
        *above, last = [jax.tree_util.keystr((key,), simple=True) for key in keys] or ["array"]
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def leaves(tree: Any) -> dict[Path, StoredArray]:
    """Returns every array of a nested container by its path; visits each container once.

    Raises:
      ValueError: if the containers are nested more than `MAX_DEPTH` deep.
    """
    return dict(_leaves(tree, (), {}))


def _leaves(node: Any, path: Path, seen: dict[int, Any]) -> Iterator[tuple[Path, StoredArray]]:
    if isinstance(node, NumpyArray):
        node = node.array
    if isinstance(node, StoredArray):
        yield path, node
    elif hasattr(node, "__array__"):  # an array of NumPy, JAX or another library
        yield path, StoredArray.of(_on_host(node))
    elif isinstance(node, Inert | Mapping | Sequence) and not isinstance(node, str | bytes):
        # A small file can name one container many times, and would unfold without end.
        if id(node) in seen:
            return
        # The reference keeps a container that was made on access alive, and so its id unique.
        seen[id(node)] = node
        if len(path) >= MAX_DEPTH:
            raise ValueError(f"containers nested more than {MAX_DEPTH} deep")
        for key, child in _children(node):
            # The path of every array below repeats the name.
            if len(key) > MAX_NAME:
                raise ValueError(f"a name of {len(key)} characters: {key[:40]!r}…")
            yield from _leaves(child, (*path, key), seen)


def _on_host(array: Any) -> Any:
    """Takes a tensor of PyTorch off its device and out of its graph; returns others unchanged."""
    for step in ("detach", "cpu"):
        if callable(getattr(array, step, None)):
            array = getattr(array, step)()
    return array


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Inert):
        node = node.attributes
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, child in items:
        yield (key if isinstance(key, str) else str(getattr(key, "name", key))), child


def step(tree: Any) -> int | None:
    """Returns the number of steps after which a checkpoint says it was saved, else of epochs.

    Args:
      tree: the containers of the checkpoint.
    """
    if isinstance(tree, Inert):
        tree = tree.attributes
    if not isinstance(tree, Mapping):
        return None
    for name in _STEP_KEYS:
        value = tree.get(name)
        if isinstance(value, NumpyArray):
            value = value.array
        if isinstance(value, StoredArray) and value.shape == () and value.dtype.kind in "iu":
            value = value.read()
        if isinstance(value, int | np.integer | np.ndarray) and np.ndim(value) == 0:
            return int(value)
    return None


def kernel_leaves(arrays: Mapping[Path, StoredArray]) -> set[str]:
    """Returns the last names of the arrays of four axes, such as ``kernel``."""
    names = set()
    for path, array in arrays.items():
        if len(array.shape) == 4:
            inner = [key for key in path if key not in _BOXES] or [path[-1]]
            names.add(inner[-1].rpartition(".")[2])
    return names


def group(path: Path) -> str:
    """Returns what the array at a path belongs to: ``model``, ``optimizer`` or ``average``."""
    for key in path[:-1]:
        if _OPTIMIZER.match(key):
            return "optimizer"
        if _AVERAGE.match(key):
            return "average"
    return "model"


def is_needed(path: Path) -> bool:
    """Returns whether the array at a path is read: every array but the optimizer's."""
    return group(path) != "optimizer"


def _has_kernels(arrays: Mapping[Path, StoredArray]) -> bool:
    return any(len(array.shape) == 4 for array in arrays.values())


def _summarize(arrays: Mapping[Path, StoredArray], reason: str) -> dict[str, str]:
    counts: dict[str, int] = {}
    for path in arrays:
        counts[path[0]] = counts.get(path[0], 0) + 1
    return {
        name: f"{reason}: {count} array{'s' if count > 1 else ''}" for name, count in counts.items()
    }


def _without_wrappers(arrays: dict[Path, StoredArray]) -> dict[Path, StoredArray]:
    """Drops boxes at the end of paths, and the wrapping containers of all kernels."""
    arrays = {
        (path[:-1] if len(path) > 1 and path[-1] in _BOXES else path): array
        for path, array in arrays.items()
    }
    while True:
        kernels = [path for path, array in arrays.items() if len(array.shape) == 4]
        heads = {path[0] for path in kernels}
        if len(heads) != 1 or not heads <= _WRAPPERS or min(map(len, kernels)) == 1:
            return arrays
        arrays = {
            (path[1:] if path[0] in heads and len(path) > 1 else path): array
            for path, array in arrays.items()
        }
