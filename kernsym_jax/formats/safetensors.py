"""Reads safetensors files, single and sharded, as views of the mapped file."""

import os
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import (
    DTYPES,
    MAX_JSON,
    StoredArray,
    element_count,
    map_file,
    parse_json,
    view,
)

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def read_arrays(path: str | os.PathLike) -> dict[str, StoredArray]:
    """Reads the header of a safetensors file.

    Args:
      path: the file.

    Returns:
      name -> array, in the order of the file.

    Raises:
      ValueError: if the header is damaged, or its arrays overlap, leave gaps or reach outside the
        file.

    Reference: https://github.com/huggingface/safetensors#format
    """
    data = map_file(path)
    length = int(view(data, 0, np.dtype("<u8"), ()))
    if not 2 <= length <= min(MAX_JSON, data.size - 8):
        raise ValueError(f"a safetensors header of {length} bytes in a file of {data.size}")
    header = parse_json(data[8 : 8 + length].tobytes(), _without_repeats)
    if not isinstance(header, dict):
        raise ValueError("a safetensors header that is not a JSON object")
    header.pop("__metadata__", None)
    content = data[8 + length :]
    arrays = {}
    position = 0
    for name, (begin, end), dtype, shape in sorted(map(_entry, header.items()), key=_place):
        if begin != position or end - begin != element_count(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} at bytes {begin} to {end} overlaps, or leaves a gap")
        arrays[name] = StoredArray.of(view(content, begin, dtype, shape))
        position = end
    if position != content.size:
        raise ValueError(f"the arrays take {position} bytes of {content.size}: the file is cut")
    return arrays


def read_weight_map(path: str | os.PathLike) -> dict[str, str]:
    """Reads the index of a checkpoint in several files.

    Args:
      path: ``….safetensors.index.json`` or ``….bin.index.json``.

    Returns:
      array name -> name of a file in the folder of the index.

    Raises:
      ValueError: if it is not such an index, or names a file in another folder.
    """
    index = parse_json(map_file(path).tobytes())
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("a JSON file, but not the index of a sharded checkpoint (no weight_map)")
    for name, file in files.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise ValueError(f"refused: the index places {name!r} outside its own folder: {file!r}")
    return files


def _entry(item: tuple[str, Any]) -> tuple[str, tuple[int, int], np.dtype, list[int]]:
    name, entry = item
    known = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    if not known or not isinstance(entry["shape"], list):
        raise ValueError(f"{name!r} has no dtype, shape and data_offsets")
    if entry["dtype"] not in _DTYPES or _DTYPES[entry["dtype"]] not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {entry['dtype']!r}")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise ValueError(f"{name!r} has the data_offsets {offsets!r}")
    return name, (offsets[0], offsets[1]), DTYPES[_DTYPES[entry["dtype"]]], entry["shape"]


def _place(entry: tuple[str, tuple[int, int], np.dtype, list[int]]) -> tuple[int, int]:
    return entry[1]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a safetensors header that holds a name twice")
    return made
