"""Hands a result with arrays from one process to another without copying what files hold."""

import dataclasses
import io
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, MappedFile, StoredArray, map_file

_ALIGNMENT = 64
_BLOCK = -1


@dataclasses.dataclass
class _Packing:
    """Where the arrays of a result are: in mapped files, or to be written to a block.

    Attributes:
      files: path, device, number and size of each mapped file.
      places: of each array: number of its file or `_BLOCK`, offset, element type, shape, strides.
      block: the arrays that are in no file, with their offsets.
      size: bytes of the block.
    """

    files: dict[tuple[str, int, int, int], int] = dataclasses.field(default_factory=dict)
    places: list[tuple[int, int, str, tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
        default_factory=list
    )
    block: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)
    size: int = 0
    _known: dict[Any, int] = dataclasses.field(default_factory=dict)

    def number(self, array: np.ndarray) -> int:
        """The number of an array, which is placed when it is first met."""
        address = array.__array_interface__["data"][0]
        key = (address, array.dtype, array.shape, array.strides)
        if key not in self._known:
            self._known[key] = len(self.places)
            self.places.append(self._place(array, address))
        return self._known[key]

    def _place(
        self, array: np.ndarray, address: int
    ) -> tuple[int, int, str, tuple[int, ...], tuple[int, ...]]:
        dtype = array.dtype.name if array.dtype.name in DTYPES else array.dtype.str
        if array.dtype.byteorder == ">":
            dtype = array.dtype.str
        mapped = _mapped(array) if array.size else None
        if mapped is not None:
            file = self.files.setdefault(mapped.identity, len(self.files))
            return file, address - mapped.address, dtype, array.shape, array.strides
        strides = _dense_strides(array)
        offset = self.size
        self.block.append((offset, array))
        self.size = -(-(offset + array.size * array.itemsize) // _ALIGNMENT) * _ALIGNMENT
        return _BLOCK, offset, dtype, array.shape, strides


def _mapped(array: np.ndarray) -> MappedFile | None:
    """The mapped file that an array is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, MappedFile) else None


def _dense_strides(array: np.ndarray) -> tuple[int, ...]:
    """The strides of a copy whose axes lie in memory in the same order."""
    strides, step = [0] * array.ndim, array.itemsize
    for axis in sorted(range(array.ndim), key=lambda axis: (abs(array.strides[axis]), -axis)):
        strides[axis] = step
        step *= array.shape[axis]
    return tuple(strides)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, packing: _Packing):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._packing = packing
        self._read: dict[int, tuple[StoredArray, np.ndarray]] = {}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        """Puts the number of its place for an array."""
        if isinstance(value, StoredArray):
            if id(value) not in self._read:
                self._read[id(value)] = (value, value.read())
            return "stored", self._packing.number(self._read[id(value)][1])
        return ("array", self._packing.number(value)) if isinstance(value, np.ndarray) else None


def packed(result: Any, descriptor: int) -> bytes:
    """Describes a result, and writes those of its arrays that no file holds to a block.

    Args:
      result: containers and records with arrays and `StoredArray` in them, which are read.
      descriptor: an empty file or memory for the block.

    Returns:
      The description, for `unpacked`.
    """
    packing, tree = _Packing(), io.BytesIO()
    _Pickler(tree, packing).dump(result)
    if packing.size:
        os.ftruncate(descriptor, packing.size)
        block = mmap.mmap(descriptor, packing.size)
        for place, (offset, array) in zip(
            (place for place in packing.places if place[0] == _BLOCK), packing.block, strict=True
        ):
            target: np.ndarray = np.ndarray(array.shape, array.dtype, block, offset, place[-1])
            np.copyto(target, array)
    return pickle.dumps((list(packing.files), packing.places, tree.getbuffer().tobytes()))


class _Unpickler(pickle.Unpickler):
    """Builds containers, and records of the given classes; runs nothing else."""

    def __init__(
        self, content: bytes | memoryview, arrays: Sequence[np.ndarray], records: Sequence[type]
    ):
        super().__init__(io.BytesIO(content))
        self._arrays = arrays
        self._records = {(kind.__module__, kind.__qualname__): kind for kind in records}

    def find_class(self, module: str, name: str) -> Any:
        """Returns one of the records' classes."""
        if (module, name) not in self._records:
            raise ValueError(f"a result with {module}.{name} in it")
        return self._records[module, name]

    def persistent_load(self, place: Any) -> Any:
        """Returns the array with a number."""
        kind, number = place
        array = self._arrays[number]
        return StoredArray.of(array) if kind == "stored" else array


def unpacked(content: memoryview, block: int | None, records: Sequence[type]) -> Any:
    """Builds the result that `packed` describes; its arrays are views of files and of the block.

    Args:
      content: the description.
      block: descriptor of the block, or None.
      records: the classes that the result may contain.

    Raises:
      ValueError: if a file is no longer the one that was read, or an array lies outside it.
    """
    files, places, tree = _Unpickler(content, (), ()).load()
    buffers: dict[int, np.ndarray] = {
        number: _same_file(*identity) for number, identity in enumerate(files)
    }
    if block is not None and os.fstat(block).st_size:
        buffers[_BLOCK] = np.frombuffer(mmap.mmap(block, 0, access=mmap.ACCESS_READ), np.uint8)
    nothing = np.empty(0, np.uint8)
    arrays = []
    for file, offset, name, shape, strides in places:
        dtype = DTYPES.get(name) or np.dtype(name)
        if dtype.hasobject:
            raise ValueError("a result with an array of objects")
        buffer = buffers.get(file, nothing)
        arrays.append(np.ndarray(shape, dtype, buffer, offset, strides))
    return _Unpickler(tree, arrays, records).load()


def _same_file(path: str, *identity: int) -> np.ndarray:
    """Maps a file that another process has mapped."""
    data = map_file(path)
    mapped = _mapped(data)
    if mapped is None or mapped.identity[1:] != identity:
        raise ValueError(f"{os.path.basename(path)} has changed while it was read")
    return data
