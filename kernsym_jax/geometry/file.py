"""The audit of a network in a file, whatever its format."""

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from kernsym_jax.formats import guard
from kernsym_jax.formats.arrays import open_regular, what_it_is
from kernsym_jax.geometry import onnx
from kernsym_jax.geometry.keras import audit_keras
from kernsym_jax.geometry.layer import FileAudit, LayerGeometry, NoGraphError
from kernsym_jax.geometry.tflite import audit_tflite

MOST_TOGETHER = 16
"""Distances from the middle whose two sizes `FileAudits` audits together at most."""


def audit_file(
    path: str | os.PathLike,
    input_size: int | Sequence[int] | None = None,
    *,
    trusted: bool = False,
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window from a file.

    Args:
      path: a model of ONNX, Keras (``.keras``, or ``.h5`` with the model's configuration) or
        TensorFlow Lite; its content tells the format.
      input_size: pixels of the images that go in, the same on every axis or one per axis; ``None``
        for the model's own fixed size.
      trusted: reads the file in this process. Otherwise a process of its own reads it, with limits
        on time, memory and the files that it may open (`formats.guard`).

    Returns:
      A row per layer, in the order of the graph, and the layers without one.

    Raises:
      NoGraphError: naming the file, if its format keeps no graph.
      ValueError: naming the file, if it is damaged or its graph cannot be followed, see
        `audit_onnx`.
      FileNotFoundError: if there is no such file.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> import onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from kernsym_jax import geometry
    >>> weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "weight")
    >>> conv = helper.make_node("Conv", ["x", "weight"], ["y"], strides=[2, 2], pads=[1] * 4)
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    >>> y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    >>> model = helper.make_model(helper.make_graph([conv], "net", [x], [y], [weight]))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.onnx"
    >>> onnx.save(model, path)
    >>> (row,) = geometry.audit_file(path)
    >>> row.input_size, row.stride, row.uneven, row.skew
    ((32, 32), (2, 2), (1, 1), 'bottom right')
    """
    return _audit("follow_file", path, input_size, trusted)


def audit_onnx(
    path: str | os.PathLike,
    input_size: int | Sequence[int] | None = None,
    *,
    trusted: bool = False,
) -> FileAudit:
    """Reads the geometry of every convolution and pooling window from an ONNX file.

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

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> import onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from kernsym_jax import geometry
    >>> weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "weight")
    >>> conv = helper.make_node("Conv", ["x", "weight"], ["y"], strides=[2, 2], pads=[1] * 4)
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    >>> y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    >>> model = helper.make_model(helper.make_graph([conv], "net", [x], [y], [weight]))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.onnx"
    >>> onnx.save(model, path)
    >>> (row,) = geometry.audit_onnx(path, input_size=33)
    >>> row.layer, row.uneven
    ('weight', (0, 0))
    """
    return _audit("follow_onnx", path, input_size, trusted)


class FileAudits:
    """Audits one file at the input sizes that the advice tries, from a middle one outwards.

    A process of its own reads an untrusted file, and starting one takes longer than most audits. So
    several sizes are audited together, as many as took less than a second before.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> import onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from kernsym_jax import geometry
    >>> weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "weight")
    >>> conv = helper.make_node("Conv", ["x", "weight"], ["y"], strides=[2, 2], pads=[1] * 4)
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    >>> y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    >>> model = helper.make_model(helper.make_graph([conv], "net", [x], [y], [weight]))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.onnx"
    >>> onnx.save(model, path)
    >>> rows_at = geometry.FileAudits(path, trusted=True)
    >>> [(size, rows_at(size)[0].uneven) for size in (32, 33)]
    [(32, (1, 1)), (33, (0, 0))]
    """

    def __init__(self, path: str | os.PathLike, *, trusted: bool = False):
        """Notes which file to audit; opens it at the first call.

        Args:
          path: as in `audit_file`.
          trusted: as in `audit_file`.
        """
        self._path, self._trusted = path, trusted
        self._known: dict[Any, FileAudit | str] = {}
        self._middle: Any = None
        self._together = 1

    def __call__(self, size: int | Sequence[int] | None = None) -> FileAudit:
        """Audits the file at an input size; arguments and errors are those of `audit_file`."""
        key = tuple(size) if isinstance(size, Sequence) else size
        if key not in self._known and None not in (key, self._middle) and not self._trusted:
            self._audit_around(key)
        found = self._known.get(key)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            found = self._known[key] = audit_file(self._path, key, trusted=self._trusted)
            self._middle = self._middle or key
        return found

    def _audit_around(self, key: Any) -> None:
        """Audits the file at a size and at the next sizes outwards from the middle."""
        sizes = _outwards(self._middle, key, self._together)
        records = (FileAudit, LayerGeometry, NoGraphError)
        begin = time.monotonic()
        try:
            found = guard.call((__name__, "follow_sizes"), self._path, sizes, records=records)
        except ValueError:  # all sizes together exceed a limit that each may keep
            self._together = 1
            return
        self._known |= dict(zip(sizes, found, strict=True))
        seconds = max(time.monotonic() - begin, 1e-3)
        self._together = max(1, min(2 * self._together, int(len(sizes) / seconds), MOST_TOGETHER))


def _outwards(middle: Any, size: Any, count: int) -> tuple[Any, ...]:
    """Returns the size and others as far from the middle, or up to `count` pixels farther."""
    if type(size) is not type(middle):
        return (size,)
    if isinstance(size, int):
        distance = abs(size - middle)
        found = [size]
        for d in range(distance, distance + count):
            found += [n for n in (middle + d, middle - d) if n > 0 and n not in found]
        return tuple(found)
    changed = [i for i, (n, m) in enumerate(zip(size, middle, strict=False)) if n != m]
    if len(changed) != 1 or len(size) != len(middle):
        return (size,)
    (i,) = changed
    others = _outwards(middle[i], size[i], count)
    return tuple((*size[:i], n, *size[i + 1 :]) for n in others)


def follow_sizes(
    path: str | os.PathLike, sizes: Sequence[int | tuple[int, ...]]
) -> list[FileAudit | str]:
    """Audits a file at several input sizes in this process; an error becomes its message."""
    found: list[FileAudit | str] = []
    for size in sizes:
        try:
            found.append(follow_file(path, size))
        except ValueError as error:
            found.append(str(error))
    return found


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
    # A safetensors file begins with a size, whose first byte may be the first byte of ONNX.
    begins = head[:1] == b"\x08" and head[6:8] != b"\0\0"
    if suffix == ".onnx" or begins or not location.exists():
        return follow_onnx(path, input_size)
    raise NoGraphError(
        f"{os.fspath(path)}: no network whose layers can be followed; wanted ONNX, Keras (with its "
        "configuration) or TensorFlow Lite"
    )
