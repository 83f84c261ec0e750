"""An audit as a table for a terminal and as JSON for programs."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from kernsym_jax import cli
from kernsym_jax.geometry.input_size import Advice
from kernsym_jax.geometry.layer import FileAudit, LayerGeometry


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
    up = max(row.upsampling) > 1
    texts = (
        str(number),
        f"{row.layer} ×{row.repeats}" if row.repeats > 1 else row.layer,
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


def print_audit(title: str, rows: Sequence[LayerGeometry], advice: Advice) -> None:
    """Prints the rows of an audit and the verdict.

    Args:
      title: line above the table.
      rows: rows of the audit.
      advice: the result of `advise` for these rows.
    """
    console = cli.console()
    console.print(cli.printable(title), style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(layer_table(rows))
    for layer, why in _left_out(rows).items():
        console.print(cli.printable(f"left out: {layer}: {why}"), markup=False, highlight=False)
    console.print(advice.verdict, style="bold", markup=False, highlight=False)


def audit_json(title: str, rows: Sequence[LayerGeometry], advice: Advice) -> str:
    """Returns an audit as JSON.

    Args:
      title: name of the network.
      rows: rows of the audit.
      advice: the result of `advise` for these rows.

    Returns:
      A JSON object with the keys network, verdict, total, strided, uneven, nearest, layers (the
      rows) and left_out (layer -> the reason why it has no row).
    """
    figures = {"network": title, "verdict": advice.verdict, **dataclasses.asdict(advice)}
    layers = [row.to_dict() for row in rows]
    content = {**figures, "left_out": _left_out(rows), "layers": layers}
    return json.dumps(content, indent=1, allow_nan=False)


def _left_out(rows: Sequence[LayerGeometry]) -> dict[str, str]:
    return rows.left_out if isinstance(rows, FileAudit) else {}


def _joined(numbers: Sequence[Any], by: str = "×") -> str:
    """``"3"`` for ``(3, 3)``, ``"1×7"`` for ``(1, 7)``."""
    words = list(map(str, numbers))
    return words[0] if len(set(words)) == 1 else by.join(words)


def _padding(row: LayerGeometry) -> str:
    ends = [str(lo) if lo == hi else f"{lo}|{hi}" for lo, hi in row.padding]
    mode = "" if row.padding_mode in ("zero", "valid") else f" {row.padding_mode}"
    return _joined(ends) + mode
