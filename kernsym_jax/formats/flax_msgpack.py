"""Flax's msgpack files (``flax.serialization.to_bytes``), mapped and read without Flax."""

import math
import os
import struct
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, StoredArray, element_count, map_file, view

MAX_DEPTH = 64
MAX_ITEMS = 1_000_000

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read_tree(path: str | os.PathLike) -> Any:
    """Reads a msgpack file of nested dictionaries.

    Args:
      path: the file.

    Returns:
      dicts, lists and scalars, with arrays as `StoredArray`.

    Raises:
      ValueError: if it is damaged, or holds something that Flax does not write.

    Reference: https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    reader = _Reader(map_file(path))
    tree = reader.value(0)
    if reader.position != reader.data.size:
        raise ValueError(f"msgpack data ends at byte {reader.position} of {reader.data.size}")
    return tree


class _Reader:
    def __init__(self, data: np.ndarray):
        self.data = data
        self.position = 0
        self.items = 0

    def take(self, count: int) -> np.ndarray:
        end = self.position + count
        if end > self.data.size:
            raise ValueError(f"msgpack data is cut at byte {self.data.size}")
        part = self.data[self.position : end]
        self.position = end
        return part

    def size(self, width: int) -> int:
        return int.from_bytes(self.take(width).tobytes(), "big")

    def value(self, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise ValueError(f"msgpack data nested over {MAX_DEPTH} deep, or of too many items")
        code = int(self.take(1)[0])
        if code <= 0x7F:
            return code
        if code <= 0x8F:
            return self.mapping(code & 0x0F, depth)
        if code <= 0x9F:
            return [self.value(depth + 1) for _ in range(code & 0x0F)]
        if code <= 0xBF:
            return self.text(code & 0x1F)
        if code >= 0xE0:
            return code - 0x100
        return self.tagged(code, depth)

    def tagged(self, code: int, depth: int) -> Any:
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _NUMBERS:
            layout = _NUMBERS[code]
            return struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())[0]
        if code in _BYTES:
            return self.take(self.size(_BYTES[code]))
        if code in _TEXT:
            return self.text(self.size(_TEXT[code]))
        if code in _ARRAY:
            return [self.value(depth + 1) for _ in range(self.size(_ARRAY[code]))]
        if code in _MAP:
            return self.mapping(self.size(_MAP[code]), depth)
        if code in _EXTENSION:
            return self.extension(self.size(_EXTENSION[code]))
        if code in _FIXED_EXTENSION:
            return self.extension(_FIXED_EXTENSION[code])
        raise ValueError(f"the byte {code:#x} at {self.position - 1} is no msgpack")

    def text(self, count: int) -> str:
        return self.take(count).tobytes().decode("utf-8")

    def mapping(self, count: int, depth: int) -> Any:
        made: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise ValueError(f"msgpack data with a {type(key).__name__} as a key")
            made[str(key)] = self.value(depth + 1)
        return _joined(made) if _CHUNKED in made else made

    def extension(self, count: int) -> Any:
        kind = int(self.take(1).view(np.int8)[0])
        inner = _Reader(self.take(count))
        content = inner.value(MAX_DEPTH - 2)
        if kind == _COMPLEX:
            return content
        if kind not in (_NDARRAY, _SCALAR) or not isinstance(content, list) or len(content) != 3:
            raise ValueError(f"msgpack data with an extension of kind {kind}")
        shape, name, data = content
        if isinstance(name, np.ndarray):
            name = name.tobytes().decode("ascii")
        if name not in DTYPES or not isinstance(data, np.ndarray) or not isinstance(shape, list):
            raise ValueError(f"msgpack data with an array of type {str(name)[:40]!r}")
        if data.size != element_count(shape) * DTYPES[name].itemsize:
            raise ValueError(f"an array of shape {shape} and type {name} with {data.size} bytes")
        return StoredArray.of(view(data, 0, DTYPES[name], shape))


def _joined(parts: dict[str, Any]) -> StoredArray:
    """An array that Flax has written in pieces because it is large."""
    chunks, shape = parts.get("chunks"), parts.get("shape")
    if not isinstance(chunks, dict) or not isinstance(shape, dict):
        raise ValueError("a chunked array without chunks in msgpack data")
    pieces = list(chunks.values())
    sizes = tuple(shape.values())
    whole = element_count(sizes)
    if not pieces or not all(isinstance(piece, StoredArray) for piece in pieces):
        raise ValueError("a chunked array without values in msgpack data")
    if sum(math.prod(piece.shape) for piece in pieces) != whole:
        raise ValueError(f"the chunks of an array {sizes} do not add up to it")

    def read() -> np.ndarray:
        return np.concatenate([piece.read().reshape(-1) for piece in pieces]).reshape(sizes)

    return StoredArray(sizes, pieces[0].dtype, read)
