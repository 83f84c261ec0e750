"""ONNX's tensors: values in the file, beside it, or made from others by simple nodes."""

import math
import pathlib

import numpy as np

from kernsym_jax.formats.arrays import DTYPES, StoredArray, element_count, map_file, view
from kernsym_jax.weights.protobuf import Message

# TensorProto's fields and the values of its data_type.
_DIMS, _TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _DOUBLES, _UINT64S = (
    1,
    2,
    4,
    5,
    7,
    8,
    9,
    10,
    11,
)
_EXTERNAL, _LOCATION = 13, 14
_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    24: "float8_e8m0fnu",
}


def tensor_name(tensor: Message) -> str:
    """The name of a TensorProto."""
    return tensor.text(_NAME)


class ExternalFiles:
    """The files beside a model that hold some of its values.

    Args:
      folder: the model's folder; files elsewhere are refused.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder.resolve()
        self._mapped: dict[pathlib.Path, np.ndarray] = {}

    def data(self, location: str) -> np.ndarray:
        """The bytes of a file, uint8 (bytes,).

        Raises:
          ValueError: if it is not a file in the model's folder or below it.
        """
        file = (self._folder / location).resolve()
        if not location or not file.is_relative_to(self._folder) or not file.is_file():
            raise ValueError(f"values in {location!r}, which is no file beside the model")
        if file not in self._mapped:
            self._mapped[file] = map_file(file)
        return self._mapped[file]


def read_tensor(tensor: Message, files: ExternalFiles) -> StoredArray | None:
    """Reads a TensorProto.

    Args:
      tensor: the message.
      files: where values outside the model's file are.

    Returns:
      The array; None for an element type that holds no plain numbers, such as strings.

    Raises:
      ValueError: if the values are not as many as the shape says, or lie in another folder.
    """
    shape = tuple(tensor.integers(_DIMS).tolist())
    count = element_count(shape)
    name = _TYPES.get(tensor.integer(_TYPE))
    if name is None or name not in DTYPES:
        return None
    dtype = DTYPES[name]
    if tensor.integer(_LOCATION) == 1:
        return StoredArray.of(_external(tensor, files, shape, dtype))
    flat = _values(tensor, dtype)
    if flat.size != count:
        raise ValueError(f"{tensor_name(tensor)!r} has {flat.size} values for the shape {shape}")
    return StoredArray.of(flat.reshape(shape))


def transposed(array: StoredArray, axes: tuple[int, ...]) -> StoredArray:
    """The array with its axes in another order."""
    if sorted(axes) != list(range(len(array.shape))):
        raise ValueError(f"a transposition {axes} of an array {array.shape}")
    shape = tuple(array.shape[axis] for axis in axes)
    return StoredArray(shape, array.dtype, lambda: np.transpose(array.read(), axes))


def _values(tensor: Message, dtype: np.dtype) -> np.ndarray:
    if _RAW in tensor:
        raw = tensor.parts(_RAW)[-1]
        return raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype)
    if dtype.name in ("float32", "complex64"):
        return tensor.fixed(_FLOATS, np.dtype("<f4")).view(dtype)
    if dtype.name in ("float64", "complex128"):
        return tensor.fixed(_DOUBLES, np.dtype("<f8")).view(dtype)
    number = {"int64": _INT64S, "uint64": _UINT64S, "uint32": _UINT64S}.get(dtype.name, _INT32S)
    integers = tensor.integers(number)
    if dtype.kind in "iub":
        return integers.astype(dtype)
    # Half-precision and 8-bit floats are kept as the integers that their bits spell.
    return integers.astype(f"u{dtype.itemsize}").view(dtype)


def _external(
    tensor: Message, files: ExternalFiles, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    entries = {entry.text(1): entry.text(2) for entry in tensor.messages(_EXTERNAL)}
    nbytes = math.prod(shape) * dtype.itemsize
    if int(entries.get("length", nbytes)) != nbytes:
        raise ValueError(
            f"{tensor_name(tensor)!r} has {entries['length']} bytes instead of {nbytes}"
        )
    data = files.data(entries.get("location", ""))
    return view(data, int(entries.get("offset", 0)), dtype, shape)
