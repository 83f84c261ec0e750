"""The report as one HTML file that needs no other file."""

import importlib.resources
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernsym_jax import symmetry
from kernsym_jax.cli import printable
from kernsym_jax.report import figures, summary

if TYPE_CHECKING:
    from kernsym_jax.report.tables import Comparison, NetworkTable, Trajectory

# Size and margins of the drawing of the scores, in units of its view box.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 40, 10, 10, 40
_SCORES = (0.3, 1.02)

# Columns of the table on the page: key, heading, meaning.
_TABLE = (
    ("order", "#", "position in the network"),
    ("layer", "layer", "name in the file"),
    ("role", "role", "part that the layer plays in the network"),
    ("shape", "shape", "height × width × in × out, in per group"),
    ("stride", "stride", "step between windows"),
    ("padding", "padding", "pixels added per side, or the rule"),
    ("uneven_h", "u", "rows and columns at the far end that no window covers"),
    ("drift", "drift", "distance of the windows' middle from the map's middle; 0 is even"),
    ("score", "score", "1 is symmetric; mean over eight transforms, the identity included"),
    ("null_mean", "chance", "mean score of random kernels of this size"),
    ("null_q95", "95 %", "95 % point of the score of random kernels of this size"),
    ("p_value", "p", "share of random kernels that score at least as high"),
    ("q_value", "q", "false-discovery rate if this layer and all of lower p count as found"),
    ("score_centered", "centred", "score without the common offset of the cells"),
    ("dc_share", "offset", "share of the energy in a common offset"),
    ("A1", "A1", "energy of the symmetric part"),
    ("B1", "B1", "energy of the contrast between rows and columns"),
    ("B2", "B2", "energy of the contrast between the diagonals"),
    ("E", "E", "energy of the odd part of the mean kernel: gradients"),
    ("sig_x", "sig x", "padding signature in cells, to the right: the side of larger weights"),
    ("sig_y", "sig y", "padding signature in cells, down"),
    ("sig_p", "sig p", "p-value of the padding signature for normal weights, in any direction"),
    ("predicted_skew", "predicted", "direction in which the padding is predicted to act"),
    ("padding_p", "padding p", "p-value of the padding signature in that direction"),
    ("skew_x", "skew x", "first moment of the mean kernel in cells, to the right"),
    ("skew_y", "skew y", "first moment of the mean kernel in cells, down"),
    ("neuron_score", "neurons", "mean score of the kernels averaged over inputs only"),
    ("single_score", "singles", "mean score of the single kernels"),
    ("note", "note", ""),
)


# Figures of whole networks: key of `summarize`, heading.
_HEADINGS = (
    ("layers", "layers"),
    ("internal_mean", "internal"),
    ("strided_mean", "strided"),
    ("first_score", "first"),
    ("above_null", "above chance"),
    ("above_null_centered", "… centred"),
    ("discoveries", "… found"),
    ("padding_shown", "show padding"),
    ("padding_tested", "of"),
    ("depth_spearman", "score with depth"),
)
# Signatures are a few hundredths of a cell; an arrow shows them at this many times their length.
_ARROW = 15
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
        columns=_TABLE,
        headings=_HEADINGS,
        irreps=symmetry.IRREPS,
        style=_read("page.css"),
        script=_read("page.js"),
    )


def fragment(table: "NetworkTable") -> str:
    """Renders a network's mean kernels and table as an HTML fragment for notebooks."""
    return _fragment(
        title=printable(table.source),
        sentences=_sentences(table),
        layers=[_layer(row, table) for row in table.rows],
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
        **{**empty, **values}, columns=_TABLE, headings=_HEADINGS, style=_read("fragment.css")
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
    environment.filters["figure"] = _figure
    return environment.get_template(name)


def _read(name: str) -> str:
    return importlib.resources.files("kernsym_jax.report").joinpath(name).read_text("utf-8")


def _sentences(table: "NetworkTable") -> list[str]:
    figures_of_all = summary.summarize(table)
    said = [summary.verdict(table), " ".join(summary.sentences(figures_of_all))]
    return [text for text in said if text]


def _safe_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "source": printable(row["source"])} for row in rows]


def _comparison(comparison: "Comparison") -> dict[str, Any]:
    """Returns the headings and rows of the layer-by-layer table, with a last row of means."""
    columns = comparison.columns[3:]
    return {
        "headings": [
            {"text": re.sub(r"(\d+): .*", r"\1", name, flags=re.DOTALL), "title": printable(name)}
            for name in columns
        ],
        "rows": [
            {
                "layer": printable(row["layer"]),
                "role": row["role"],
                "figures": [row[name] for name in columns],
            }
            for row in comparison.flat_rows()
        ],
    }


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
        "layers": [_layer(row, table) for row in table.rows],
        "verdict": summary.verdict(table),
        "advice": summary.advice(table),
        "answers": summary.answers_sentence(table.consistency),
        "flips": summary.beside_symmetry(table),
        "shares": _shares(table),
        "plot": _score_by_depth(table),
        "trajectory": _trajectory(table),
    }


def _trajectory(table: "NetworkTable") -> str:
    return figures.trajectory(table).svg(page=True) if len(table.history) > 1 else ""


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


def _layer(row: dict[str, Any], table: "NetworkTable") -> dict[str, Any]:
    whole = table.mean_kernels[row["layer"]]
    kernel = figures.coarse(whole)
    unit = figures.unit_kernel(kernel)
    values = {key: row.get(key) for key, _, _ in _TABLE}
    return {
        **values,
        "role": row["role"] or "",
        "drift": _drift(row["centre_drift"]),
        "layer": printable(row["layer"]),
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
        "arrow": _arrow(row, kernel.shape) if kernel is whole else None,
    }


def _drift(drift: list[float] | None) -> str | None:
    if drift is None:
        return None
    words = [f"{pixels:+g}" if pixels else "0" for pixels in drift]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _arrow(row: dict[str, Any], shape: tuple[int, ...]) -> dict[str, float] | None:
    """Returns an arrow from the middle along the padding signature, lengthened and clipped."""
    if row["role"] != "strided" or row["sig_x"] is None or row["sig_y"] is None:
        return None
    x, y = shape[1] / 2, shape[0] / 2
    longest = max(abs(row["sig_x"]) / x, abs(row["sig_y"]) / y)
    longer = min(_ARROW, 0.9 / longest) if longest else 0
    return {"x1": x, "y1": y, "x2": x + longer * row["sig_x"], "y2": y + longer * row["sig_y"]}


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"
    return str(value)
