"""The audit of a network in a file, whatever its format."""

import os
import pathlib
from collections.abc import Sequence

from kernsym_jax.geometry.keras import audit_keras
from kernsym_jax.geometry.layer import FileAudit, NoGraphError
from kernsym_jax.geometry.onnx import audit_onnx
from kernsym_jax.geometry.tflite import audit_tflite


def audit_file(path: str | os.PathLike, input_size: int | Sequence[int] | None = None) -> FileAudit:
    """Reads the geometry of every convolution and pooling window off a file.

    Args:
      path: a model of ONNX, Keras (``.keras``, or ``.h5`` with the model's configuration) or
        TensorFlow Lite, told by its content.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the size that the model is fixed to.

    Returns:
      A row per layer, in the order of the graph, and the layers without one.

    Raises:
      NoGraphError: naming the file, if its format keeps no graph.
      ValueError: whatever `audit_onnx`, `audit_keras` and `audit_tflite` raise.
      FileNotFoundError: if there is no such file.
    """
    location = pathlib.Path(path)
    head = b""
    if location.is_file():
        with location.open("rb") as file:
            head = file.read(8)
    suffix = location.suffix.lower()
    if head[4:8] == b"TFL3":
        return audit_tflite(path, input_size)
    if head == b"\x89HDF\r\n\x1a\n" or (head[:2] == b"PK" and suffix == ".keras"):
        return audit_keras(path, input_size)
    # The size at the begin of a safetensors file may begin with the byte of ONNX.
    begins = head[:1] == b"\x08" and head[6:8] != b"\0\0"
    if suffix == ".onnx" or begins or not location.exists():
        return audit_onnx(path, input_size)
    raise NoGraphError(
        f"{os.fspath(path)}: no network whose layers can be followed; wanted ONNX, Keras (with its "
        "configuration) or TensorFlow Lite"
    )
