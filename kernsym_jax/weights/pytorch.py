"""PyTorch checkpoints (zip, legacy and TorchScript), read without PyTorch."""

import io
import os
import pathlib
from typing import IO, Any

import numpy as np

from kernsym_jax.weights import restricted_pickle, torch_pickle
from kernsym_jax.weights.restricted_pickle import Symbol
from kernsym_jax.weights.stored_array import map_file, view
from kernsym_jax.weights.torch_pickle import Storage
from kernsym_jax.weights.zip_members import ZipMembers

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_archive(path: str | os.PathLike) -> Any:
    """Reads a ``torch.save`` file or a TorchScript archive, both zip archives.

    Args:
      path: a file that starts with ``PK``.

    Returns:
      What was saved, tensors as `StoredArray`; the objects of a TorchScript archive as records of
      their attributes.

    Raises:
      ValueError: if it is damaged, not from PyTorch, or holds more than tensors and containers.
    """
    members = ZipMembers(path)
    roots = [name for name in members.names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("a zip archive without a PyTorch checkpoint in it (no data.pkl)")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" not in members:
        return _read_pickle(members, folder, "data", torch_pickle.symbol)
    # TorchScript; a frozen module has its weights among the constants.
    return {
        "module": _read_pickle(members, folder, "data", torch_pickle.script_symbol),
        "constants": _read_pickle(members, folder, "constants", torch_pickle.script_symbol),
    }


def read_legacy(path: str | os.PathLike) -> Any:
    """Reads a checkpoint of PyTorch before 1.6, or a plain pickle of NumPy arrays.

    Args:
      path: a file that starts with a pickle.

    Returns:
      What was saved, tensors as `StoredArray`.

    Raises:
      ValueError: if it is damaged, or holds more than tensors and containers.
    """
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}
    data = map_file(path)

    def storage(reference: Any) -> Storage:
        dtype, key, size = _storage_reference(reference)
        if key not in storages:
            storages[key] = Storage(
                dtype, size, lambda: view(data, starts[key], np.dtype(np.uint8), (nbytes(key),))
            )
        return storages[key]

    def nbytes(key: str) -> int:
        return storages[key].size * storages[key].dtype.itemsize

    with pathlib.Path(path).open("rb") as file:
        first = restricted_pickle.load(file, torch_pickle.symbol, storage)
        if first != _LEGACY_MAGIC:
            return first
        if restricted_pickle.load(file, torch_pickle.symbol) != _LEGACY_PROTOCOL:
            raise ValueError("a PyTorch file of an unknown protocol")
        restricted_pickle.load(file, torch_pickle.symbol)
        tree = restricted_pickle.load(file, torch_pickle.symbol, storage)
        order = restricted_pickle.load(file, torch_pickle.symbol)
        position = file.tell()
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(storages):
        raise ValueError("the file's list of storages is not that of its tensors")
    for key in map(str, order):
        size = int(view(data, position, np.dtype("<i8"), ()))
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} elements instead of {storages[key].size}")
        starts[key] = position + 8
        view(data, starts[key], np.dtype(np.uint8), (nbytes(key),))
        position = starts[key] + nbytes(key)
    return tree


def _read_pickle(members: ZipMembers, folder: str, stem: str, allowed: Any) -> Any:
    storages: dict[str, Storage] = {}
    order = f"{folder}byteorder"
    swapped = order in members and members.head(order, 6) == b"big"

    def storage(reference: Any) -> Storage:
        dtype, key, size = _storage_reference(reference)
        if key not in storages:
            name = f"{folder}{stem}/{key}"
            if name not in members:
                raise ValueError(f"{name} is missing from the archive")
            if members.size(name) != size * dtype.itemsize:
                raise ValueError(f"{name} has {members.size(name)} bytes for {size} of {dtype}")
            storages[key] = Storage(
                dtype, size, lambda: _native(members.read(name), dtype, swapped)
            )
        return storages[key]

    file: IO[bytes] = io.BytesIO(members.read(f"{folder}{stem}.pkl").tobytes())
    return restricted_pickle.load(file, allowed, storage)


def _native(data: np.ndarray, dtype: np.dtype, swapped: bool) -> np.ndarray:
    if not swapped or dtype.itemsize == 1:
        return data
    part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return data.view(f"u{part}").byteswap().view(np.uint8)


def _storage_reference(reference: Any) -> tuple[np.dtype, str, int]:
    """The element type, key and size of ('storage', type, key, device, size[, view])."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise ValueError("a pickle that refers to something other than a tensor's storage")
    kind, key, size = reference[1], reference[2], reference[4]
    if not isinstance(kind, Symbol) or not isinstance(kind.value, np.dtype):
        raise ValueError("a tensor storage of an unknown type")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 1 << 48:
        raise ValueError("a tensor storage without a key or a size")
    if len(reference) > 5 and reference[5] is not None:
        raise ValueError("a tensor storage that is part of another: saved by a PyTorch before 0.4")
    return kind.value, key, size
