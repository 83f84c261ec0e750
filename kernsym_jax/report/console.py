"""The layer table and the summary for a terminal."""

from collections.abc import Sequence
from typing import Any

from kernsym_jax.cli import printable
from kernsym_jax.report import consistency
from kernsym_jax.report.layer_table import NetworkTable
from kernsym_jax.report.summary import advice, in_words, sentences, summarize


def print_tables(tables: Sequence[NetworkTable]) -> None:
    """Prints a table and its summary per network.

    Args:
      tables: from `network_table`.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe has no width; what reads it wants whole rows.
        console = Console(width=160)
    for table in tables:
        console.print(_layer_table(table))
        said = [*sentences(summarize(table)), advice(table), consistency.sentence(table)]
        console.print(" ".join(filter(None, said)), style="bold", markup=False, highlight=False)
        skipped = len(table.weights.skipped)
        console.print(
            f"{table.weights.format}, {table.weights.layout}; "
            f"{skipped} other {'entry' if skipped == 1 else 'entries'} left out",
            style="dim",
            markup=False,
            highlight=False,
        )


def _layer_table(table: NetworkTable) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Names come out of files: as Text they are shown, never taken as markup or escapes.
    grid = Table(title=Text(printable(table.source)), box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("#", "layer", "role", "kernel", "stride", "u"):
        grid.add_column(name, justify="left" if name in ("layer", "role") else "right")
    for name in ("score", "null", "p", "centred", "odd"):
        grid.add_column(name, justify="right")
    grid.add_column("asymmetry and notes")
    for row in table.rows:
        kh, kw, *_ = row["shape"].split("×")
        words = "; ".join(filter(None, (in_words(row), row["note"])))
        beyond = row["score"] is not None and row["score"] > row["null_q95"]
        cells = (
            "" if row["order"] is None else str(row["order"]),
            printable(row["layer"]),
            row["role"] or "",
            f"{kh}×{kw}",
            row["stride"] or "",
            _uneven(row),
            Text(figure(row["score"]), style="bold green" if beyond else ""),
            f"{row['null_mean']:.3f} ≤ {row['null_q95']:.3f}",
            "" if row["p_value"] is None else f"{row['p_value']:.2g}",
            figure(row["score_centered"]),
            "" if row["E"] is None else f"{100 * row['E']:.0f} %",
            words,
        )
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return grid


def figure(value: float | None) -> str:
    """Three digits, or ``undefined``."""
    return "undefined" if value is None else f"{value:.3f}"


def _uneven(row: dict[str, Any]) -> str:
    if row["uneven_h"] is None:
        return ""
    same = row["uneven_h"] == row["uneven_w"]
    return str(row["uneven_h"]) if same else f"{row['uneven_h']}, {row['uneven_w']}"
