"""The audit of a network in a file, whatever its format."""

import os
import pathlib
from collections.abc import Sequence

from kernsym_jax.formats import guard
from kernsym_jax.formats.arrays import open_regular
from kernsym_jax.formats.unsupported import what_it_is
from kernsym_jax.geometry import onnx
from kernsym_jax.geometry.keras import audit_keras
from kernsym_jax.geometry.layer import FileAudit, LayerGeometry, NoGraphError
from kernsym_jax.geometry.tflite import audit_tflite


def audit_file(
    path: str | os.PathLike,
    input_size: int | Sequence[int] | None = None,
    *,
    trusted: bool = False,
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window off a file.

    Args:
      path: a model of ONNX, Keras (``.keras``, or ``.h5`` with the model's configuration) or
        TensorFlow Lite, told by its content.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the size that the model is fixed to.
      trusted: reads the file in this process. Otherwise a process of its own reads it, with limits
        on time, memory and the files that it may open (`formats.guard`).

    Returns:
      A row per layer, in the order of the graph, and the layers without one.

    Raises:
      NoGraphError: naming the file, if its format keeps no graph.
      ValueError: naming the file, if it is damaged or its graph cannot be followed, see
        `audit_onnx`.
      FileNotFoundError: if there is no such file.
    """
    return _audit("follow_file", path, input_size, trusted)


def audit_onnx(
    path: str | os.PathLike,
    input_size: int | Sequence[int] | None = None,
    *,
    trusted: bool = False,
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window off an ONNX file.

    Args:
      path: the model, whatever its name.
      input_size: as in `audit_file`.
      trusted: as in `audit_file`.

    Returns:
      A row per layer, in the order of the graph. Layers whose shapes cannot be inferred, such as
      those behind an unknown operator, are in its ``left_out``.

    Raises:
      ValueError: naming the file, if it is no ONNX model or is damaged, if its images have a
        dynamic size and ``input_size`` is not given, or if no shape of any layer can be inferred;
        naming the layer too, for an empty map, a kernel larger than its padded input, or maps that
        do not fit together.
      FileNotFoundError: if there is no such file.
    """
    return _audit("follow_onnx", path, input_size, trusted)


def _audit(
    reader: str, path: str | os.PathLike, size: int | Sequence[int] | None, trusted: bool
) -> FileAudit:
    fixed = tuple(size) if isinstance(size, Sequence) else size
    if trusted:
        return guard.function((__name__, reader))(path, fixed)
    records = (FileAudit, LayerGeometry, NoGraphError)
    return guard.call((__name__, reader), path, fixed, records=records)


follow_onnx = onnx.audit_onnx
"""`audit_onnx` in this process."""


def follow_file(
    path: str | os.PathLike, input_size: int | Sequence[int] | None = None
) -> FileAudit:
    """Audits a file as `audit_file` does, in this process."""
    location = pathlib.Path(path)
    head = b""
    if location.is_file():
        hint = what_it_is(location)
        if hint is not None:
            raise ValueError(f"{os.fspath(path)}: {hint}")
        with open_regular(location) as file:
            head = file.read(8)
    suffix = location.suffix.lower()
    if head[4:8] == b"TFL3":
        return audit_tflite(path, input_size)
    if head == b"\x89HDF\r\n\x1a\n" or (head[:2] == b"PK" and suffix == ".keras"):
        return audit_keras(path, input_size)
    # The size at the begin of a safetensors file may begin with the byte of ONNX.
    begins = head[:1] == b"\x08" and head[6:8] != b"\0\0"
    if suffix == ".onnx" or begins or not location.exists():
        return follow_onnx(path, input_size)
    raise NoGraphError(
        f"{os.fspath(path)}: no network whose layers can be followed; wanted ONNX, Keras (with its "
        "configuration) or TensorFlow Lite"
    )
