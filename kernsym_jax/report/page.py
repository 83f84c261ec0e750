"""The report as one HTML file that needs no other file."""

import csv
import importlib.resources
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernsym_jax import symmetry
from kernsym_jax.cli import printable
from kernsym_jax.report import figures, summary
from kernsym_jax.report.layer_table import COLUMNS

if TYPE_CHECKING:
    from kernsym_jax.report.tables import Comparison, NetworkTable, Trajectory

# Size and margins of the drawing of the scores, in units of its view box.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 40, 20, 10, 52
_SCORES = (0.3, 1.02)

# Columns of the table on the page: key, heading, meaning.
_TABLE = (
    ("order", "#", "position in the network"),
    ("layer", "layer", "name in the file"),
    ("role", "role", "part that the layer plays in the network"),
    ("shape", "shape", "height × width × in × out, in per group"),
    ("stride", "stride", "step between windows"),
    ("padding", "pad\u00adding", "pixels added per side, or the rule"),
    ("uneven_h", "u", "rows and columns at the far end that no window covers"),
    ("drift", "drift", "distance of the windows' middle from the map's middle; 0 is even"),
    ("score", "score", "1 is symmetric; mean over eight transforms, the identity included"),
    ("null_mean", "chance", "mean score of random kernels of this size"),
    ("null_q95", "95 %", "95 % point of the score of random kernels of this size"),
    ("p_value", "p", "share of random kernels that score at least as high"),
    ("q_value", "q", "false-discovery rate if this layer and all of lower p count as found"),
    ("score_centered", "cen\u00adtred", "score without the common offset of the cells"),
    ("dc_share", "offset", "share of the energy in a common offset"),
    ("A1", "A1", "energy of the symmetric part"),
    ("B1", "B1", "energy of the contrast between rows and columns"),
    ("B2", "B2", "energy of the contrast between the diagonals"),
    ("E", "E", "energy of the odd part of the mean kernel: gradients"),
    ("sig_x", "sig x", "padding signature in cells, to the right: the side of larger weights"),
    ("sig_y", "sig y", "padding signature in cells, down"),
    ("sig_p", "sig p", "p-value of the padding signature for normal weights, in any direction"),
    ("predicted_skew", "pre\u00addicted", "direction in which the padding is predicted to act"),
    ("padding_p", "pad\u00adding p", "p-value of the padding signature in that direction"),
    ("skew_x", "skew x", "first moment of the mean kernel in cells, to the right"),
    ("skew_y", "skew y", "first moment of the mean kernel in cells, down"),
    ("neuron_score", "neu\u00adrons", "mean score of the kernels averaged over inputs only"),
    ("single_score", "sin\u00adgles", "mean score of the single kernels"),
    ("note", "note", "what the figures say in words"),
)
# Columns that a table has even if all of their cells are empty.
_ALWAYS = ("order", "layer", "score", "note")


# Figures of whole networks: key of `summarize`, heading.
_HEADINGS = (
    ("layers", "layers"),
    ("internal_mean", "internal"),
    ("strided_mean", "strided"),
    ("first_score", "first"),
    ("above_null", "above chance"),
    ("above_null_centered", "above chance, centred"),
    ("discoveries", "found at an FDR of 5 %"),
    ("padding_shown", "show padding"),
    ("padding_tested", "of"),
    ("depth_spearman", "score with depth"),
)
_IRREPS = {
    "A1": "symmetric",
    "A2": "chiral",
    "B1": "rows against columns",
    "B2": "diagonals",
    "E": "odd, gradients",
}
# Signatures are a few hundredths of a cell; an arrow shows them at this many times their length.
_ARROW = 20
# Longer tables scroll inside the page.
_MOST_WHOLE = 200
# A common beginning of the layers' names is left out from this length on.
_LONG_BEGINNING = 12
# ASCII characters that an address cannot hold as they are -> their escapes.
_ESCAPES = {code: f"%{code:02X}" for code in range(128) if not re.match(r"[\w.,:/=+;-]", chr(code))}
# A layer-by-layer table of more networks than this is too wide to read.
_MOST_COMPARED = 6


def write_page(
    tables: Sequence["NetworkTable"],
    path: pathlib.Path,
    *,
    comparison: "Comparison | None" = None,
    trajectories: Sequence["Trajectory"] = (),
) -> None:
    """Writes ``report.html``; the arguments are those of `render`."""
    text = render(tables, comparison=comparison, trajectories=trajectories)
    path.write_text(text, encoding="utf-8")


def render(
    tables: Sequence["NetworkTable"],
    *,
    comparison: "Comparison | None" = None,
    trajectories: Sequence["Trajectory"] = (),
) -> str:
    """Renders the page: it makes no request, and names from files are text, never markup.

    Args:
      tables: one per network, from `network_table`.
      comparison: of the networks, layer by layer.
      trajectories: the runs whose last checkpoints are among the tables.

    Returns:
      An HTML document.
    """
    checkpoints = {run.tables[-1].source: run.rows for run in trajectories}
    compared = comparison is not None and len(comparison.tables) <= _MOST_COMPARED
    return _template("page.jinja").render(
        networks=[
            {**_network(index, table), "checkpoints": _safe_rows(checkpoints.get(table.source, []))}
            for index, table in enumerate(tables, 1)
        ],
        evaluated=any(table.consistency for table in tables),
        comparison=_comparison(comparison) if comparison and comparison.rows and compared else None,
        headings=_HEADINGS,
        irreps=_IRREPS,
        arrow=_ARROW,
        style=_read("page.css"),
        script=_read("page.js"),
    )


def fragment(table: "NetworkTable") -> str:
    """Renders a network's mean kernels and table as an HTML fragment for notebooks."""
    return _fragment(
        title=printable(table.source),
        sentences=_sentences(table),
        **_layers(table),
    )


def comparison_fragment(comparison: "Comparison") -> str:
    """Renders a comparison as an HTML fragment for notebooks."""
    names = [printable(table.source) for table in comparison.tables]
    means = [
        f"{name}: {' '.join(_sentences(table))}"
        for name, table in zip(names, comparison.tables, strict=True)
    ]
    return _fragment(title=" · ".join(names), sentences=means, comparison=_comparison(comparison))


def trajectory_fragment(trajectory: "Trajectory") -> str:
    """Renders the figure and the table of a trajectory as an HTML fragment for notebooks."""
    return _fragment(
        title=printable(trajectory.source),
        sentences=[f"{len(trajectory.steps)} checkpoints."],
        plot=figures.trajectory(trajectory.last).svg(page=True),
        checkpoints=_safe_rows(trajectory.rows),
    )


def _fragment(**values: Any) -> str:
    empty: dict[str, Any] = {"plot": "", "layers": [], "checkpoints": [], "comparison": None}
    return _template("fragment.jinja").render(
        **{**empty, **values}, arrow=_ARROW, headings=_HEADINGS, style=_read("fragment.css")
    )


def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_read),
    )
    environment.filters |= {"figure": _figure, "breakable": _breakable}
    return environment.get_template(name)


def _read(name: str) -> str:
    return importlib.resources.files("kernsym_jax.report").joinpath(name).read_text("utf-8")


def _sentences(table: "NetworkTable") -> list[str]:
    figures_of_all = summary.summarize(table)
    said = [summary.verdict(table), " ".join(summary.sentences(figures_of_all))]
    return [text for text in said if text]


def _safe_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "source": printable(row["source"])} for row in rows]


def _comparison(comparison: "Comparison") -> list[dict[str, Any]]:
    """Returns one table per figure, layer by layer, with a last row of means."""
    rows, tables = comparison.flat_rows(), []
    for figure in dict.fromkeys(name.split()[0] for name in comparison.columns[3:]):
        columns = [name for name in comparison.columns if name.split()[0] == figure]
        headings = [name.split(":")[0].removeprefix(f"{figure} ") for name in columns]
        tables.append(
            {
                "figure": figure,
                "headings": list(zip(headings, map(printable, columns), strict=True)),
                "rows": [(printable(r["layer"]), r["role"], [r[c] for c in columns]) for r in rows],
            }
        )
    return tables


def _network(index: int, table: "NetworkTable") -> dict[str, Any]:
    figures_of_all = summary.summarize(table)
    return {
        "id": f"network-{index}",
        "source": printable(table.source),
        "format": table.weights.format,
        "layout": table.weights.layout,
        "notes": [printable(note) for note in table.weights.notes],
        "skipped": {printable(k): printable(v) for k, v in table.weights.skipped.items()},
        "sentences": summary.sentences(figures_of_all),
        "summary": figures_of_all,
        **_layers(table),
        "whole": len(table.rows) <= _MOST_WHOLE,
        "verdict": summary.verdict(table) or _unknown(figures_of_all),
        "tone": _tone(table, figures_of_all),
        "advice": summary.advice(table),
        "answers": summary.answers_sentence(table.consistency),
        "flips": summary.beside_symmetry(table),
        "shares": _shares(table),
        "plot": _score_by_depth(table),
        "trajectory": _trajectory(table),
        "data": _data(table),
    }


def _trajectory(table: "NetworkTable") -> str:
    return figures.trajectory(table).svg(page=True) if len(table.history) > 1 else ""


def _unknown(found: Mapping[str, Any]) -> str:
    """Returns the verdict of a network whose padding was not audited."""
    if found["strides_known"]:
        lacks, tells = "no input size", "--input_size or --model adds it"
    else:
        lacks, tells = "no strides", "--model adds them"
    return f"Unknown whether the padding shows: the file keeps {lacks} ({tells})."


def _tone(table: "NetworkTable", found: Mapping[str, Any]) -> str:
    """Returns how the page colours the verdict: a fault, none, or neither."""
    if found["padding_shown"]:
        return "shown"
    strided = [row for row in table.geometry if row.strided]
    return "even" if table.geometry and all(row.even for row in strided) else ""


def _data(table: "NetworkTable") -> dict[str, str]:
    """Returns what the figures show as CSV files inside links: figure -> address."""
    kernels = []
    for layer, kernel in table.mean_kernels.items():
        shown = figures.coarse(kernel)
        cells = " ".join(f"{cell:.6g}" for cell in shown.ravel().tolist())
        kernels.append({"layer": layer, "height": shown.shape[0], "width": shown.shape[1],
                        "cells row by row": cells})  # fmt: skip
    scores = [{"step": line["step"], **line["scores"]} for line in table.history]
    return {
        "layers": csv_link(COLUMNS, table.rows),
        "kernels": csv_link(("layer", "height", "width", "cells row by row"), kernels),
        "trajectory": csv_link(list(scores[-1]), scores) if len(scores) > 1 else "",
    }


def csv_link(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a CSV file as an address that a link on the page can hold.

    Args:
      columns: the columns of the file.
      rows: one mapping per line; keys that are no columns are left out.

    Returns:
      The file as a ``data:`` address.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return f"data:text/csv;charset=utf-8,{stream.getvalue().translate(_ESCAPES)}"


def _shares(table: "NetworkTable") -> dict[str, float | None]:
    """Returns the figures of an evaluation for the comparison of several networks."""
    found = table.consistency or {}
    flips = found.get("flip_consistency", {})
    estimates = {
        "accuracy": found.get("accuracy"),
        "shifts": found.get("shift_consistency"),
        **{name: flips[name]["hard"] if name in flips else None for name in ("fliplr", "flipud")},
    }
    return {name: one["value"] if one else None for name, one in estimates.items()}


def _score_by_depth(table: "NetworkTable") -> dict[str, Any]:
    """Returns the drawing of the scores: its points with their layers, and the band of chance."""
    step = (_WIDTH - _LEFT - _RIGHT) / len(table.rows)
    points = [
        {
            "x": _x(number + 0.5, step),
            "y": _y(row["score"]),
            "color": figures.ROLE_COLORS[row["role"]],
            "text": f"{printable(row['layer'])} ({row['role'] or 'stride not known'}): "
            f"{row['score']:.3f}",
        }
        for number, row in enumerate(table.rows)
        if row["score"] is not None
    ]
    every = max(1, round(len(table.rows) / 10))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "bottom": _HEIGHT - _BOTTOM,
        "bands": _bands(table.rows, step),
        "points": points,
        "radius": max(1.5, min(4.5, step / 2.5)),
        "rows": [(_y(score / 10), f"{score / 10:.1f}") for score in range(3, 11)],
        "columns": [
            (_x(number - 0.5, step), number) for number in range(every, len(table.rows) + 1, every)
        ],
        "label": figures.depth_label(table),
        "roles": {
            role or "stride not known": color
            for role, color in figures.ROLE_COLORS.items()
            if any(row["role"] == role for row in table.rows)
        },
    }


def _bands(rows: Sequence[dict[str, Any]], step: float) -> list[dict[str, float]]:
    """Returns the band of chance; neighbours with one level of chance share a rectangle."""
    return [
        {
            "left": _x(first - 0.5, step),
            "right": _x(last - 0.5, step),
            "top": _y(high),
            "bottom": _y(low),
        }
        for first, last, low, high in figures.chance_spans(rows)
    ]


def _x(number: float, step: float) -> float:
    return round(_LEFT + number * step, 2)


def _y(score: float) -> float:
    low, high = _SCORES
    return round(_TOP + (high - score) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 2)


def _layers(table: "NetworkTable") -> dict[str, Any]:
    """Returns the layers, the beginning that all names share, and the columns with figures."""
    beginning = _beginning([printable(row["layer"]) for row in table.rows])
    layers = [_layer(row, table, beginning) for row in table.rows]
    longest = max(len(layer["short"]) for layer in layers)
    known = {key for layer in layers for key in layer if layer[key] not in (None, "")}
    return {
        "layers": layers,
        "beginning": beginning,
        "columns": [column for column in _TABLE if column[0] in {*known, *_ALWAYS}],
        # Longer names need wider panels.
        "panels": "narrow" if longest <= 18 else "medium" if longest <= 36 else "wide",
    }


def _beginning(names: Sequence[str]) -> str:
    """Returns the modules that all names begin with, if they are many letters."""
    # What the first and the last name in alphabetical order share, all names share.
    ends = (re.split(r"(?<=[./])", name) for name in (min(names), max(names)))
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    shared = "".join(module for module, _ in pairs)
    return shared if len(names) > 2 and len(shared) >= _LONG_BEGINNING else ""


def _layer(row: dict[str, Any], table: "NetworkTable", beginning: str) -> dict[str, Any]:
    whole = table.mean_kernels[row["layer"]]
    kernel = figures.coarse(whole)
    unit = figures.unit_kernel(kernel)
    values = {key: row.get(key) for key, _, _ in _TABLE}
    name = printable(row["layer"])
    return {
        **values,
        "role": row["role"] or "",
        "drift": _drift(row["centre_drift"]),
        "layer": name,
        "short": f"…{name.removeprefix(beginning)}" if beginning else name,
        "uneven_w": row["uneven_w"],
        "words": summary.in_words(row),
        "cells": [
            {"x": x, "y": y, "color": figures.kernel_color(float(unit[y, x]))}
            for y in range(kernel.shape[0])
            for x in range(kernel.shape[1])
        ],
        "size": kernel.shape,
        "beyond": row["score"] is not None and row["score"] > row["null_q95"],
        "energies": [(name, row[name] or 0.0) for name in symmetry.IRREPS],
        "arrow": figures.moment_arrow(row, "sig", _ARROW, kernel.shape)
        if kernel is whole
        else None,
        "skew_arrow": figures.moment_arrow(row, "skew", 1, kernel.shape)
        if kernel is whole
        else None,
    }


def _drift(drift: list[float] | None) -> str | None:
    if drift is None:
        return None
    words = [f"{pixels:+g}" if pixels else "0" for pixels in drift]
    shown = words[:1] if len(set(words)) == 1 else words
    return ", ".join(shown).replace("-", "−")


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 5e-4:
        digit, exponent = f"{value:.0e}".split("e")
        return f"{digit}e{int(exponent)}".replace("-", "−")
    return f"{value:.3f}".replace("-", "−")


def _breakable(name: str) -> Any:
    """Lets a name continue on a new line after its dots, slashes and underscores."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"([./_])(?=.)", r"\1<wbr>", str(markupsafe.escape(name))))
