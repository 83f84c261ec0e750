"""Reads HDF5 files: a child process lists them, this process maps them.

The HDF5 library can crash or never return on a damaged file. It therefore runs in a process of its
own, with limits on time and memory, and tells only where the arrays are.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import StoredArray, element_count, map_file, natural_order, view

_CHILD = pathlib.Path(__file__).with_name("hdf5_child.py")
# Limits of processor time. On a crowded machine it comes late: the clock allows a multiple.
_SECONDS, _BYTES_PER_SECOND, _PATIENCE = 4, 50e6, 30
_FREE_SIZE = 256 << 20


@dataclasses.dataclass(frozen=True)
class Hdf5:
    """The content of an HDF5 file.

    Attributes:
      groups: path -> text attributes; the path of the root is empty.
      arrays: path -> array of numbers.
    """

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, StoredArray]

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """Returns a list of texts, which Keras writes into several attributes if it is long."""
        attributes = self.groups.get(group, {})
        if attribute in attributes:
            return attributes[attribute]
        parts = [name for name in attributes if re.fullmatch(rf"{attribute}\d{{1,9}}", name)]
        if not parts:
            return None
        return [text for part in sorted(parts, key=natural_order) for text in attributes[part]]


def read(path: str | os.PathLike, start: int = 0, size: int | None = None) -> Hdf5:
    """Reads an HDF5 file, or one inside another file.

    Args:
      path: the file.
      start: offset of the HDF5 content in it.
      size: its length in bytes; None means up to the end.

    Returns:
      Its groups and arrays; uncompressed arrays are views of the file.

    Raises:
      ValueError: if the file is damaged, or its arrays claim more than 256 MiB and eight times its
        own size.
    """
    data = map_file(path)
    size = data.size - start if size is None else size
    limit = max(_FREE_SIZE, 8 * size)
    output = _run_child([os.fspath(path), str(start), str(size), str(limit)], size)
    content = np.frombuffer(output, np.uint8)
    length = int(view(content, 0, np.dtype("<u8"), ()))
    listing = json.loads(view(content, 8, np.dtype(np.uint8), (length,)).tobytes())
    arrays: dict[str, StoredArray] = {}
    position = 8 + length
    for entry in listing["arrays"]:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        if entry["offset"] is None:
            array = view(content, position, dtype, shape)
            position += element_count(shape) * dtype.itemsize
        else:
            array = view(data, entry["offset"], dtype, shape)
        arrays[entry["name"]] = StoredArray.of(array)
    return Hdf5(listing["groups"], arrays)


def _run_child(arguments: list[str], size: int) -> bytes:
    seconds = _SECONDS + round(size / _BYTES_PER_SECOND)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        # -P keeps the modules of this folder, such as safetensors.py, out of the child's imports.
        finished = subprocess.run(
            [sys.executable, "-P", os.fspath(_CHILD), *arguments, str(seconds)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE * seconds,
            env=environment,
            check=False,
        )
        timed_out = finished.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    except subprocess.TimeoutExpired:
        timed_out = True
    if timed_out:
        raise ValueError(f"a damaged HDF5 file: not read after {seconds} s")
    if finished.returncode < 0:
        raise ValueError(f"a damaged HDF5 file: the HDF5 library crashed ({-finished.returncode})")
    if finished.returncode:
        lines = finished.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"a damaged HDF5 file ({lines[-1] if lines else 'no reason given'})")
    return finished.stdout
