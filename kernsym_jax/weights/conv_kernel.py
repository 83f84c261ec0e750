"""A convolution kernel with what its file states about it: the record that every reader makes."""

import dataclasses
from typing import Any

import numpy as np

from kernsym_jax.formats.arrays import shortened

Pair = tuple[int, int]
Padding = tuple[Pair, Pair] | str

CONV, DEPTHWISE, TRANSPOSED = "conv", "depthwise", "transposed"


class _Float32:
    """A dataclass field that stores an array with its own dtype and returns it as float32."""

    def __get__(self, instance: Any, owner: type | None = None) -> np.ndarray:
        if instance is None:
            raise AttributeError("weight")  # dataclasses reads this as: there is no default
        with np.errstate(over="ignore", invalid="ignore"):
            return instance.__dict__["weight"].astype(np.float32, copy=False)

    def __set__(self, instance: Any, value: Any) -> None:
        array = np.asarray(value)
        if array.ndim != 4:
            raise ValueError(f"a kernel has the axes (kh, kw, in, out); got {array.shape}")
        instance.__dict__["weight"] = array


@dataclasses.dataclass(frozen=True, eq=False)
class ConvKernel:
    """One two-dimensional convolution kernel; a fact that the file does not state is None.

    A weight that its file stores as float32 is a read-only view of the file. A weight of another
    dtype is converted at each access, so that a network takes no more memory than its file.

    Attributes:
      weight: (kh, kw, in, out) float32, `in` counted per group: a depthwise kernel has in = 1.
      kind: ``conv``, ``depthwise`` (a group per input channel) or ``transposed``.
      stride: (rows, columns).
      padding: ((top, bottom), (left, right)) in pixels, or the rule ``SAME`` (TensorFlow's) or
        ``SAME_LOWER``.
      dilation: (rows, columns).
      groups: number of channel groups.
    """

    weight: np.ndarray = _Float32()  # type: ignore[assignment]
    kind: str = CONV
    stride: Pair | None = None
    padding: Padding | None = None
    dilation: Pair | None = None
    groups: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(kh, kw, in, out), without reading the weight."""
        return self.__dict__["weight"].shape


@dataclasses.dataclass(frozen=True)
class Weights:
    """The kernels of one file or directory.

    Attributes:
      kernels: layer name -> kernel, for every convolution with kh·kw > 1, in forward order where
        the format keeps it.
      skipped: name -> why it is not among the kernels, for every other array or group of arrays.
      source: the path that was read.
      format: the format's name, such as ``safetensors``.
      order: the order of `kernels`: ``forward`` (from a graph, or from our run's layers), ``file``
        (the order of definition), or ``name`` (the natural order of names, where nothing tells
        another).
      layout: the stored axes and how the reader knows them, such as ``OIHW (recognised)``.
      notes: remarks for the reader of a report, such as the number of folded BatchNorms.
      step: the number of steps or epochs after which the file says that it was saved, or None.
      first: the layer whose input is the image, where channels instead of the order tell it; it is
        not among `kernels` if it has no spatial extent.
    """

    kernels: dict[str, ConvKernel]
    skipped: dict[str, str]
    source: str
    format: str
    order: str
    layout: str
    notes: tuple[str, ...] = ()
    step: int | None = None
    first: str | None = None


MAX_NAME = 4000
"""Characters of a layer's name; no framework nests containers so deep that it needs more."""

_FREE_BYTES, _SHARED = 64 << 20, 64


def checked(weights: Weights) -> Weights:
    """Refuses kernels that no network has, and makes every name printable in UTF-8.

    Args:
      weights: as a reader has found them.

    Raises:
      ValueError: if a name has more than `MAX_NAME` characters, or if the kernels share so few
        bytes that measuring them would take far longer than reading them.
    """
    for name in weights.kernels:
        if len(name) > MAX_NAME:
            raise ValueError(f"a layer whose name has {len(name)} characters: {name[:40]!r}…")
    arrays = [kernel.__dict__["weight"] for kernel in weights.kernels.values()]
    elements, stored = sum(array.size for array in arrays), _distinct_bytes(arrays)
    if 4 * elements > _FREE_BYTES + _SHARED * stored:
        raise ValueError(f"refused: {len(arrays)} kernels of {elements} elements in {stored} bytes")
    return dataclasses.replace(
        weights,
        kernels={_in_utf8(name): kernel for name, kernel in weights.kernels.items()},
        skipped={
            _in_utf8(shortened(name, MAX_NAME)): _in_utf8(reason)
            for name, reason in weights.skipped.items()
        },
    )


def _distinct_bytes(arrays: list[np.ndarray]) -> int:
    """The bytes of memory that arrays take together, counted once where they overlap."""
    total = reached = 0
    for start, end in sorted(map(np.lib.array_utils.byte_bounds, arrays)):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _in_utf8(name: str) -> str:
    """The name with what UTF-8 cannot hold, halves of surrogate pairs, written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
