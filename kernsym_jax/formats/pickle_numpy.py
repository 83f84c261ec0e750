"""Builds the NumPy arrays in a pickle from their bytes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, element_count


@dataclasses.dataclass(eq=False)
class NumpyArray:
    """A NumPy array inside a pickle.

    Attributes:
      array: the numbers; None before the array's state is read, and for an array of other things.
      objects: the elements of an array of Python objects.
    """

    array: np.ndarray | None = None
    objects: list[Any] = dataclasses.field(default_factory=list)

    def set_state(self, state: Any) -> None:
        """Takes (version, shape, dtype, column-major, bytes)."""
        shape, dtype, columns_first, data = state[-4:]
        if not isinstance(dtype, NumpyDtype):
            raise ValueError("a NumPy array without a type in the pickle")
        if dtype.dtype is None:
            self.objects = data if isinstance(data, list) else []
            return
        if not isinstance(data, bytes):
            raise ValueError("a NumPy array without bytes in the pickle")
        if element_count(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if columns_first else "C")


@dataclasses.dataclass(eq=False)
class NumpyDtype:
    """A NumPy element type inside a pickle; None for any type but plain numbers."""

    dtype: np.dtype | None

    def set_state(self, state: Any) -> None:
        """Takes the byte order."""
        if self.dtype is not None and state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def _bytes(data: Any = b"", *_: Any) -> bytes:
    # bytes(n) of an integer would allocate n zero bytes.
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
    return NumpyDtype(dtype)


def _scalar(dtype: Any, data: Any = b"", *_: Any) -> Any:
    if not isinstance(dtype, NumpyDtype):
        raise ValueError("a NumPy scalar without a type in the pickle")
    if dtype.dtype is None:
        return None
    if not isinstance(data, bytes):
        raise ValueError("a NumPy scalar without bytes in the pickle")
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


NUMPY_MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "__builtin__.bytearray": _bytes,
    "numpy.dtype": _dtype,
}
"""The functions that NumPy's pickles call -> the functions that build the same data here."""

for _module in ("numpy.core", "numpy._core"):
    NUMPY_MAKERS[f"{_module}.multiarray._reconstruct"] = _array
    NUMPY_MAKERS[f"{_module}.multiarray.scalar"] = _scalar
    NUMPY_MAKERS[f"{_module}.numeric._frombuffer"] = _from_buffer
