"""NumPy arrays, scalars and element types inside a pickle, built from their bytes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kernsym_jax.weights.stored_array import DTYPES, element_count


@dataclasses.dataclass(eq=False)
class NumpyArray:
    """A NumPy array inside a pickle, while its state has not been read yet."""

    array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes (version, shape, dtype, column-major, bytes)."""
        shape, dtype, columns_first, data = state[-4:]
        if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
            raise ValueError("a NumPy array of Python objects in the pickle")
        if element_count(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if columns_first else "C")


@dataclasses.dataclass(eq=False)
class NumpyDtype:
    """A NumPy element type inside a pickle; anything but plain numbers is refused."""

    dtype: np.dtype

    def set_state(self, state: Any) -> None:
        """Takes the byte order."""
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def _bytes(data: Any = b"", *_: Any) -> bytes:
    # Python would make as many zero bytes as an integer here asks for.
    if not isinstance(data, bytes | bytearray):
        raise ValueError("bytes made of something else in the pickle")
    return bytes(data)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"bytes written in {encoding} in the pickle")
    return text.encode("latin1")


def _dtype(code: Any, *_: Any) -> NumpyDtype:
    name = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(name, str):
        raise ValueError("a NumPy array of no plain type in the pickle")
    dtype = DTYPES.get(name)
    if dtype is None and len(name) <= 3 and name[:1] in "biufc":
        dtype = np.dtype(name)
    if dtype is None:
        raise ValueError(f"a NumPy array of type {name[:20]!r} in the pickle")
    return NumpyDtype(dtype)


def _scalar(dtype: Any, data: Any = b"", *_: Any) -> Any:
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
        raise ValueError("a NumPy scalar of a Python object in the pickle")
    if len(data) != dtype.dtype.itemsize:
        raise ValueError("a NumPy scalar of the wrong size in the pickle")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _from_buffer(
    data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None
) -> NumpyArray:
    made = NumpyArray()
    made.set_state((shape, dtype, order == "F", _bytes(data)))
    if order == "K" and axes is not None and made.array is not None:
        made.array = made.array.transpose(axes)
    return made


MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "__builtin__.bytearray": _bytes,
    "numpy.dtype": _dtype,
}
"""What NumPy's pickles call, and what that builds here."""

for _module in ("numpy.core", "numpy._core"):
    MAKERS[f"{_module}.multiarray._reconstruct"] = _array
    MAKERS[f"{_module}.multiarray.scalar"] = _scalar
    MAKERS[f"{_module}.numeric._frombuffer"] = _from_buffer
