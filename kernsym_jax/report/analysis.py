"""From sources of weights to a folder of results and the tables on the terminal."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax import cli
from kernsym_jax.report.figures import write_figures
from kernsym_jax.report.layer_table import COLUMNS
from kernsym_jax.report.page import write_page
from kernsym_jax.report.sources import Options, find_sources, read_table
from kernsym_jax.report.summary import (
    advice,
    answers_sentence,
    evaluation_figures,
    in_words,
    sentences,
    summarize,
)
from kernsym_jax.report.tables import NetworkTable

# Drawing takes longer than measuring. More networks than this are drawn on the page only.
_MOST_DRAWN = 20


def analyze(
    places: Sequence[str | pathlib.Path], out: str | pathlib.Path, options: Options | None = None
) -> tuple[list[NetworkTable], dict[str, str]]:
    """Measures networks, prints their tables and writes the report.

    Args:
      places: run directories, files of weights, folders of them, and patterns.
      out: the folder for ``layers.csv``, ``layers.json``, ``mean_kernels.npz``, ``figures/`` and
        ``report.html``; created if it is missing.
      options: settings for reading the sources.

    Returns:
      The tables, and source -> reason for those that could not be analyzed.

    Raises:
      ValueError: if no source can be read, or none has a spatial convolution.
      FileNotFoundError: if a place does not exist.
    """
    sources = find_sources([str(place) for place in places])
    folder = _make_folder(out)
    tables, failed = [], {}
    for source in sources:
        try:
            tables.append(read_table(source, options))
        except (ValueError, OSError) as error:
            if len(sources) == 1:
                raise
            failed[cli.path_name(source)] = str(error)
    if not tables:
        reasons = "; ".join(failed.values())
        raise ValueError(f"none of {len(sources)} sources could be analyzed: {reasons}")
    print_tables(tables)
    write_results(tables, folder)
    return tables, failed


def write_results(tables: Sequence[NetworkTable], out: pathlib.Path) -> None:
    """Writes the tables, the mean kernels, the figures of up to 20 networks, and the page.

    Args:
      tables: one per network.
      out: the folder; created if it is missing.
    """
    _make_folder(out)
    rows = [row for table in tables for row in table.rows]
    with (out / "layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    networks = [_as_json(table) for table in tables]
    (out / "layers.json").write_text(
        json.dumps(networks, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    several = len(tables) > 1
    kernels = {
        f"{table.source}:{layer}" if several else layer: kernel
        for table in tables
        for layer, kernel in table.mean_kernels.items()
    }
    with (out / "mean_kernels.npz").open("wb") as file:
        np.savez(file, **_file_names(kernels))
    for index, table in enumerate(tables if len(tables) <= _MOST_DRAWN else [], 1):
        write_figures(table, out / "figures", prefix=f"{index}_" if several else "")
    write_page(tables, out / "report.html")


def write_parquet(tables: Sequence[NetworkTable], path: pathlib.Path) -> None:
    """Writes the rows of ``layers.csv`` as a Parquet file.

    Args:
      tables: one per network.
      path: the file.

    Raises:
      ValueError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'kernsym-jax[parquet]'") from None
    rows = [row for table in tables for row in table.rows]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def print_tables(tables: Sequence[NetworkTable]) -> None:
    """Prints the table and the summary of each network.

    Args:
      tables: one per network.
    """
    console = cli.console()
    for table in tables:
        console.print(_layer_table(table))
        said = [*sentences(summarize(table)), advice(table), answers_sentence(table.consistency)]
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

    # Names come from files. Inside a Text they are shown as they are, not as markup.
    title = Text(cli.printable(table.source))
    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
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
            cli.printable(row["layer"]),
            row["role"] or "",
            f"{kh}×{kw}",
            row["stride"] or "",
            _uneven(row),
            Text(_figure(row["score"]), style="bold green" if beyond else ""),
            f"{row['null_mean']:.3f} ≤ {row['null_q95']:.3f}",
            "" if row["p_value"] is None else f"{row['p_value']:.2g}",
            _figure(row["score_centered"]),
            "" if row["E"] is None else f"{100 * row['E']:.0f} %",
            words,
        )
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return grid


def _as_json(table: NetworkTable) -> dict[str, Any]:
    """The network's entry in ``layers.json``."""
    return {
        "source": table.source,
        "format": table.weights.format,
        "layout": table.weights.layout,
        "order": table.weights.order,
        "summary": summarize(table),
        "advice": advice(table),
        "consistency": evaluation_figures(table.consistency) if table.consistency else None,
        "layers": table.rows,
        "skipped": table.weights.skipped,
        "notes": list(table.weights.notes),
    }


def _make_folder(out: str | pathlib.Path) -> pathlib.Path:
    if not str(out):
        raise ValueError("the folder for the report has no name")
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: no folder for the report ({error.strerror})") from error
    return folder


def _file_names(kernels: dict[str, np.ndarray]) -> dict[str, Any]:
    # The members of the archive are files. A name must not lead out of the folder they unpack to.
    named: dict[str, Any] = {}
    for name, kernel in kernels.items():
        safe = name.replace("..", "__").lstrip("/")
        while safe in named:
            safe += "_"
        named[safe] = kernel
    return named


def _figure(value: float | None) -> str:
    """Three digits, or ``undefined``."""
    return "undefined" if value is None else f"{value:.3f}"


def _uneven(row: dict[str, Any]) -> str:
    if row["uneven_h"] is None:
        return ""
    same = row["uneven_h"] == row["uneven_w"]
    return str(row["uneven_h"]) if same else f"{row['uneven_h']}, {row['uneven_w']}"
