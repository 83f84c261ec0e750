"""The common parts of all readers of formats.

They are: arrays that stay in a mapped file until their values are used; checks of the sizes that a
file claims; JSON of bounded size; names of arrays; one error for every damaged file; and hints on
kinds of files that are not read.
"""

import contextlib
import dataclasses
import functools
import json
import math
import mmap
import os
import pathlib
import re
import reprlib
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

MAX_AXES = 32
"""Axes that an array in a file may have; NumPy's limit is higher."""

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e4m3b11fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
    if hasattr(ml_dtypes, name)
} | {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
}
"""Every element type that the readers understand, by NumPy's name."""


_FLOATING = frozenset(name for name in DTYPES if name.startswith(("float", "bfloat")))

_HEAD = 1024

_DOWNLOAD = "download the file itself, by its raw link"
_UNPACK = "unpack it first"
_STARTS = {
    b"version https://git-lfs.github.com/spec": (
        "a Git LFS pointer in place of the file: fetch it with `git lfs pull`"
    ),
    b"\x1f\x8b": f"compressed by gzip: {_UNPACK} (gunzip, or tar -xzf)",
    b"BZh": f"compressed by bzip2: {_UNPACK}",
    b"\xfd7zXZ\0": f"compressed by xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd: {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive: {_UNPACK}",
    b"Rar!\x1a\x07": f"a RAR archive: {_UNPACK}",
    b"MATLAB 5.0 MAT-file": (
        "a MATLAB file (v5): save its arrays with numpy.savez(path, **scipy.io.loadmat(file))"
    ),
    b"MATLAB 7.3 MAT-file": (
        "a MATLAB file (v7.3, an HDF5 file): save its arrays as .npz with h5py and numpy.savez"
    ),
    b"GGUF": "GGUF, a format of llama.cpp: convert it to safetensors",
    b"lmgg": "GGML, a format of llama.cpp: convert it to safetensors",
    b"%PDF": "a PDF, not weights",
    b"\x89PNG\r\n\x1a\n": "a PNG image, not weights",
    b"\xff\xd8\xff": "a JPEG image, not weights",
    b"GIF8": "a GIF image, not weights",
    b"II*\0": "a TIFF image, not weights",
    b"MM\0*": "a TIFF image, not weights",
    b"\x7fELF": "a program, not weights",
    b"PAR1": "a Parquet table, not weights",
    b"\4\0\0\0\1\0\0\0": "Torch7: convert it with a loader of t7 files, such as torchfile",
}
_SUFFIXES = {
    ".mlmodel": "Core ML: export the network to ONNX, or save its weights with coremltools",
    ".pb": "a TensorFlow graph: give the folder of its SavedModel, with variables/ in it",
    ".pdmodel": "a Paddle program: give its .pdparams, or convert it with paddle2onnx",
    ".caffemodel": "Caffe: convert it to ONNX",
    ".prototxt": "a Caffe network without weights: convert its .caffemodel to ONNX",
    ".engine": "a TensorRT engine: give the ONNX file that it was built from",
    ".trt": "a TensorRT engine: give the ONNX file that it was built from",
    ".cfg": "a configuration: give the .weights beside it",
    ".py": "a Python script, not weights",
    ".ipynb": "a notebook, not weights",
    ".yaml": "a configuration, not weights",
    ".yml": "a configuration, not weights",
    ".md": "text, not weights",
}
_PAGE = re.compile(rb"\s*<(!doctype\s+html|html|head|body|\?xml|svg|error)\b", re.IGNORECASE)
_SCRIPT = re.compile(rb"(#!.*python|(import|from) \w+|\"\"\"|def \w+\()")


@functools.lru_cache(maxsize=64)
def is_floating(dtype: np.dtype) -> bool:
    """Returns whether weights can be trained in an element type."""
    return dtype.newbyteorder("=").name in _FLOATING


OPENED_FOLDER = "kernsym_jax.opened_folder"
"""The audit event of a folder whose files a library opens: (path, bytes of its files)."""

Path = tuple[str, ...]
"""The keys from the root of a nested container to one array."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file: its shape and type are known, its values not read yet.

    Attributes:
      shape: the sizes of its axes.
      dtype: its element type.
      read: returns the values, as a view of the file where the format allows it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: Any) -> "StoredArray":
        """Wraps an array in memory or a view of a mapped file."""
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda: array)


class MappedFile(mmap.mmap):
    """A file mapped into memory for reading.

    Attributes:
      identity: its path, device, number and size, which tell it from a file that replaces it.
      address: of its first byte in this process.
    """

    identity: tuple[str, int, int, int]
    address: int


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
      ValueError: if it is a pipe or a device, which might never answer.
      OSError: if it cannot be opened.
    """
    # Opening a pipe without this flag waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ValueError(f"{pathlib.Path(path).name!r} is not a regular file")


def map_file(path: str | os.PathLike) -> np.ndarray:
    """Maps a file into memory as uint8 (bytes,); the system reads the parts that are used.

    Raises:
      ValueError: if the file is empty or no regular file.
      OSError: if it cannot be opened.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise ValueError("the file is empty")
        mapped = MappedFile(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)
    mapped.identity = (os.path.abspath(path), status.st_dev, status.st_ino, status.st_size)
    mapped.address = data.__array_interface__["data"][0]
    return data


def element_count(shape: Iterable[Any]) -> int:
    """Returns the number of elements of a shape that a file claims.

    Raises:
      ValueError: if it is not a shape.
    """
    sizes = tuple(shape)
    if len(sizes) > MAX_AXES or not all(_is_size(size) for size in sizes):
        raise ValueError(f"an array cannot have the shape {reprlib.repr(sizes)}")
    return math.prod(sizes)


def view(data: np.ndarray, start: int, dtype: np.dtype, shape: Iterable[int]) -> np.ndarray:
    """Returns a part of a mapped file as an array.

    Args:
      data: uint8 (bytes,).
      start: offset of the first element in bytes.
      dtype: the element type.
      shape: the sizes of the axes, in row-major order.

    Raises:
      ValueError: if it reaches outside the data.
    """
    shape = tuple(shape)
    end = start + element_count(shape) * dtype.itemsize
    if not 0 <= start <= end <= data.size:
        raise ValueError(
            f"array at bytes {start} to {end} of {data.size}: the file is cut or damaged"
        )
    return data[start:end].view(dtype).reshape(shape)


def strided_view(
    elements: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    """Returns a strided window on a flat array, as a PyTorch tensor is on its storage.

    Args:
      elements: (n,).
      offset: index of the first element.
      shape: the sizes of the axes.
      strides: the distance between neighbours along each axis, in elements.

    Raises:
      ValueError: if it reaches outside the array.
    """
    check_strided(elements.size, offset, shape, strides)
    if math.prod(shape) == 0:
        return np.empty(shape, elements.dtype)
    step = elements.dtype.itemsize
    return np.ndarray(
        shape, elements.dtype, elements, offset * step, tuple(stride * step for stride in strides)
    )


def check_strided(size: int, offset: Any, shape: Any, strides: Any) -> None:
    """Raises a ValueError if a strided window does not lie within `size` elements."""
    count = element_count(shape)
    if len(strides) != len(shape) or not all(_is_size(value) for value in (offset, *strides)):
        raise ValueError(
            f"a tensor of shape {tuple(shape)} has the strides {reprlib.repr(strides)} "
            f"at offset {reprlib.repr(offset)}"
        )
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # An expanded tensor repeats its elements and may claim any size with a tiny storage.
    if count > max(size, 1 << 20) or (count and last >= size):
        raise ValueError(
            f"a tensor of shape {tuple(shape)}, strides {tuple(strides)} and offset {offset} "
            f"does not fit its storage of {size} elements"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


MAX_JSON = 32 << 20


def dequantized(
    array: StoredArray, scale: np.ndarray, zero: np.ndarray | None, axis: int
) -> StoredArray:
    """Returns the array (array − zero) · scale in float32, computed when it is read.

    Args:
      array: integers.
      scale: (1,), or (n,) with one number for each index of the axis.
      zero: the integers that stand for 0, of the same shapes; None for 0 itself.
      axis: the axis along which scales and zeros differ.

    Raises:
      ValueError: if the number of scales or zeros is neither 1 nor the length of the axis.
    """
    zero = np.zeros(1) if zero is None or not zero.size else zero
    for values in (scale, zero):
        fits = -len(array.shape) <= axis < len(array.shape) and array.shape[axis] == values.size
        if values.size != 1 and not fits:
            raise ValueError(f"{values.size} scales for axis {axis} of an array {array.shape}")

    def along(values: np.ndarray) -> np.ndarray:
        sizes = [1] * len(array.shape)
        if values.size > 1:
            sizes[axis] = values.size
        return values.astype(np.float32).reshape(sizes)

    def read() -> np.ndarray:
        return (array.read().astype(np.float32) - along(zero)) * along(scale)

    return StoredArray(array.shape, np.dtype(np.float32), read)


def parse_json(
    content: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Parses JSON.

    Args:
      content: UTF-8, or text.
      pairs: builds an object from its (name, value) pairs.

    Raises:
      ValueError: if it is not JSON, or larger than any listing of arrays.
    """
    if len(content) > MAX_JSON:
        raise ValueError(f"{len(content)} bytes of JSON, more than the limit of {MAX_JSON}")
    try:
        return json.loads(content, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


_DIGITS = re.compile(r"(\d{1,18})")
WEIGHT_LEAVES = frozenset((
    "weight", "kernel", "weights", "w", "W", "weight_v", "weight_orig", "depthwise_kernel",
    "original",
))  # fmt: skip
"""The usual last parts of the names of kernels."""


def leaf_name(name: str) -> str:
    """Returns the last part of a name: ``weight`` of ``layer1.0.conv1.weight``."""
    return name[max(name.rfind("."), name.rfind("/")) + 1 :]


def layer_name(name: str) -> str:
    """Returns the layer in a kernel's name: ``layer1.0.conv1`` of ``layer1.0.conv1.weight``."""
    leaf = leaf_name(name)
    parent = name.removesuffix(leaf)[:-1]
    return parent if leaf in WEIGHT_LEAVES and parent else name


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a sort key that puts ``layer2`` before ``layer10``."""
    return tuple(
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)
        for part in _DIGITS.split(name)
    )


LONGEST_MESSAGE = 280
"""Characters of a message about a source; a line of 300 has room for the program's name too."""

_LONGEST_NAME = 200


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Turns every error that a damaged file causes into one line that names the file.

    Args:
      path: the file or directory that is read inside the context.

    Raises:
      ValueError: of at most `LONGEST_MESSAGE` characters, for any error of damaged data. The
        libraries that parse files have many kinds of errors, so every kind counts but those of
        missing files, permissions and libraries.
    """
    try:
        # Python's own parsers warn about odd escapes in what they read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        named = str(error).startswith((f"{os.fspath(path)}: ", f"{os.fspath(path)}{os.sep}"))
        if isinstance(error, ValueError) and named:
            if len(str(error)) <= LONGEST_MESSAGE:
                raise
            raise type(error)(shortened(str(error), LONGEST_MESSAGE)) from error
        raise ValueError(_message(os.fspath(path), error)) from error


def _message(path: str, error: Exception) -> str:
    """Puts a path in front of an error; names from the file may hold line breaks and escapes."""
    name = shortened(path, _LONGEST_NAME)
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        text = "refused: reading it takes too much memory"
    elif isinstance(error, RecursionError):
        text = "refused: its parts are nested too deep"
    text = shortened(text, LONGEST_MESSAGE - len(name) - 2)
    return f"{name}: {''.join(c if c.isprintable() else '?' for c in text)}"


def shortened(text: str, length: int) -> str:
    """Returns the text, cut in its middle if it has more than `length` characters."""
    if len(text) <= length:
        return text
    end = length // 2
    return f"{text[: length - end - 1]}…{text[-end:]}"


def what_it_is(path: str | os.PathLike) -> str | None:
    """Returns a hint for a file of a known kind that is not read, or None for any other file.

    Args:
      path: a file or a folder.
    """
    location = pathlib.Path(path)
    suffix = location.suffix.lower()
    if location.is_dir():
        is_core_ml = suffix == ".mlpackage" or (location / "Manifest.json").is_file()
        return _SUFFIXES[".mlmodel"] if is_core_ml else None
    with open_regular(location) as file:
        head = file.read(_HEAD)
    # The reader reports an empty file, and the name of an archive says little.
    if not head or head.startswith((b"PK", b"\x89HDF")):
        return None
    return _hint(head) or _SUFFIXES.get(suffix) or _as_text(head, suffix)


def _as_text(head: bytes, suffix: str) -> str | None:
    """Says that a file is text, such as the answer of a server in place of the file."""
    if suffix in (".json", ".index") or len(head) == _HEAD or not head.isascii():
        return None
    text = head.decode()
    shown = " ".join(text.split())[:40]
    return (
        f"text, not weights: {shown!r}"
        if all(c.isprintable() or c.isspace() for c in text)
        else None
    )


def _hint(head: bytes) -> str | None:
    for start, hint in _STARTS.items():
        if head.startswith(start):
            return hint
    if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        return f"a web page saved in place of the file: {_DOWNLOAD}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK} (tar -xf)"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image, not weights"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "a BMP image, not weights"
    if _SCRIPT.match(head):
        return "a Python script, not weights"
    return None
