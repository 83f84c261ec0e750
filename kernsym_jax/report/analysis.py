"""From sources of weights to a folder of results."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.report.console import print_tables
from kernsym_jax.report.figures import write_figures
from kernsym_jax.report.layer_table import COLUMNS, NetworkTable, network_table
from kernsym_jax.report.page import write_page
from kernsym_jax.report.summary import summarize


def analyze(paths: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> list[NetworkTable]:
    """Measures networks, prints their tables and writes everything about them.

    Args:
      paths: run directories or files of weights.
      out: the folder for ``layers.csv``, ``layers.json``, ``mean_kernels.npz``, ``figures/`` and
        ``report.html``; made if it is not there.

    Returns:
      The tables.

    Raises:
      ValueError: if a source cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.
    """
    tables = [read_table(path) for path in paths]
    print_tables(tables)
    write_results(tables, pathlib.Path(out))
    return tables


def read_table(path: str | pathlib.Path) -> NetworkTable:
    """Reads one source and measures it.

    Args:
      path: a run directory or a file of weights.

    Returns:
      Its table.

    Raises:
      ValueError: if it cannot be read or has no spatial convolution.
      FileNotFoundError: if it does not exist.
    """
    from kernsym_jax import weights

    path = pathlib.Path(path)
    found = weights.read(path)
    if not found.kernels:
        raise ValueError(
            f"{path}: no spatial convolution among its {len(found.skipped)} entries, "
            "nothing to measure"
        )
    geometry, history = {}, []
    if (path / "layers.json").is_file():
        geometry = {row["layer"]: row for row in _lines(path / "layers.json")}
    if (path / "metrics.jsonl").is_file():
        history = [line for line in _lines(path / "metrics.jsonl") if line["split"] == "symmetry"]
    return network_table(found, str(path), geometry, history)


def write_results(tables: Sequence[NetworkTable], out: pathlib.Path) -> None:
    """Writes the tables, the mean kernels, the figures and the page.

    Args:
      tables: one per network.
      out: the folder; made if it is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for table in tables for row in table.rows]
    with (out / "layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    networks = [
        {
            "source": table.source,
            "format": table.weights.format,
            "layout": table.weights.layout,
            "order": table.weights.order,
            "summary": summarize(table),
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
    for index, table in enumerate(tables, 1):
        write_figures(table, out / "figures", prefix=f"{index}_" if several else "")
    write_page(tables, out / "report.html")


def _named(kernels: dict[str, np.ndarray]) -> dict[str, Any]:
    # The archive's members are files: a name that would leave their folder is made harmless.
    return {name.replace("..", "__").lstrip("/"): kernel for name, kernel in kernels.items()}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text)
        # The last line may be cut off while a run is writing it.
        return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
