"""Orbax checkpoints of any kind, read without the code of the model that was saved."""

import contextlib
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernsym_jax.weights.state_tree import Path, group
from kernsym_jax.weights.stored_array import DTYPES, StoredArray, element_count

_METADATA, _STEP_METADATA = "_METADATA", "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})", re.DOTALL)
# As for archives: arrays may take eight times the files' size, and a little is always allowed.
_FREE_SIZE = 256 << 20


def read_tree(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint into host memory, whatever devices it was saved from.

    Args:
      path: a checkpoint (v0 or v1), one step of a CheckpointManager, or the folder of its steps, of
        which the newest complete one is read.

    Returns:
      Nested dictionaries of NumPy arrays; lists have become dictionaries with numbers as keys. A
      step of several items has one dictionary for each.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if it is damaged.
    """
    tree: dict[str, Any] = {}
    for location, array in read_arrays(path).items():
        node = tree
        for key in location[:-1]:
            node = node.setdefault(key, {})
        node[location[-1]] = array.read()
    return tree


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a folder is an orbax checkpoint, or holds numbered ones."""
    return bool(_items(pathlib.Path(path)))


def read_arrays(path: str | os.PathLike) -> dict[Path, StoredArray]:
    """Reads what a checkpoint holds.

    Values are read when first asked for: then those of the whole network, or the whole optimizer,
    come in one go.

    Args:
      path: as in `read_tree`.

    Returns:
      path in the tree -> array.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if it is damaged.
    """
    items = _items(pathlib.Path(path))
    if not items:
        raise FileNotFoundError(f"{path}: no complete orbax checkpoint there")
    arrays: dict[Path, StoredArray] = {}
    for name, folder in items.items():
        prefix = (name,) if len(items) > 1 else ()
        arrays |= {prefix + key: array for key, array in _Item(folder).arrays().items()}
    return arrays


def _items(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The trees of a checkpoint, of the newest step if there are several."""
    if (path / _METADATA).is_file():
        return {path.name: path}
    folders = [child for child in sorted(path.iterdir()) if child.is_dir()] if path.is_dir() else []
    folders = [folder for folder in folders if _UNFINISHED not in folder.name]
    items = {folder.name: folder for folder in folders if (folder / _METADATA).is_file()}
    if items and (path.name.isdecimal() or (path / _STEP_METADATA).is_file()):
        return items
    steps = [
        (int(match[1]), folder) for folder in folders if (match := _STEP.fullmatch(folder.name))
    ]
    found = (_items(folder) for _, folder in sorted(steps, reverse=True))
    return next((trees for trees in found if trees), items if len(items) == 1 else {})


class _Item:
    """One tree of arrays on disk."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.resolve()
        self.tree = self._metadata()
        self.values: dict[Path, np.ndarray] = {}

    def arrays(self) -> dict[Path, StoredArray]:
        import jax

        return {
            _names(keys): StoredArray(tuple(leaf.shape), np.dtype(leaf.dtype), self._reader(keys))
            for keys, leaf in jax.tree_util.tree_flatten_with_path(self.tree)[0]
            if _is_array(leaf)
        }

    def _metadata(self) -> Any:
        import orbax.checkpoint as ocp

        # Read first by itself, for a clear word on a file that is no JSON.
        listing = json.loads((self.folder / _METADATA).read_text(encoding="utf-8"))
        if not isinstance(listing, dict) or not isinstance(listing.get("tree_metadata"), dict):
            raise ValueError(f"{_METADATA} does not describe a tree of arrays")
        try:
            with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                metadata = checkpointer.metadata(self.folder)
        # What a damaged checkpoint raises depends on where it is damaged.
        except Exception as error:
            raise ValueError(f"damaged orbax metadata ({_first_line(error)})") from error
        item = getattr(metadata, "item_metadata", metadata)
        return getattr(item, "tree", item)

    def _reader(self, keys: Any) -> Any:
        def read() -> np.ndarray:
            path = _names(keys)
            if path not in self.values:
                self._restore(group(path))
            return self.values[path]

        return read

    def _restore(self, wanted: str) -> None:
        import jax
        import orbax.checkpoint as ocp

        def target(keys: Any, leaf: Any) -> Any:
            chosen = _is_array(leaf) and group(_names(keys)) == wanted
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if chosen else ocp.PLACEHOLDER

        targets = jax.tree_util.tree_map_with_path(target, self.tree)
        self._refuse_bombs(targets)
        plain = ocp.RestoreArgs(restore_type=np.ndarray)
        arguments = ocp.args.PyTreeRestore(
            item=targets, restore_args=jax.tree.map(lambda _: plain, targets)
        )
        try:
            with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(self.folder, args=arguments)
        except Exception as error:
            raise ValueError(f"damaged orbax arrays ({_first_line(error)})") from error
        for keys, value in jax.tree_util.tree_flatten_with_path(restored)[0]:
            if value is not ocp.PLACEHOLDER:
                self.values[_names(keys)] = np.asarray(value)

    def _refuse_bombs(self, targets: Any) -> None:
        import jax

        stored = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        wanted = 0
        leaves = zip(jax.tree.leaves(targets), jax.tree.leaves(self.tree), strict=True)
        for target, leaf in leaves:
            if isinstance(target, jax.ShapeDtypeStruct):
                chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
                elements = max(element_count(leaf.shape), math.prod(chunk))
                wanted += elements * np.dtype(leaf.dtype).itemsize
        if wanted > max(_FREE_SIZE, 8 * stored):
            raise ValueError(f"refused: {stored} bytes of files that claim {wanted} of arrays")


def _is_array(leaf: Any) -> bool:
    if getattr(leaf, "shape", None) is None or getattr(leaf, "dtype", None) is None:
        return False
    return np.dtype(leaf.dtype).name in DTYPES


def _names(keys: Any) -> Path:
    """The names along a JAX key path."""
    parts = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in keys)
    return tuple(str(part) for part in parts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from logging what is no concern of someone who only reads."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
