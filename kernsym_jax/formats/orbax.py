"""Reads checkpoints that are folders: of orbax of any kind, and of ``torch.distributed``.

The reader needs neither PyTorch nor the code of the model that was saved. An orbax checkpoint
lists a tree and holds a zarr array for every leaf, whatever devices it was saved from. The reader
takes the listing as it is and opens each array by itself with tensorstore, as orbax does: a damaged
array is one error, and an array that nobody asks for is not read.
"""

import dataclasses
import math
import os
import pathlib
import re
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    OPENED_FOLDER,
    Path,
    StoredArray,
    element_count,
    map_file,
    open_regular,
    parse_json,
    view,
)
from kernsym_jax.formats.pickle_data import Inert, Symbol, load_pickle
from kernsym_jax.formats.pytorch import plain_symbol, read_archive

MAX_ARRAYS = 20_000
MAX_CHUNKS = 500_000

METADATA = ".metadata"

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
        raise ValueError(f"a tree of {len(entries)} arrays, more than {MAX_ARRAYS}")
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


def is_distributed(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a checkpoint of ``torch.distributed.checkpoint``."""
    return (folder / METADATA).is_file() and next(folder.glob("*.distcp"), None) is not None


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a part of a tensor is saved."""

    file: str
    offset: int
    size: int


def read_distributed(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a checkpoint that several processes have saved together.

    Args:
      folder: with the file ``.metadata`` and the files of values (``__0_0.distcp``).

    Returns:
      The state dict that was saved, in nested dictionaries; every tensor in one piece.

    Raises:
      FileNotFoundError: if a file of values is missing.
      ValueError: if it is damaged, or asks for code to be run.
    """
    with open_regular(folder / METADATA) as file:
        metadata = load_pickle(file, plain_symbol)
    listing = metadata.attributes() if isinstance(metadata, Inert) else {}
    tensors, storage = listing.get("state_dict_metadata"), listing.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(storage, dict):
        raise ValueError(f"{METADATA} holds no listing of tensors")
    places = _places(storage)
    paths = listing.get("planner_data")
    values = _Files(folder)
    tree: dict[str, Any] = {}
    for name, entry in tensors.items():
        if not isinstance(entry, Inert) or "chunks" not in entry.attributes():
            continue  # a number, or another object: saved as bytes
        path = paths.get(name) if isinstance(paths, dict) else None
        _insert(
            tree,
            path if isinstance(path, tuple) and path else (name,),
            _tensor(str(name), entry.attributes(), places, values),
        )
    return tree


def _insert(tree: dict[str, Any], path: tuple[Any, ...], array: StoredArray) -> None:
    node = tree
    for key in path[:-1]:
        node = node.setdefault(str(key), {})
        if not isinstance(node, dict):
            raise ValueError(f"a tensor below another: {str(path)[:80]}")
    node[str(path[-1])] = array


def _places(storage: Any) -> dict[tuple[str, tuple[int, ...]], _Place]:
    """Returns (name of a tensor, offset of a part) -> where the part is saved."""
    found: dict[tuple[str, tuple[int, ...]], _Place] = {}
    if len(storage) > MAX_CHUNKS:
        raise ValueError(f"tensors in more than {MAX_CHUNKS} parts")
    for index, info in storage.items():
        key, value = index.attributes(), info.attributes()
        if value.get("transform_descriptors"):
            raise ValueError("tensors that are saved compressed or otherwise changed: not read")
        place = _Place(value["relative_path"], value["offset"], value["length"])
        if not isinstance(place.file, str) or not all(
            type(number) is int and number >= 0 for number in (place.offset, place.size)
        ):
            raise ValueError("a tensor without a place")
        found[key["fqn"], tuple(key.get("offset") or ())] = place
    return found


class _Files:
    """The files of values of a distributed checkpoint."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._open: dict[str, np.ndarray] = {}

    def part(self, place: _Place) -> np.ndarray:
        """Returns the bytes of a part: uint8 (size,)."""
        if place.file not in self._open:
            name = place.file
            if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"refused: {name[:80]!r} lies outside its own folder")
            path = self._folder / name
            if path.is_symlink() or not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, which {METADATA} expects")
            self._open[place.file] = map_file(path)
        return view(self._open[place.file], place.offset, np.dtype(np.uint8), (place.size,))


def _tensor(
    name: str,
    entry: Mapping[Any, Any],
    places: Mapping[tuple[str, tuple[int, ...]], _Place],
    values: _Files,
) -> StoredArray:
    """Returns a tensor put together from its parts when it is read."""
    shape = tuple(entry["size"])
    count = element_count(shape)
    dtype = _dtype(entry["properties"])
    parts: list[tuple[tuple[int, ...], tuple[int, ...], _Place]] = []
    for chunk in entry["chunks"]:
        fields = chunk.attributes()
        offsets, sizes = tuple(fields["offsets"]), tuple(fields["sizes"])
        element_count(offsets)
        element_count(sizes)
        ends = zip(offsets, sizes, shape, strict=True)
        if any(start + size > whole for start, size, whole in ends):
            raise ValueError(f"a part of {name!r} that reaches beyond its shape {shape}")
        place = places.get((name, offsets)) or places.get((name, ()))
        if place is None:
            raise ValueError(f"no place of a part of {name!r}")
        if element_count(sizes) * dtype.itemsize > values.part(place).size:
            raise ValueError(f"a part of {name!r} with {place.size} bytes for {sizes} of {dtype}")
        parts.append((offsets, sizes, place))
    filled = sum(element_count(sizes) for _, sizes, _ in parts)
    stored = sum(place.size for place in {place for *_, place in parts})
    if filled != count or count * dtype.itemsize > stored:
        raise ValueError(f"the parts of {name!r} do not fill its shape {shape}")

    def read() -> np.ndarray:
        if len(parts) == 1:
            return _part(name, values.part(parts[0][2]), shape, dtype)
        whole, known = np.zeros(shape, dtype), np.zeros(shape, bool)
        for offsets, sizes, place in parts:
            inside = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
            whole[inside] = _part(name, values.part(place), sizes, dtype)
            known[inside] = True
        # Parts that overlap leave zeros elsewhere.
        if not known.all():
            raise ValueError(f"the parts of {name!r} do not fill its shape {shape}")
        return whole

    return StoredArray(shape, dtype, read)


def _part(name: str, data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    tensor = read_archive(data)
    if not isinstance(tensor, StoredArray) or tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"a part of {name!r} is no tensor {shape} of {dtype}")
    return tensor.read()


def _dtype(properties: Any) -> np.dtype:
    """Returns the element type that a ``TensorProperties`` states."""
    state = properties.states[-1] if isinstance(properties, Inert) and properties.states else None
    found = state.get("dtype") if isinstance(state, dict) else state[0] if state else None
    if isinstance(found, Symbol) and isinstance(found.value, np.dtype):
        return found.value
    raise ValueError("a tensor of an unknown element type")
