"""The audit of a network in a file, whatever its format."""

import os
import pathlib
from collections.abc import Sequence

from kernsym_jax.geometry.layer import FileAudit
from kernsym_jax.geometry.onnx import audit_onnx

_OTHERS = {
    "Keras": (".h5", ".hdf5", ".keras"),
    "TensorFlow Lite": (".tflite",),
    "weights without a graph": (
        *(".bin", ".ckpt", ".msgpack", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".th"),
    ),
}


def audit_file(path: str | os.PathLike, input_size: int | Sequence[int] | None = None) -> FileAudit:
    """Reads the geometry of every convolution and pooling window off a file.

    Args:
      path: an ONNX model.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the size that the model is fixed to.

    Returns:
      A row per layer, in the order of the graph, and the layers without one.

    Raises:
      ValueError: naming the file, if its format has no audit; whatever `audit_onnx` raises.
      FileNotFoundError: if there is no such file.
    """
    suffix = pathlib.Path(path).suffix.lower()
    for kind, suffixes in _OTHERS.items():
        if suffix in suffixes and pathlib.Path(path).exists():
            raise ValueError(f"{os.fspath(path)}: {kind}, which cannot be audited; wanted ONNX")
    return audit_onnx(path, input_size)
