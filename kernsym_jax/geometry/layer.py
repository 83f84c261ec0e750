"""The rows of an audit: the geometry of each layer, as a table for a terminal and as JSON."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernsym_jax import cli, run_directory
from kernsym_jax.formats.arrays import shortened
from kernsym_jax.geometry.arithmetic import Windows, skew_direction

if TYPE_CHECKING:
    from kernsym_jax.geometry.input_size import Advice

CONVOLUTIONS = ("conv", "depthwise", "transposed")
"""The kinds of layers that have weights."""
KINDS = (*CONVOLUTIONS, "max_pool", "avg_pool", "min_pool", "pool", "subsample")
"""The kinds of layers that an audit tells apart."""

# Sums and products of the numbers of a row are exact below this, also in floating point.
_LARGEST = 1 << 53
# The exposure of a layer takes memory for each tap of its kernel.
_MOST_TAPS = 1 << 16
# A terminal shows the first rows and the ends of long names; a program reads all of it as JSON.
_MOST_ROWS, _LONGEST_NAME = 2000, 200


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """The geometry of a layer that slides windows over a map.

    Every tuple has one entry per spatial axis: (height, width) for images.

    Attributes:
      layer: path of the weights without the weights' own name, ``"layer1/conv2"``; the kind and a
        number, ``"max_pool_1"``, if the layer has no weights or the audit could not trace them.
        Weights that are used twice give two rows with the same name.
      kind: one of ``KINDS``. ``depthwise`` has a group per input channel; ``transposed`` spreads
        its input by ``upsampling`` first; ``subsample`` is a strided slice, or a sum of shifted
        ones (BlurPool, polyphase sampling), with the taps as its kernel.
      input_size: pixels of the input map, without any padding.
      output_size: pixels of the output map.
      kernel: number of taps.
      stride: step between windows.
      dilation: step between taps.
      padding: ``(lo, hi)`` in pixels of the input (of the spread input for transposed
        convolutions): the sum of the layer's own padding and of what operations before the layer
        added. Negative if pixels are cropped.
      groups: groups of the convolution.
      padding_mode: content of the padding: ``zero`` (any constant), ``reflect``, ``symmetric``,
        ``replicate``, ``circular``, ``valid`` (no padding), ``other``, or ``mixed`` for several of
        them.
      upsampling: step between the pixels of the spread input; 1 unless ``kind`` is ``transposed``.
      reads: numbers of the rows, counted from 0, whose output maps are the input of this layer;
        several if branches are added or concatenated. -1 is the input of the network. ``None`` if
        the audit could not follow the path between the layers.
      repeats: how many times loops run this layer.

    Raises:
      ValueError: if a number is beyond 2**53, or if the kernel of a convolution has more than
        65,536 taps along an axis.

    >>> from kernsym_jax import geometry
    >>> row = geometry.LayerGeometry(
    ...     "conv", "conv", (32, 32), (16, 16), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    ... )
    >>> row.uneven, row.skew, row.even
    ((1, 1), 'bottom right', False)
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

    def __post_init__(self) -> None:
        spread = [n * step for n, step in zip(self.input_size, self.upsampling, strict=True)]
        ends = [abs(end) for pair in self.padding for end in pair]
        largest = max(*spread, *self.output_size, *self.stride, *self.dilation, *ends)
        if largest > _LARGEST:
            raise ValueError(f"{self.layer}: a number of {largest:.3g}, more than 2**53")
        if self.kind in CONVOLUTIONS and max(self.kernel) > _MOST_TAPS:
            taps = _joined(self.kernel)
            raise ValueError(f"{self.layer}: a kernel of {taps} taps, more than {_MOST_TAPS}")

    @property
    def windows(self) -> tuple[Windows, ...]:
        """The windows along each axis of the input, which ``upsampling`` spreads."""
        spread = [
            (n - 1) * step + 1 for n, step in zip(self.input_size, self.upsampling, strict=True)
        ]
        axes = zip(spread, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(Windows(n, k, s, lo, hi, d) for n, k, s, (lo, hi), d in axes)

    @property
    def uneven(self) -> tuple[int, ...]:
        """Rows at the far end that no window touches, see `Windows.uneven`."""
        return tuple(axis.uneven for axis in self.windows)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Rows of the map that are lost at its ends, see `Windows.dropped`."""
        return tuple(axis.dropped for axis in self.windows)

    @property
    def centre_drift(self) -> tuple[float, ...]:
        """Centre of the windows minus the centre of the map, see `Windows.centre_drift`."""
        return tuple(axis.centre_drift for axis in self.windows)

    @property
    def exposure_gap(self) -> tuple[float, ...]:
        """Padding at the near taps minus padding at the far taps, see `Windows.exposure_gap`."""
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
        """The direction to which the weights should lean, such as ``"bottom right"``, or None.

        Only a convolution has weights, and only padding with a constant looks different from the
        image; for all other layers there is no prediction.
        """
        if self.kind not in ("conv", "depthwise") or self.padding_mode not in ("zero", "mixed"):
            return None
        return skew_direction(self.exposure_gap)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON types: the attributes and the figures that follow from them."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        figures = ("uneven", "dropped", "centre_drift", "exposure_gap", "skew")
        return _plain(row | {name: getattr(self, name) for name in figures})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "LayerGeometry":
        """Reads a row that `to_dict` wrote.

        Args:
          row: the mapping; figures that follow from the attributes are ignored.

        Returns:
          The row.

        Raises:
          ValueError: if an attribute is missing.
        """
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in row]
        if missing:
            raise ValueError(f"layer {row.get('layer', '?')!r} lacks {', '.join(missing)}")
        return cls(**{f.name: _tuples(row[f.name]) for f in fields if f.name in row})


MISFIT = "the network does not run at this size"
"""Begins the reason of a layer that is left out because its weights do not fit the map."""


class FileAudit(list[LayerGeometry]):
    """The rows of the audit of a file.

    Attributes:
      left_out: layer -> the reason why it has no row, or why the network does not run (`MISFIT`).

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> audit = geometry.FileAudit(rows, left_out={"attention": "its shape cannot be inferred"})
    >>> len(audit), audit.left_out
    (2, {'attention': 'its shape cannot be inferred'})
    """

    def __init__(self, rows: Iterable[LayerGeometry], left_out: Mapping[str, str] | None = None):
        super().__init__(rows)
        self.left_out = dict(left_out or {})


class NoGraphError(ValueError):
    """The error for a file that holds weights, but not how its layers are put together.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import geometry
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    >>> np.savez(path, conv=np.ones((3, 3, 1, 8)))
    >>> try:
    ...     geometry.audit_file(path, 32)
    ... except geometry.NoGraphError:
    ...     print("only weights")
    ...
    only weights
    """


def read_rows(path: str | os.PathLike) -> list[LayerGeometry]:
    """Reads the rows in the ``layers.json`` of a run directory.

    Args:
      path: the run directory.

    Returns:
      The rows.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged; the message names it.

    >>> import json
    >>> import pathlib
    >>> import tempfile
    >>> from kernsym_jax import geometry, models
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (run / "layers.json").write_text(json.dumps(models.layer_rows("resnet18")))
    >>> len(geometry.read_rows(run))
    21
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


def layer_table(rows: Sequence[LayerGeometry]) -> Any:
    """Returns the rows of an audit as a table in which uneven layers are coloured.

    The columns are the sizes of the input and output maps, kernel k, stride s, dilation d, padding,
    and the figures uneven (u), dropped (lost), centre_drift (drift) and skew (leans to) of
    `LayerGeometry`. A cell holds one number per axis if the axes differ. ``0|1`` means padding of 0
    at the near end and 1 at the far end.

    Args:
      rows: rows of an audit.

    Returns:
      A rich.table.Table.

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> geometry.layer_table(rows).row_count
    2
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [_cells(number, row) for number, row in enumerate(rows)]
    optional = {
        "d": any(max(row.dilation) > 1 for row in rows),
        "lost": any(max(row.dropped) > 0 for row in rows),
    }
    columns = [name for name in _COLUMNS if optional.get(name, True)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        left = name in ("layer", "kind", "leans to")
        if name == "layer":
            table.add_column(name, overflow="fold", min_width=12)
        else:
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        style = "" if row.even else "bold red" if row.strided else "yellow"
        table.add_row(*(Text(cli.printable(texts[name])) for name in columns), style=style)
    return table


_COLUMNS = ("#", "layer", "kind", "map", "k", "s", "d", "padding", "u", "lost", "drift", "leans to")


def _cells(number: int, row: LayerGeometry) -> dict[str, str]:
    up, name = max(row.upsampling) > 1, shortened(row.layer, _LONGEST_NAME)
    texts = (
        str(number),
        f"{name} ×{row.repeats}" if row.repeats > 1 else name,
        row.kind,
        f"{_joined(row.input_size)}→{_joined(row.output_size)}",
        _joined(row.kernel),
        f"1/{_joined(row.upsampling)}" if up else _joined(row.stride),
        _joined(row.dilation),
        _padding(row),
        _joined(row.uneven),
        _joined(row.dropped),
        _joined([f"{drift:+g}" if drift else "0" for drift in row.centre_drift], " "),
        row.skew or "",
    )
    return dict(zip(_COLUMNS, texts, strict=True))


def print_audit(title: str, rows: Sequence[LayerGeometry], advice: "Advice") -> None:
    """Prints the rows of an audit and the verdict.

    Args:
      title: line above the table.
      rows: rows of the audit.
      advice: the result of `advise` for these rows.

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> geometry.print_audit("two layers", rows, geometry.advise(rows))  # doctest: +ELLIPSIS
    two layers
    ...
    uneven at 1 of 1 strided layer; 33 is the nearest size where none is
    """
    console = cli.console()
    console.print(cli.printable(title), style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(layer_table(rows[:_MOST_ROWS]))
    if len(rows) > _MOST_ROWS:
        console.print(f"… {len(rows) - _MOST_ROWS} more layers, which --json lists")
    for layer, why in list(_left_out(rows).items())[:_MOST_ROWS]:
        text = f"left out: {shortened(layer, _LONGEST_NAME)}: {shortened(why, _LONGEST_NAME)}"
        console.print(cli.printable(text), markup=False, highlight=False)
    console.print(advice.verdict, style="bold", markup=False, highlight=False)


def audit_json(title: str, rows: Sequence[LayerGeometry], advice: "Advice") -> str:
    """Returns an audit as JSON.

    Args:
      title: name of the network.
      rows: rows of the audit.
      advice: the result of `advise` for these rows.

    Returns:
      A JSON object with the keys network, verdict, total, strided, uneven, nearest, runs, layers
      (the rows) and left_out (layer -> the reason why it has no row).

    >>> from kernsym_jax import geometry
    >>> rows = geometry.layers_at([(3, 2, 1), (3, 1, 1)], 32)
    >>> import json
    >>> found = json.loads(geometry.audit_json("net", rows, geometry.advise(rows)))
    >>> found["uneven"], found["nearest"], len(found["layers"])
    (1, 33, 2)
    """
    figures = {"network": title, "verdict": advice.verdict, **dataclasses.asdict(advice)}
    layers = [row.to_dict() for row in rows]
    content = {**figures, "left_out": _left_out(rows), "layers": layers}
    return json.dumps(content, indent=1, allow_nan=False)


def _left_out(rows: Sequence[LayerGeometry]) -> dict[str, str]:
    return rows.left_out if isinstance(rows, FileAudit) else {}


def _joined(numbers: Sequence[Any], by: str = "×") -> str:
    """Returns ``"3"`` for ``(3, 3)`` and ``"1×7"`` for ``(1, 7)``."""
    words = list(map(str, numbers))
    return words[0] if len(set(words)) == 1 else by.join(words)


def _padding(row: LayerGeometry) -> str:
    ends = [str(lo) if lo == hi else f"{lo}|{hi}" for lo, hi in row.padding]
    mode = "" if row.padding_mode in ("zero", "valid") else f" {row.padding_mode}"
    return _joined(ends) + mode
