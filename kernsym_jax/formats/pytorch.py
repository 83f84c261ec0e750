"""Reads PyTorch checkpoints (zip, legacy and TorchScript) without PyTorch."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from kernsym_jax.formats.archive import ZipMembers
from kernsym_jax.formats.arrays import (
    DTYPES,
    StoredArray,
    check_strided,
    dequantized,
    element_count,
    map_file,
    strided_view,
    view,
)
from kernsym_jax.formats.containers import NUMPY_MAKERS, NumpyArray
from kernsym_jax.formats.pickle_data import (
    Inert,
    Symbol,
    checked_key,
    inert_symbol,
    load_pickle,
)

LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file that PyTorch before 1.6 has written."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# A few stored values can claim any shape, and kernels are smaller.
_MAX_SPARSE = 1 << 24

_Allowed = Callable[[str, str], Symbol | None]


def read_archive(source: str | os.PathLike | np.ndarray) -> Any:
    """Reads a ``torch.save`` file or a TorchScript archive, both zip archives.

    Args:
      source: a file that starts with ``PK``, or its bytes: uint8 (bytes,).

    Returns:
      The saved object: a tensor is a `StoredArray`; any object but a container is `Inert`.

    Raises:
      ValueError: if it is damaged, not from PyTorch, or asks for code to be run.
    """
    members = ZipMembers(source)
    roots = [name for name in members.names if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("a zip archive without a PyTorch checkpoint in it (no data.pkl)")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" not in members:
        return _read_pickle(members, folder, "data", plain_symbol)
    # TorchScript; a frozen module has its weights among the constants.
    return {
        "module": _read_pickle(members, folder, "data", plain_symbol),
        "constants": _read_pickle(members, folder, "constants", plain_symbol),
    }


def read_legacy(path: str | os.PathLike) -> Any:
    """Reads a checkpoint of PyTorch before 1.6, or a plain pickle of NumPy arrays.

    Args:
      path: a file that starts with a pickle.

    Returns:
      As for `read_archive`.

    Raises:
      ValueError: if it is damaged, or asks for code to be run.
    """
    with pathlib.Path(path).open("rb") as file:
        return _read_stream(file, map_file(path), plain_symbol)


def _read_stream(file: IO[bytes], data: np.ndarray, allowed: _Allowed) -> Any:
    """Reads a plain pickle, or PyTorch's old format: five pickles and the values behind them.

    Args:
      file: the content as a file.
      data: the content, uint8 (bytes,).
      allowed: the meaning of names.
    """
    storages: dict[str, _Storage] = {}
    starts: dict[str, int] = {}

    def persistent(reference: Any) -> Any:
        if isinstance(reference, tuple) and reference[:1] == ("module",) and len(reference) > 1:
            # The old format saves the source code beside a module's class.
            return reference[1]
        dtype, key, size = _storage_reference(reference)
        if key not in storages:
            storages[key] = _Storage(
                dtype, size, lambda: view(data, starts[key], np.dtype(np.uint8), (nbytes(key),))
            )
        return storages[key]

    def nbytes(key: str) -> int:
        return storages[key].size * storages[key].dtype.itemsize

    first = load_pickle(file, allowed, persistent)
    if first != _LEGACY_MAGIC:
        return first
    if load_pickle(file, allowed) != _LEGACY_PROTOCOL:
        raise ValueError("a PyTorch file of an unknown protocol")
    load_pickle(file, allowed)
    tree = load_pickle(file, allowed, persistent)
    order = load_pickle(file, allowed)
    position = file.tell()
    named = isinstance(order, list) and all(isinstance(key, str) for key in order)
    if not named or sorted(order) != sorted(storages):
        raise ValueError("the file's list of storages is not that of its tensors")
    for key in order:
        size = int(view(data, position, np.dtype("<i8"), ()))
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} elements instead of {storages[key].size}")
        starts[key] = position + 8
        view(data, starts[key], np.dtype(np.uint8), (nbytes(key),))
        position = starts[key] + nbytes(key)
    return tree


def _load_from_bytes(data: Any) -> Any:
    """Reads a storage as Python's own pickling keeps it: a file of the old format inside bytes."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError("a tensor storage made of something else than bytes")
    return _read_stream(io.BytesIO(data), np.frombuffer(data, np.uint8), _inner_symbol)


def _read_pickle(members: ZipMembers, folder: str, stem: str, allowed: _Allowed) -> Any:
    storages: dict[str, _Storage] = {}
    order = f"{folder}byteorder"
    swapped = order in members and members.head(order, 6) == b"big"

    def storage(reference: Any) -> _Storage:
        dtype, key, size = _storage_reference(reference)
        if key not in storages:
            name = f"{folder}{stem}/{key}"
            if name not in members:
                raise ValueError(f"{name} is missing from the archive")
            if members.size(name) != size * dtype.itemsize:
                raise ValueError(f"{name} has {members.size(name)} bytes for {size} of {dtype}")
            storages[key] = _Storage(
                dtype, size, lambda: _native(members.read(name), dtype, swapped)
            )
        return storages[key]

    file: IO[bytes] = io.BytesIO(members.read(f"{folder}{stem}.pkl").tobytes())
    return load_pickle(file, allowed, storage)


def _native(data: np.ndarray, dtype: np.dtype, swapped: bool) -> np.ndarray:
    if not swapped or dtype.itemsize == 1:
        return data
    part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return data.view(f"u{part}").byteswap().view(np.uint8)


def _storage_reference(reference: Any) -> tuple[np.dtype, str, int]:
    """Returns the element type, key and size of ('storage', type, key, device, size[, view])."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise ValueError("a pickle that refers to an object other than a tensor's storage")
    kind, key, size = reference[1], reference[2], reference[4]
    if not isinstance(kind, Symbol) or not isinstance(kind.value, np.dtype):
        raise ValueError("a tensor storage of an unknown type")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 1 << 48:
        raise ValueError("a tensor storage without a key or a size")
    if len(reference) > 5 and reference[5] is not None:
        raise ValueError("a tensor storage that is part of another: saved by a PyTorch before 0.4")
    return kind.value, key, size


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
}
_TORCH_DTYPES = {
    **{name: name for name in DTYPES},
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}


@dataclasses.dataclass(eq=False)
class _Storage:
    """A run of elements in the file; tensors are windows on it.

    Attributes:
      dtype: the element type.
      size: the number of elements.
      bytes: returns uint8 (size · itemsize,), little-endian.
    """

    dtype: np.dtype
    size: int
    bytes: Callable[[], np.ndarray]

    def elements(self, dtype: np.dtype) -> np.ndarray:
        """Returns the elements, (n,), in a type, which the tensors of an untyped storage choose."""
        data = self.bytes()
        whole = data.size // dtype.itemsize * dtype.itemsize
        return data[:whole].view(dtype)


def plain_symbol(module: str, name: str) -> Symbol | None:
    """Returns the meaning of a name in a PyTorch checkpoint; None if it runs code."""
    qualified = f"{module}.{name}"
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return Symbol(qualified, value=np.dtype(DTYPES[_STORAGES[name]]))
    if module == "torch" and name in _TORCH_DTYPES and _TORCH_DTYPES[name] in DTYPES:
        return Symbol(qualified, value=DTYPES[_TORCH_DTYPES[name]])
    if qualified in _NAMED_ONLY:
        return Symbol(qualified)
    if qualified in _MAKERS:
        return Symbol(qualified, make=_MAKERS[qualified])
    if qualified == "torch.storage._load_from_bytes":
        return Symbol(qualified, make=_load_from_bytes, copies=False)
    return inert_symbol(module, name)


def _inner_symbol(module: str, name: str) -> Symbol | None:
    """Does the same for a file inside a file, which may hold no third one."""
    return None if name == "_load_from_bytes" else plain_symbol(module, name)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: np.dtype | None = None
) -> StoredArray:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage in the pickle")
    dtype = dtype or storage.dtype
    shape, strides = tuple(shape), tuple(strides)
    check_strided(storage.size * storage.dtype.itemsize // dtype.itemsize, offset, shape, strides)

    def read() -> np.ndarray:
        return strided_view(storage.elements(dtype), offset, shape, strides)

    return StoredArray(shape, dtype, read)


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, *more: Any
) -> StoredArray | Inert:
    # The pickle gives whether there is a gradient, the hooks and the element type by position.
    _, _, dtype, *_ = more
    if not isinstance(dtype, Symbol):
        raise ValueError("a tensor of an unknown element type in the pickle")
    if not isinstance(dtype.value, np.dtype):
        return Inert(f"a tensor of {dtype.name}")
    return _tensor(storage, offset, shape, strides, dtype=dtype.value)


def _quantized_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, quantizer: Any, *_: Any
) -> StoredArray:
    whole = _tensor(storage, offset, shape, strides)
    _, scale, zero, *axis = quantizer
    along = axis[0] if axis and type(axis[0]) is int else 0
    # The scales are tensors too, and in an old file their values follow behind the pickle.
    return StoredArray(
        whole.shape,
        np.dtype(np.float32),
        lambda: dequantized(whole, _values(scale), _values(zero), along).read(),
    )


def _values(value: Any) -> np.ndarray:
    return np.atleast_1d(value.read() if isinstance(value, StoredArray) else np.float64(value))


def _sparse_tensor(_: Any, parts: Any, *__: Any) -> StoredArray | Inert:
    """Puts the values of a sparse tensor into their places among zeros; equal places add up."""
    indices, values, size, *_ = parts
    if not isinstance(indices, StoredArray) or not isinstance(values, StoredArray):
        return _without_values()
    shape = tuple(size)
    if element_count(shape) > _MAX_SPARSE:
        return _without_values()

    def read() -> np.ndarray:
        places = indices.read()
        ends = np.reshape(shape[: len(places)], (-1, 1))
        if places.ndim != 2 or (places < 0).any() or (places >= ends).any():
            raise ValueError(f"a sparse value outside its tensor of shape {shape}")
        dense = np.zeros(shape, values.dtype)
        np.add.at(dense, tuple(places), values.read())
        return dense

    return StoredArray(shape, values.dtype, read)


def _without_values(*_: Any) -> Inert:
    return Inert("a tensor kept in a form without plain values")


def _from_numpy(array: Any, *_: Any) -> StoredArray:
    if not isinstance(array, NumpyArray) or array.array is None:
        raise ValueError("a tensor without values in the pickle")
    return StoredArray.of(array.array)


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    if not isinstance(function, Symbol) or function.make is None:
        raise ValueError("refused: a tensor that is rebuilt by an unknown function")
    return function.make(*tuple(arguments))


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    made = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        made[checked_key(key)] = value
    return made


def _default_mapping(_: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _mapping(items)


def _sequence(items: Any = (), *_: Any) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise ValueError("a sequence that is built from neither a list nor a tuple in the pickle")
    return list(items)


def _text_path(*parts: Any) -> str:
    return "/".join(part for part in parts if isinstance(part, str))


def _complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


_NAMED_ONLY = frozenset(
    [
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "numpy.ndarray",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
        "torch.per_channel_affine_float_qparams",
        "torch.strided",
        "torch.sparse_coo",
        "torch.contiguous_format",
        "torch.channels_last",
        "torch.qint8",
        "torch.quint8",
        "torch.qint32",
        "builtins.object",
        "__builtin__.object",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "__builtin__.int",
        "__builtin__.float",
        "__builtin__.str",
        "__builtin__.bool",
    ]
)
_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_qtensor": _quantized_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
    "torch._utils._rebuild_sparse_csr_tensor": _without_values,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
    "torch.serialization._get_layout": lambda name, *_: name,
    "torch.Size": _sequence,
    "torch.torch_version.TorchVersion": lambda text="", *_: text,
    "torch.jit._pickle.build_intlist": _sequence,
    "torch.jit._pickle.build_doublelist": _sequence,
    "torch.jit._pickle.build_boollist": _sequence,
    "torch.jit._pickle.build_tensorlist": _sequence,
    "torch.jit._pickle.restore_type_tag": lambda value, *_: value,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_mapping,
    "collections.deque": _sequence,
    **NUMPY_MAKERS,
}
for _module in ("builtins", "__builtin__"):
    _MAKERS |= dict.fromkeys(
        (f"{_module}.{name}" for name in ("set", "frozenset", "list", "tuple")), _sequence
    )
    _MAKERS[f"{_module}.dict"] = _mapping
    _MAKERS[f"{_module}.complex"] = _complex
for _name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
    _MAKERS[f"pathlib.{_name}"] = _text_path
