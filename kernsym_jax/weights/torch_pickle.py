"""The names a PyTorch pickle may use, and what each of them builds here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kernsym_jax.weights import numpy_pickle
from kernsym_jax.weights.numpy_pickle import NumpyArray
from kernsym_jax.weights.quantization import dequantized
from kernsym_jax.weights.restricted_pickle import Inert, Symbol
from kernsym_jax.weights.stored_array import (
    DTYPES,
    StoredArray,
    check_strided,
    strided_view,
)

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
class Storage:
    """A run of elements in the file, of which tensors are windows.

    Attributes:
      dtype: the element type.
      size: the number of elements.
      bytes: gives uint8 (size · itemsize,), little-endian.
    """

    dtype: np.dtype
    size: int
    bytes: Callable[[], np.ndarray]

    def elements(self, dtype: np.dtype) -> np.ndarray:
        """(n,) as elements of a type, which an untyped storage leaves to its tensors."""
        data = self.bytes()
        whole = data.size // dtype.itemsize * dtype.itemsize
        return data[:whole].view(dtype)


def symbol(module: str, name: str) -> Symbol | None:
    """What a name in a PyTorch checkpoint stands for; None if it is not allowed."""
    qualified = f"{module}.{name}"
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return Symbol(qualified, value=np.dtype(DTYPES[_STORAGES[name]]))
    if module == "torch" and name in _TORCH_DTYPES and _TORCH_DTYPES[name] in DTYPES:
        return Symbol(qualified, value=DTYPES[_TORCH_DTYPES[name]])
    if qualified in _NAMED_ONLY:
        return Symbol(qualified)
    if qualified in _RECORDS:
        return Symbol(qualified, make=lambda *_: Inert(qualified))
    if qualified in _MAKERS:
        return Symbol(qualified, make=_MAKERS[qualified])
    return None


def script_symbol(module: str, name: str) -> Symbol | None:
    """Like `symbol`, in a TorchScript archive: its own classes become records of attributes."""
    if module == "__torch__" or module.startswith("__torch__."):
        return Symbol(f"{module}.{name}", make=lambda *_: Inert(f"{module}.{name}"))
    return symbol(module, name)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: np.dtype | None = None
) -> StoredArray:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage in the pickle")
    dtype = dtype or storage.dtype
    shape, strides = tuple(shape), tuple(strides)
    check_strided(storage.size * storage.dtype.itemsize // dtype.itemsize, offset, shape, strides)

    def read() -> np.ndarray:
        return strided_view(storage.elements(dtype), offset, shape, strides)

    return StoredArray(shape, dtype, read)


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredArray:
    if not isinstance(dtype, Symbol) or not isinstance(dtype.value, np.dtype):
        raise ValueError("a tensor of an unknown element type in the pickle")
    return _tensor(storage, offset, shape, strides, dtype=dtype.value)


def _quantized_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, quantizer: Any, *_: Any
) -> StoredArray:
    whole = _tensor(storage, offset, shape, strides)
    _, scale, zero, *axis = quantizer
    along = axis[0] if axis and type(axis[0]) is int else 0
    # The scales are tensors too, whose values may follow only behind the pickle.
    return StoredArray(
        whole.shape,
        np.dtype(np.float32),
        lambda: dequantized(whole, _values(scale), _values(zero), along).read(),
    )


def _values(value: Any) -> np.ndarray:
    return np.atleast_1d(value.read() if isinstance(value, StoredArray) else np.float64(value))


def _without_values(*_: Any) -> Inert:
    return Inert("a tensor kept in a form without plain values")


def _from_numpy(array: Any, *_: Any) -> StoredArray:
    if not isinstance(array, NumpyArray) or array.array is None:
        raise ValueError("a tensor without values in the pickle")
    return StoredArray.of(array.array)


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    if not isinstance(function, Symbol) or function.make is None:
        raise ValueError("refused: a tensor rebuilt by something that is not a function of tensors")
    return function.make(*arguments)


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    made = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        if not isinstance(key, str | int):
            raise ValueError("an OrderedDict whose keys are not text in the pickle")
        made[key] = value
    return made


def _default_mapping(_: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _mapping(items)


def _sequence(items: Any = (), *_: Any) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise ValueError("a sequence made of something that is none in the pickle")
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
_RECORDS = frozenset(
    ["argparse.Namespace", "types.SimpleNamespace", "torch.device", "torch.Generator"]
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
    "torch._utils._rebuild_sparse_tensor": _without_values,
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
    **numpy_pickle.MAKERS,
}
for _module in ("builtins", "__builtin__"):
    _MAKERS |= dict.fromkeys(
        (f"{_module}.{name}" for name in ("set", "frozenset", "list", "tuple")), _sequence
    )
    _MAKERS[f"{_module}.dict"] = _mapping
    _MAKERS[f"{_module}.complex"] = _complex
for _name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
    _MAKERS[f"pathlib.{_name}"] = _text_path
