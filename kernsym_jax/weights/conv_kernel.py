"""The record that every reader makes: a convolution kernel and what its file says about it."""

import dataclasses
from typing import Any

import numpy as np

Pair = tuple[int, int]
Padding = tuple[Pair, Pair] | str

CONV, DEPTHWISE, TRANSPOSED = "conv", "depthwise", "transposed"


class _Float32:
    """A field that keeps an array as its file holds it and gives it as float32."""

    def __get__(self, instance: Any, owner: type | None = None) -> np.ndarray:
        if instance is None:
            raise AttributeError("a field without a default")
        with np.errstate(over="ignore", invalid="ignore"):
            return instance.__dict__["weight"].astype(np.float32, copy=False)

    def __set__(self, instance: Any, value: Any) -> None:
        array = np.asarray(value)
        if array.ndim != 4:
            raise ValueError(f"a kernel has the axes (kh, kw, in, out); got shape {array.shape}")
        instance.__dict__["weight"] = array


@dataclasses.dataclass(frozen=True, eq=False)
class ConvKernel:
    """One two-dimensional convolution kernel; what the file does not say is None.

    A weight stored as float32 is a read-only view into its file; one stored otherwise is converted
    anew each time it is asked for, so that a network costs no more memory than its file.

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
    """What was found in one file or directory.

    Attributes:
      kernels: layer name -> kernel, for every convolution with kh·kw > 1, in forward order where
        the format keeps it.
      skipped: name -> why it is not among the kernels, for every other array or group of arrays.
      source: the path that was read.
      format: the format's name, such as ``safetensors``.
      order: where the order of `kernels` comes from: ``forward`` (a graph, or our run's layers),
        ``file`` (the order of definition), or ``name`` (nothing: names in natural order).
      layout: the stored axes and how they are known, such as ``OIHW (PyTorch)``.
      notes: remarks for the reader of a report, such as which BatchNorms were folded.
    """

    kernels: dict[str, ConvKernel]
    skipped: dict[str, str]
    source: str
    format: str
    order: str
    layout: str
    notes: tuple[str, ...] = ()
