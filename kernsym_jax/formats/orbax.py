"""Reads orbax checkpoints of any kind without the code of the model that was saved.

A checkpoint lists a tree and holds a zarr array for every leaf, whatever devices it was saved
from. The reader takes the listing as it is and opens each array by itself with tensorstore, as
orbax does: a damaged array is one error, and an array that nobody asks for is not read.
"""

import math
import os
import pathlib
import re
import stat
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    OPENED_FOLDER,
    Path,
    StoredArray,
    element_count,
    map_file,
    parse_json,
)

MAX_ARRAYS = 20_000

_LISTING, _STEP_LISTING, _MANIFEST = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})", re.DOTALL)
_DESCRIPTIONS = (".zarray", "zarr.json")
# Arrays may take this much, or eight times the size of the files, whichever is more.
_FREE_SIZE = 256 << 20


def read_tree(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint into host memory, whatever devices it was saved from.

    Args:
      path: a checkpoint (v0 or v1), one step of a CheckpointManager, or the folder of its steps, of
        which the newest complete one is read.

    Returns:
      Nested dictionaries of NumPy arrays; a list becomes a dictionary with numbers as keys. A step
      with several items has one dictionary for each.

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
    """Returns whether a folder is an orbax checkpoint or holds numbered ones."""
    return bool(_items(pathlib.Path(path)))


def steps(path: str | os.PathLike) -> dict[int, pathlib.Path]:
    """Finds the numbered checkpoints in a folder.

    Args:
      path: the folder of a CheckpointManager, or any folder.

    Returns:
      number -> folder of every complete checkpoint, in order; {} for a checkpoint itself.
    """
    path = pathlib.Path(path)
    if _is_item(path) or not path.is_dir():
        return {}
    items = _items(path)
    if any(folder.parent == path for folder in items.values()) and path.name.isdecimal():
        return {}
    return {number: folder for number, folder in sorted(_numbered(path)) if _items(folder)}


def read_arrays(
    path: str | os.PathLike, needed: Callable[[Path], bool] = lambda path: True
) -> dict[Path, StoredArray]:
    """Reads the tree of a checkpoint; each array reads its values when they are used.

    Args:
      path: as in `read_tree`.
      needed: says by its path whether the caller will read an array; only the sizes of such arrays
        count against the limit.

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
        found = _item_arrays(folder.resolve(), needed)
        arrays |= {prefix + key: array for key, array in found.items()}
    return arrays


def _items(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of a checkpoint's trees, of the newest step if there are several."""
    if _is_item(path):
        return {path.name: path}
    folders = _finished(path)
    items = {folder.name: folder for folder in folders if _is_item(folder)}
    if items and (path.name.isdecimal() or (path / _STEP_LISTING).is_file()):
        return items
    found = (_items(folder) for _, folder in sorted(_numbered(path), reverse=True))
    return next((trees for trees in found if trees), items if len(items) == 1 else {})


def _finished(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder, without those of checkpoints that are being written."""
    folders = [child for child in sorted(path.iterdir()) if child.is_dir()] if path.is_dir() else []
    return [folder for folder in folders if _UNFINISHED not in folder.name]


def _numbered(path: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """Returns the folders in a folder whose names end in a number, with that number."""
    matches = [(_STEP.fullmatch(folder.name), folder) for folder in _finished(path)]
    return [(int(match[1]), folder) for match, folder in matches if match]


def _is_item(folder: pathlib.Path) -> bool:
    return (folder / _LISTING).is_file() or (folder / _MANIFEST).is_file()


def _item_arrays(folder: pathlib.Path, needed: Callable[[Path], bool]) -> dict[Path, StoredArray]:
    """Opens the arrays of one tree."""
    import tensorstore

    stored = _size_of_files(folder)
    # The library opens files where no audit hook sees it.
    sys.audit(OPENED_FOLDER, str(folder), stored)
    paths, zarr3 = _listed(folder) if (folder / _LISTING).is_file() else _found(folder)
    store_of = _store(folder)
    opened = {
        path: tensorstore.open(
            {
                "driver": "zarr3" if zarr3 else "zarr",
                "kvstore": store_of(".".join(path)),
                # Lost values would be read as zeros; orbax writes those that are zeros.
                "fill_missing_data_reads": False,
            },
            open=True,
            read=True,
        )
        for path in paths
    }
    arrays: dict[Path, StoredArray] = {}
    claimed = 0
    for path, future in opened.items():
        store = _waited(future.result, path)
        dtype = np.dtype(store.dtype.numpy_dtype)
        if dtype.name in DTYPES:
            chunk = math.prod(size or 1 for size in store.chunk_layout.read_chunk.shape or ())
            elements = max(element_count(store.shape), chunk)
            if needed(path):
                claimed += elements * dtype.itemsize
            arrays[path] = StoredArray(tuple(store.shape), dtype, _reader(store, path))
    if claimed > max(_FREE_SIZE, 8 * stored):
        raise ValueError(f"refused: {stored} bytes of files that claim {claimed} of arrays")
    return arrays


def _size_of_files(folder: pathlib.Path) -> int:
    """Returns the bytes of a folder's files; all must be regular and lie in it, links included."""
    total = 0
    for place in folder.rglob("*"):
        if place.is_symlink() and not _leads_into(place, folder):
            raise ValueError(f"refused: {place.name!r} is a link that leads out of the checkpoint")
        status = place.stat()
        if stat.S_ISREG(status.st_mode):
            total += status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"refused: {place.name!r} is neither a file nor a folder")
    return total


def _leads_into(link: pathlib.Path, folder: pathlib.Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):  # a link that leads nowhere, or to itself
        return False


def _store(folder: pathlib.Path) -> Callable[[str], dict[str, Any]]:
    """Returns a function that tells tensorstore where an array of the tree is."""
    files = {"driver": "file", "path": f"{folder}/"}
    if (folder / _MANIFEST).is_file():
        return lambda name: {"driver": "ocdbt", "base": files, "path": f"{name}/" if name else ""}
    return lambda name: files | {"path": f"{folder}/{name}/"}


def _reader(store: Any, path: Path) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(_waited(lambda: store.read().result(), path))


def _waited(result: Callable[[], Any], path: Path) -> Any:
    try:
        return result()
    # Tensorstore raises plain exceptions for damaged files.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the array {'/'.join(path)} is damaged ({lines[0][:200]})") from error


def _listed(folder: pathlib.Path) -> tuple[list[Path], bool]:
    """Returns the paths of the arrays in the listing, and whether they are in zarr 3."""
    listing = parse_json(map_file(folder / _LISTING).tobytes())
    entries = listing["tree_metadata"]
    if len(entries) > MAX_ARRAYS:
        raise ValueError(f"a tree of {len(entries)} arrays")
    paths = []
    for entry in entries.values():
        value = entry.get("value_metadata") or {}
        if not value.get("skip_deserialize") and value.get("value_type") not in ("None", "string"):
            paths.append(tuple(str(key["key"]) for key in entry["key_metadata"]))
    return paths, bool(listing.get("use_zarr3"))


def _found(folder: pathlib.Path) -> tuple[list[Path], bool]:
    """Returns the same for an old checkpoint without a listing, from the names of its arrays."""
    import tensorstore

    store = tensorstore.KvStore.open(_store(folder)(""))
    keys = _waited(lambda: store.result().list().result(), (folder.name,))
    names = [key.decode("utf-8").rpartition("/") for key in keys]
    described = {head: tail for head, _, tail in names if tail in _DESCRIPTIONS}
    paths = [tuple(head.split(".")) for head in described]
    return paths, "zarr.json" in described.values()
