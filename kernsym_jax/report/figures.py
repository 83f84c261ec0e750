"""Figures of a network's layer table, for papers (files) and for the page (inline SVG)."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from kernsym_jax.cli import printable
from kernsym_jax.evaluation.figures import CHANCE, literal, new_figure, style, svg

if TYPE_CHECKING:
    from kernsym_jax.report.tables import NetworkTable

# Orange against purple: colour-blind readers can tell them apart, and neither reads as good or bad.
KERNEL_COLORS = "PuOr_r"
ROLE_COLORS = {
    "first": "#7f7f7f",
    "internal": "#1b7f79",
    "strided": "#d1495b",
    "depthwise": "#8a5fbf",
    "transposed": "#b8860b",
    "non-square": "#3a6ea5",
    "trivial": "#b0b0b0",
    None: "#4d6a8a",
}
"""Colour by role; None if the stride is not known."""
_MOST_PANELS = 120
_MOST_NAMES = 12


def write_figures(
    table: "NetworkTable", folder: pathlib.Path, prefix: str = ""
) -> list[pathlib.Path]:
    """Writes the figures of one network as SVG and PNG.

    Args:
      table: from `network_table`.
      folder: the folder; created if it is missing.
      prefix: prefix of the files' names.

    Returns:
      The SVG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in draw(table).items():
        path = folder / f"{prefix}{name}.svg"
        path.write_text(svg(figure), encoding="utf-8")
        figure.savefig(path.with_suffix(".png"), dpi=130, facecolor="white")
        written.append(path)
    return written


def draw(table: "NetworkTable") -> dict[str, Any]:
    """Draws the figures of one network.

    Args:
      table: from `network_table`.

    Returns:
      ``mean_kernels``, ``score_by_depth`` and, for a run that recorded its scores, ``trajectory``:
      name -> matplotlib figure.
    """
    figures = {"mean_kernels": gallery(table), "score_by_depth": score_by_depth(table)}
    if len(table.history) > 1:
        figures["trajectory"] = trajectory(table)
    return figures


def gallery(table: "NetworkTable") -> Any:
    """Draws the mean kernels side by side, each on the scale of its own largest cell."""
    shown = table.rows[:_MOST_PANELS]
    columns = min(len(shown), 8)
    lines = -(-len(shown) // columns)
    # One unit is the width of a kernel; its name is in the space above it.
    across, down = 1.08, 1.36
    figure, axis = _figure(1.25 * columns + 0.9, 1.6 * lines + 0.5)
    axis.set_axis_off()
    for index, row in enumerate(shown):
        left, top = across * (index % columns), down * (index // columns)
        kernel = table.mean_kernels[row["layer"]]
        unit = unit_kernel(kernel)
        high, wide = (side / max(kernel.shape) for side in kernel.shape)
        image = axis.imshow(
            unit,
            cmap=KERNEL_COLORS,
            vmin=-1,
            vmax=1,
            extent=(left, left + wide, top + high, top),
            interpolation="nearest",
        )
        name = printable(row["layer"])
        name = name if len(name) <= 18 else f"…{name[-17:]}"
        score = "undefined" if row["score"] is None else f"{row['score']:.2f}"
        text = literal(f"{name}\n{row['role'] or ''} {score}")
        axis.text(left + 0.5, top - 0.03, text, fontsize=7, ha="center", va="bottom")
    axis.set(xlim=(-0.05, across * columns), ylim=(down * lines - 0.3, -0.32), aspect="equal")
    bar = figure.colorbar(image, ax=axis, shrink=0.7 if lines == 1 else 0.4, ticks=[-1, 0, 1])
    bar.set_label("of the largest cell", fontsize=7)
    few = len(shown) < len(table.rows)
    title = f"First {len(shown)} mean kernels" if few else "Mean kernels"
    figure.suptitle(literal(f"{title} of {printable(table.source)}"), fontsize=10)
    return figure


def score_by_depth(table: "NetworkTable") -> Any:
    """Draws the score of every layer in order, over the band of chance."""
    figure, axis = _figure(7.5, 3.6)
    depth = np.arange(1, len(table.rows) + 1)
    # The band reaches half a layer to each side, so it has steps where the kernel size changes.
    edges = np.concatenate([[0.5], depth + 0.5])
    means = np.array([row["null_mean"] for row in table.rows])
    tops = np.array([row["null_q95"] for row in table.rows])
    axis.stairs(tops, edges, baseline=means, fill=True, color=CHANCE, alpha=0.35, lw=0,
                label="chance: mean to 95 % point")  # fmt: skip
    axis.stairs(means, edges, baseline=None, color=CHANCE, lw=1)
    scores = np.array([np.nan if r["score"] is None else r["score"] for r in table.rows])
    axis.plot(depth, scores, color=CHANCE, lw=0.8, zorder=1)
    for role, color in ROLE_COLORS.items():
        chosen = np.array([row["role"] == role for row in table.rows])
        if chosen.any():
            label = role or "stride not known"
            axis.scatter(depth[chosen], scores[chosen], s=28, color=color, label=label, zorder=2)
    axis.set(
        xlim=(edges[0], edges[-1]),
        ylim=(0.3, 1.02),
        xlabel=depth_label(table),
        ylabel="symmetry score, |T| = 8",
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=7, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def trajectory(table: "NetworkTable") -> Any:
    """Draws the score of every layer over the steps of a run that recorded it."""
    figure, axis = _figure(7.5, 3.6)
    steps = np.array([line["step"] for line in table.history])
    roles = {row["layer"]: row["role"] for row in table.rows}
    strided = {"strided": (0, (4, 2)), "first": (0, (1, 1))}
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(table.rows)))
    for color, (layer, role) in zip(shades, roles.items(), strict=True):
        scores = [line["scores"].get(layer) for line in table.history]
        values = np.array([np.nan if score is None else score for score in scores])
        label = (
            literal(f"{printable(layer)} ({role or 'stride not known'})")
            if len(roles) <= _MOST_NAMES
            else None
        )
        axis.plot(steps, values, color=color, lw=1.3, ls=strided.get(role, "-"), label=label)
    by_size = {(row["null_mean"], row["null_q95"]) for row in table.rows}
    if len(by_size) == 1:
        low, high = by_size.pop()
        axis.axhspan(low, high, color=CHANCE, alpha=0.35, lw=0, zorder=0)
        axis.annotate("chance, mean to 95 % point", (steps[-1], low), ha="right", va="bottom",
                      fontsize=7)  # fmt: skip
    axis.set(xlabel="completed steps or epochs", ylabel="symmetry score, |T| = 8")
    if len(roles) <= _MOST_NAMES:
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def unit_kernel(kernel: np.ndarray) -> np.ndarray:
    """Divides a kernel by its largest cell, so that all share one scale from −1 to 1.

    Layers differ by orders of magnitude, and the measure ignores the scale. A kernel that is zero
    or not finite becomes zero.
    """
    with np.errstate(invalid="ignore"):
        largest = np.abs(kernel).max()
    return kernel / largest if 0 < largest < np.inf else np.zeros_like(kernel)


def depth_label(table: "NetworkTable") -> str:
    """Returns the label of the axis along which layers are drawn."""
    if any(row["order"] is None for row in table.rows):
        return "layer, by name: the file keeps no order"
    return "layer, in order"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    with style():
        figure = new_figure(width, height)
        return figure, figure.subplots()
