"""Flax's msgpack files (``flax.serialization.to_bytes``), read without Flax."""

import math
import os
from typing import Any

import msgpack
import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_AXES,
    StoredArray,
    element_count,
    map_file,
    view,
)

MAX_ITEMS = 200_000
"""Items of all containers of a file together."""

MAX_ENTRIES = 4096
"""Items of one container.

The library allocates a list before it reads its items, and nests up to 1,024 containers, so this
bounds what a small file can make it allocate.
"""

MAX_TEXT = 1 << 20

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_LONGEST_DTYPE = 64


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
    data = map_file(path)
    count = _Count()
    try:
        return msgpack.unpackb(
            data.data,
            ext_hook=_extension,
            object_pairs_hook=count.mapping,
            list_hook=count.sequence,
            strict_map_key=False,
            max_str_len=MAX_TEXT,
            max_bin_len=data.size,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=data.size,
        )
    except (msgpack.UnpackException, msgpack.ExtraData, ValueError) as error:
        raise ValueError(f"msgpack data that is cut or damaged ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # The text of ExtraData would spell out every byte that it found.
    text = "more bytes behind the end" if isinstance(error, msgpack.ExtraData) else str(error)
    return text or type(error).__name__


class _Count:
    """Builds the containers of a file and counts what they hold."""

    def __init__(self) -> None:
        self.items = 0

    def add(self, more: int) -> None:
        self.items += 1 + more
        if self.items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")

    def sequence(self, items: list[Any]) -> list[Any]:
        self.add(len(items))
        return items

    def mapping(self, pairs: list[tuple[Any, Any]]) -> Any:
        self.add(len(pairs))
        made: dict[str, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str | int):
                raise ValueError(f"a {type(key).__name__} as a key")
            made[str(key)] = value
        return _joined(made) if _CHUNKED in made else made


def _extension(kind: int, content: bytes) -> Any:
    """Decodes an array or a scalar, which Flax writes as (shape, dtype, bytes)."""
    parts = msgpack.unpackb(
        content,
        max_str_len=_LONGEST_DTYPE,
        max_bin_len=len(content),
        max_array_len=MAX_AXES,
        max_map_len=0,
        max_ext_len=0,
    )
    if kind == _COMPLEX:
        return parts
    if kind not in (_NDARRAY, _SCALAR) or not isinstance(parts, list) or len(parts) != 3:
        raise ValueError(f"an extension of kind {kind}")
    shape, name, data = parts
    if isinstance(name, bytes):
        name = name.decode("ascii")
    if name not in DTYPES or not isinstance(data, bytes) or not isinstance(shape, list):
        raise ValueError(f"an array of type {str(name)[:40]!r}")
    if len(data) != element_count(shape) * DTYPES[name].itemsize:
        raise ValueError(f"an array of shape {shape} and type {name} with {len(data)} bytes")
    return StoredArray.of(view(np.frombuffer(data, np.uint8), 0, DTYPES[name], shape))


def _joined(parts: dict[str, Any]) -> StoredArray:
    """Joins an array that Flax has written in pieces because it is large."""
    chunks, shape = parts.get("chunks"), parts.get("shape")
    if not isinstance(chunks, dict) or not isinstance(shape, dict):
        raise ValueError("a chunked array without chunks")
    pieces = list(chunks.values())
    sizes = tuple(shape.values())
    whole = element_count(sizes)
    if not pieces or not all(isinstance(piece, StoredArray) for piece in pieces):
        raise ValueError("a chunked array without values")
    if sum(math.prod(piece.shape) for piece in pieces) != whole:
        raise ValueError(f"the chunks of an array {sizes} do not add up to it")

    def read() -> np.ndarray:
        return np.concatenate([piece.read().reshape(-1) for piece in pieces]).reshape(sizes)

    return StoredArray(sizes, pieces[0].dtype, read)
