"""Analyzes sources of weights: writes a folder of results and prints tables."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax import cli
from kernsym_jax.formats.arrays import LONGEST_MESSAGE, shortened
from kernsym_jax.report.figures import write_figures
from kernsym_jax.report.layer_table import COLUMNS
from kernsym_jax.report.page import write_page
from kernsym_jax.report.sources import (
    NoNetworkError,
    Options,
    begin_reading,
    find_sources,
    read_table,
)
from kernsym_jax.report.summary import (
    advice,
    answers_sentence,
    evaluation_figures,
    in_words,
    sentences,
    summarize,
    verdict,
)
from kernsym_jax.report.tables import (
    Comparison,
    NetworkTable,
    Trajectory,
    compare_tables,
    find_trajectories,
)

# Drawing takes longer than measuring. More networks than this, and networks of more layers than
# this, are drawn on the page only.
_MOST_DRAWN = 20
_MOST_DRAWN_LAYERS = 1000
# A layer-by-layer table of more networks than this is too wide for a terminal.
_MOST_COLUMNS = 4
# The largest networks have a few hundred spatial convolutions.
_MOST_LAYERS = 400
_SHOWN_FIGURES = ("score", "sig_x", "sig_y")
# Figures of `summarize` and their headings.
_SHOWN_MEANS = {
    "layers": "layers",
    "internal_mean": "internal",
    "strided_mean": "strided",
    "first_score": "first",
    "above_null": "above chance",
    "above_null_centered": "… centred",
    "strided_deficit": "strided deficit",
    "padding_shown": "show padding",
    "padding_tested": "of",
}


def analyze(
    places: Sequence[str | pathlib.Path], out: str | pathlib.Path, options: Options | None = None
) -> tuple[list[NetworkTable], dict[str, str]]:
    """Measures networks, prints their tables and writes the report.

    Several networks are compared layer by layer. Checkpoints of one run are one trajectory, of
    which the last checkpoint is shown in full.

    Args:
      places: run directories, files of weights, folders of checkpoints or of any of these, and
        patterns.
      out: the folder for ``layers.csv``, ``layers.json``, ``mean_kernels.npz``, ``figures/`` and
        ``report.html``, and for ``comparison.csv`` and ``trajectory.csv`` if there are several
        networks or checkpoints; created if it is missing.
      options: settings for reading the sources.

    Returns:
      The tables, and source -> reason for those that could not be analyzed.

    Raises:
      ValueError: if no source can be read, or none has a spatial convolution.
      FileNotFoundError: if the only place does not exist.

    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for epoch in (1, 2):
    ...     np.savez(folder / f"epoch_{epoch}.npz", **{"conv/kernel": epoch * kernel})
    ...
    >>> tables, failed = report.analyze(  # doctest: +ELLIPSIS
    ...     [folder / "epoch_1.npz"], folder / "report"
    ... )
    /...
    >>> sorted(path.name for path in (folder / "report").iterdir()), failed
    (['figures', 'layers.csv', 'layers.json', 'mean_kernels.npz', 'report.html'], {})
    """
    sources, failed = _find_each(places)
    missing = len(failed)
    several = len(sources) + missing > 1
    named = {pathlib.Path(place) for place in places}
    folder = _make_folder(out)
    tables = []
    for index, source in enumerate(sources):
        if index + 1 < len(sources):
            begin_reading(sources[index + 1], options)
        try:
            tables.append(read_table(source, options))
        except (ValueError, OSError) as error:
            if not several:
                raise
            if isinstance(error, NoNetworkError) and source not in named:
                continue  # a trainer keeps other files beside the network
            failed[cli.path_name(source)] = str(error)
    if not tables:
        reasons = "; ".join(failed.values()) or "none of them holds a network"
        text = f"none of {len(sources) + missing} sources could be analyzed: {reasons}"
        raise ValueError(shortened(text, LONGEST_MESSAGE))
    print_tables(tables)
    write_results(tables, folder)
    return tables, failed


def _find_each(
    places: Sequence[str | pathlib.Path],
) -> tuple[list[pathlib.Path], dict[str, str]]:
    """Finds the sources of every place; returns them, and place -> reason if there are none."""
    sources: dict[pathlib.Path, None] = {}
    failed = {}
    for place in places:
        try:
            sources |= dict.fromkeys(find_sources([str(place)]))
        except FileNotFoundError as error:
            if len(places) == 1:
                raise
            failed[cli.path_name(place)] = str(error)
    return list(sources), failed


def write_results(tables: Sequence[NetworkTable], out: pathlib.Path) -> None:
    """Writes the tables, the mean kernels, the figures of up to 20 networks, and the page.

    Args:
      tables: one per network or checkpoint.
      out: the folder; created if it is missing.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> net = {"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel[::-1].copy()}}
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for epoch in (1, 2):
    ...     np.savez(folder / f"epoch_{epoch}.npz", **{"conv/kernel": epoch * kernel})
    ...
    >>> report.write_results([report.table(net)], folder / "out")
    >>> (folder / "out" / "report.html").is_file()
    True
    """
    _make_folder(out)
    shown, comparison, runs = _arranged(tables)
    _write_csv(out / "layers.csv", COLUMNS, [row for table in tables for row in table.rows])
    _write_csv(
        out / "comparison.csv",
        comparison.columns if comparison else [],
        comparison.flat_rows() if comparison else [],
    )
    columns = dict.fromkeys(column for run in runs for column in run.columns)
    _write_csv(out / "trajectory.csv", list(columns), [row for run in runs for row in run.rows])
    networks = [_as_json(table) for table in tables]
    # Indented JSON is easier to read and ten times slower to write.
    indent = 1 if len(networks) <= _MOST_DRAWN else None
    (out / "layers.json").write_text(
        json.dumps(networks, indent=indent, allow_nan=False) + "\n", encoding="utf-8"
    )
    several = len(tables) > 1
    kernels = {
        f"{table.source}:{layer}" if several else layer: kernel
        for table in tables
        for layer, kernel in table.mean_kernels.items()
    }
    with (out / "mean_kernels.npz").open("wb") as file:
        np.savez(file, **_file_names(kernels))
    for index, table in enumerate(shown if len(shown) <= _MOST_DRAWN else [], 1):
        if len(table.rows) <= _MOST_DRAWN_LAYERS:
            write_figures(table, out / "figures", prefix=f"{index}_" if len(shown) > 1 else "")
    write_page(shown, out / "report.html", comparison=comparison, trajectories=runs)


def write_parquet(tables: Sequence[NetworkTable], path: pathlib.Path) -> None:
    """Writes the rows of ``layers.csv`` as a Parquet file.

    Args:
      tables: one per network.
      path: the file.

    Raises:
      ValueError: if pyarrow is not installed.

    >>> import numpy as np
    >>> from kernsym_jax import report
    >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 8, 8))
    >>> net = {"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel[::-1].copy()}}
    >>> import pathlib
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>>
    >>>
    >>> report.write_parquet([report.table(net)], folder / "layers.parquet")  # doctest: +SKIP
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
    """Prints the table and the summary of each network, their comparison and their trajectories.

    Args:
      tables: one per network or checkpoint.
    """
    console = cli.console()
    shown, comparison, runs = _arranged(tables)
    for table in shown:
        if line := verdict(table):
            name = f"{table.source}: " if len(shown) > 1 else ""
            console.print(
                f"{cli.printable(name)}{line}", style="bold", markup=False, highlight=False
            )
    for table in shown:
        console.print(_layer_table(table))
        said = [*sentences(summarize(table)), advice(table), answers_sentence(table.consistency)]
        console.print(" ".join(filter(None, said)), style="bold", markup=False, highlight=False)
        skipped = len(table.weights.skipped)
        console.print(
            "; ".join(
                [
                    f"{table.weights.format}, {table.weights.layout}",
                    *map(cli.printable, table.weights.notes),
                    f"{skipped} other {'entry' if skipped == 1 else 'entries'} left out",
                ]
            ),
            style="dim",
            markup=False,
            highlight=False,
        )
    for run in runs:
        console.print(_run_table(run))
    if comparison is not None:
        console.print(_means_table(comparison))
        if comparison.rows and len(comparison.tables) <= _MOST_COLUMNS:
            console.print(_comparison_table(comparison))


def _arranged(
    tables: Sequence[NetworkTable],
) -> tuple[list[NetworkTable], Comparison | None, list[Trajectory]]:
    """Returns the networks to show in full, their comparison, and their trajectories."""
    runs, others = find_trajectories(tables)
    last = {id(run.tables[-1]): run.last for run in runs}
    single = {id(table) for table in others}
    shown = [last.get(id(table), table) for table in tables if id(table) in last.keys() | single]
    return shown, compare_tables(shown) if len(shown) > 1 else None, runs


def _write_csv(path: pathlib.Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Writes a table, or removes that of an earlier analysis if there are no rows."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _run_table(run: Trajectory) -> Any:
    rows = [[str(row["step"]), *(_short(row[key]) for key in _SHOWN_MEANS)] for row in run.rows]
    title = f"{run.source}: {len(run.steps)} checkpoints"
    return _grid(title, ["checkpoint", *_SHOWN_MEANS.values()], rows)


def _means_table(comparison: Comparison) -> Any:
    rows = [
        [f"{number}: {row['source']}", *(_short(row[key]) for key in _SHOWN_MEANS)]
        for number, row in enumerate(comparison.means, 1)
    ]
    return _grid("means", ["network", *_SHOWN_MEANS.values()], rows)


def _comparison_table(comparison: Comparison) -> Any:
    # All figures of more than two networks would not fit the console.
    shown = _SHOWN_FIGURES if len(comparison.tables) == 2 else _SHOWN_FIGURES[:1]
    columns = [name for name in comparison.columns[3:] if name.split()[0] in shown]
    headings = [name.split(":")[0] for name in columns]
    rows = [
        [row["layer"], row["role"] or "", *(_short(row[name]) for name in columns)]
        for row in comparison.flat_rows()
    ]
    title = "layer by layer, differences from network 1; comparison.csv has all figures"
    return _grid(title, ["layer", "role", *headings], rows)


def _grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Returns a table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(cli.printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    for heading in headings:
        grid.add_column(heading, justify="left" if heading in headings[:1] else "right")
    for row in rows:
        grid.add_row(*(Text(cli.printable(cell)) for cell in row))
    return grid


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
    grid.add_column("padding signature, asymmetry and notes")
    for row in table.rows[:_MOST_LAYERS]:
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
    if len(table.rows) > _MOST_LAYERS:
        grid.add_row("", f"… {len(table.rows) - _MOST_LAYERS} more in layers.csv")
    return grid


def _as_json(table: NetworkTable) -> dict[str, Any]:
    """Returns the network's entry in ``layers.json``."""
    return {
        "source": table.source,
        "format": table.weights.format,
        "layout": table.weights.layout,
        "order": table.weights.order,
        "summary": summarize(table),
        "verdict": verdict(table),
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


def _short(value: float | None) -> str:
    """Returns three digits, or nothing."""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return f"{value:.3f}"


def _figure(value: float | None) -> str:
    """Returns three digits, or ``undefined``."""
    return "undefined" if value is None else f"{value:.3f}"


def _uneven(row: dict[str, Any]) -> str:
    if row["uneven_h"] is None:
        return ""
    same = row["uneven_h"] == row["uneven_w"]
    return str(row["uneven_h"]) if same else f"{row['uneven_h']}, {row['uneven_w']}"
