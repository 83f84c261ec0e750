"""From sources of weights to a folder of results."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.cli import path_name
from kernsym_jax.report import consistency
from kernsym_jax.report.console import print_tables
from kernsym_jax.report.figures import write_figures
from kernsym_jax.report.layer_table import COLUMNS, NetworkTable
from kernsym_jax.report.page import write_page
from kernsym_jax.report.sources import Options, find_sources, read_table
from kernsym_jax.report.summary import advice, summarize

# Drawing takes longer than measuring: beyond so many networks the page alone shows them.
_MOST_DRAWN = 20


def analyze(
    places: Sequence[str | pathlib.Path], out: str | pathlib.Path, options: Options | None = None
) -> tuple[list[NetworkTable], dict[str, str]]:
    """Measures networks, prints their tables and writes everything about them.

    Args:
      places: run directories, files of weights, folders of them, and patterns.
      out: the folder for ``layers.csv``, ``layers.json``, ``mean_kernels.npz``, ``figures/`` and
        ``report.html``; made if it is not there.
      options: how sources are read.

    Returns:
      The tables, and source -> reason for those that could not be analyzed.

    Raises:
      ValueError: if the only source, or every one, cannot be read or has no spatial convolution.
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
            failed[path_name(source)] = str(error)
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
      out: the folder; made if it is not there.
    """
    _make_folder(out)
    rows = [row for table in tables for row in table.rows]
    with (out / "layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    networks = [
        {
            "source": table.source,
            "format": table.weights.format,
            "layout": table.weights.layout,
            "order": table.weights.order,
            "summary": summarize(table),
            "advice": advice(table),
            "consistency": consistency.figures(table.consistency) if table.consistency else None,
            "layers": table.rows,
            "skipped": table.weights.skipped,
            "notes": list(table.weights.notes),
        }
        for table in tables
    ]
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
        np.savez(file, **_named(kernels))
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


def _make_folder(out: str | pathlib.Path) -> pathlib.Path:
    if not str(out):
        raise ValueError("the folder for the report has no name")
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: no folder for the report ({error.strerror})") from error
    return folder


def _named(kernels: dict[str, np.ndarray]) -> dict[str, Any]:
    # The archive's members are files: a name that would leave their folder is made harmless.
    named: dict[str, Any] = {}
    for name, kernel in kernels.items():
        safe = name.replace("..", "__").lstrip("/")
        while safe in named:
            safe += "_"
        named[safe] = kernel
    return named
