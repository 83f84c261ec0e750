"""One row of an audit: where the windows of a convolution or pooling lie on its map."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from kernsym_jax import run_directory
from kernsym_jax.geometry.arithmetic import Windows, skew_direction

CONVOLUTIONS = ("conv", "depthwise", "transposed")
KINDS = (*CONVOLUTIONS, "max_pool", "avg_pool", "min_pool", "pool", "subsample")


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """The geometry of a layer that slides windows over a map.

    Every tuple has one entry per spatial axis: (height, width) for images.

    Attributes:
      layer: parameter path of the weights without the weights' own name, ``"layer1/conv2"``, or the
        kind and a number, ``"max_pool_1"``, where there are none or they could not be traced.
        Weights that are used twice give two rows of one name.
      kind: one of ``KINDS``. ``depthwise`` has a group per input channel; ``transposed`` spreads
        its input by ``upsampling`` first; ``subsample`` is a strided slice, or a sum of shifted
        ones (BlurPool, polyphase sampling), with the taps as its kernel.
      input_size: pixels of the map before any padding.
      output_size: pixels of the map that it makes.
      kernel: taps.
      stride: step between windows.
      dilation: step between taps.
      padding: ``(lo, hi)``, all that is added in front of the windows, by the layer itself or by
        what leads to it; negative where pixels are cropped. In pixels of the input, for transposed
        convolutions of the spread input.
      groups: of the convolution.
      padding_mode: what the padding holds: ``zero`` (any constant), ``reflect``, ``symmetric``,
        ``replicate``, ``circular``, ``valid`` (there is none), ``other``, or ``mixed`` for more
        than one of them.
      upsampling: step between the pixels of the spread input; 1 but for transposed convolutions.
      reads: numbers of the rows, counted from 0, whose output maps are this layer's input, more
        than one where branches are added or put together; -1 is the input of the network. ``None``
        where the way from there to here could not be followed.
      repeats: how many turns of loops run this layer.
    """

    layer: str
    kind: str
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    padding_mode: str = "zero"
    upsampling: tuple[int, ...] = (1, 1)
    reads: tuple[int, ...] | None = (-1,)
    repeats: int = 1

    @property
    def windows(self) -> tuple[Windows, ...]:
        """The windows along each axis, on the input spread by ``upsampling``."""
        spread = [
            (n - 1) * step + 1 for n, step in zip(self.input_size, self.upsampling, strict=True)
        ]
        axes = zip(spread, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(Windows(n, k, s, lo, hi, d) for n, k, s, (lo, hi), d in axes)

    @property
    def uneven(self) -> tuple[int, ...]:
        """Rows at the far end that no window touches: `Windows.uneven` of each axis."""
        return tuple(axis.uneven for axis in self.windows)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Rows of the map lost at its ends: `Windows.dropped` of each axis."""
        return tuple(axis.dropped for axis in self.windows)

    @property
    def centre_drift(self) -> tuple[float, ...]:
        """Middle of the windows less the middle of the map: `Windows.centre_drift` of each axis."""
        return tuple(axis.centre_drift for axis in self.windows)

    @property
    def exposure_gap(self) -> tuple[float, ...]:
        """Padding met by the near half of the taps less the far: `Windows.exposure_gap`."""
        return tuple(axis.exposure_gap for axis in self.windows)

    @property
    def even(self) -> bool:
        """Whether the windows meet as much padding at the near as at the far end of every axis."""
        return not any(self.centre_drift)

    @property
    def strided(self) -> bool:
        """Whether a kernel of more than one tap steps by more than one pixel on some axis."""
        return any(k > 1 and s > 1 for k, s in zip(self.kernel, self.stride, strict=True))

    @property
    def skew(self) -> str | None:
        """Direction to which the weights are predicted to lean, such as ``"bottom right"``.

        Only padding with a constant gives the kernel's two sides different things to see, and only
        a convolution has weights to lean: otherwise ``None``.
        """
        if self.kind not in ("conv", "depthwise") or self.padding_mode not in ("zero", "mixed"):
            return None
        return skew_direction(self.exposure_gap)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types: its attributes, and the figures that follow from them."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        figures = ("uneven", "dropped", "centre_drift", "exposure_gap", "skew")
        return _plain(row | {name: getattr(self, name) for name in figures})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "LayerGeometry":
        """Reads what `to_dict` wrote.

        Args:
          row: the mapping; figures that follow from the others are ignored.

        Raises:
          ValueError: where an attribute is missing.
        """
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in row]
        if missing:
            raise ValueError(f"layer {row.get('layer', '?')!r} lacks {', '.join(missing)}")
        return cls(**{f.name: _tuples(row[f.name]) for f in fields if f.name in row})


class FileAudit(list[LayerGeometry]):
    """The rows of the audit of a file.

    Attributes:
      left_out: layer -> why it has no row.
    """

    def __init__(self, rows: Iterable[LayerGeometry], left_out: Mapping[str, str] | None = None):
        super().__init__(rows)
        self.left_out = dict(left_out or {})


class NoGraphError(ValueError):
    """The error for a file that holds weights, but not how its layers are put together."""


def read_rows(path: str | os.PathLike) -> list[LayerGeometry]:
    """Reads the rows in the ``layers.json`` of a run directory.

    Args:
      path: the run directory.

    Returns:
      The rows.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file, if it is damaged.
    """
    rows = run_directory.read_layers(pathlib.Path(path))
    try:
        return [LayerGeometry.from_dict(row) for row in rows]
    except (ValueError, TypeError) as error:
        where = pathlib.Path(path, run_directory.LAYERS)
        raise ValueError(f"{where}: no list of layers ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
