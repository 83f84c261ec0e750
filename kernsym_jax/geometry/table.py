"""An audit for a terminal, as a table, and for programs, as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from kernsym_jax.geometry.advice import Advice
from kernsym_jax.geometry.layer import LayerGeometry


def layer_table(rows: Sequence[LayerGeometry], title: str) -> Any:
    """Lays out the rows of an audit, uneven layers in colour.

    Args:
      rows: of an audit.
      title: above the table. Like the layers' names it is shown as it is, never as markup.

    Returns:
      A rich.table.Table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("#", "layer", "kind"):
        table.add_column(name, justify="right" if name == "#" else "left")
    for name in ("input", "output", "kernel", "stride", "dilation", "padding"):
        table.add_column(name, justify="right")
    for name in ("u", "dropped", "drift"):
        table.add_column(name, justify="right")
    table.add_column("weights lean to")
    for number, row in enumerate(rows):
        cells = (
            str(number),
            f"{row.layer} ×{row.repeats}" if row.repeats > 1 else row.layer,
            row.kind,
            _joined(row.input_size),
            _joined(row.output_size),
            _joined(row.kernel),
            f"1/{_joined(row.upsampling)}" if max(row.upsampling) > 1 else _joined(row.stride),
            _joined(row.dilation),
            _padding(row),
            _joined(row.uneven),
            _joined(row.dropped),
            _joined([f"{drift:+g}" if drift else "0" for drift in row.centre_drift], ", "),
            row.skew or "",
        )
        style = "" if row.even else "bold red" if row.strided else "yellow"
        table.add_row(*(Text(_printable(cell)) for cell in cells), style=style)
    return table


def print_audit(title: str, rows: Sequence[LayerGeometry], advice: Advice) -> None:
    """Prints the rows of an audit and the verdict.

    Args:
      title: above the table.
      rows: of the audit.
      advice: what they come to.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe has no width; what reads it wants whole rows.
        console = Console(width=200)
    console.print(layer_table(rows, title))
    console.print(advice.verdict, style="bold", markup=False, highlight=False)


def audit_json(title: str, rows: Sequence[LayerGeometry], advice: Advice) -> str:
    """Writes an audit as JSON: its title, the verdict and its figures, and the rows.

    Args:
      title: of the network.
      rows: of the audit.
      advice: what they come to.

    Returns:
      A JSON object: network, verdict, total, strided, uneven, nearest, and the rows as layers.
    """
    figures = {"network": title, "verdict": advice.verdict, **dataclasses.asdict(advice)}
    layers = [row.to_dict() for row in rows]
    return json.dumps({**figures, "layers": layers}, indent=1, allow_nan=False)


def _joined(numbers: Sequence[Any], by: str = "×") -> str:
    """``"3"`` for ``(3, 3)``, ``"1×7"`` for ``(1, 7)``."""
    words = list(map(str, numbers))
    return words[0] if len(set(words)) == 1 else by.join(words)


def _padding(row: LayerGeometry) -> str:
    ends = [str(lo) if lo == hi else f"{lo}|{hi}" for lo, hi in row.padding]
    mode = "" if row.padding_mode in ("zero", "valid") else f" {row.padding_mode}"
    return _joined(ends) + mode


def _printable(text: str) -> str:
    """The text with everything that a terminal would act on written out as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
