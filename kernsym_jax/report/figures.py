"""Figures of a network's layer table, for papers (files) and for the page (inline SVG)."""

import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kernsym_jax.cli import printable
from kernsym_jax.report.drawing import INK, Drawing, Points, mixed, text_width

if TYPE_CHECKING:
    from kernsym_jax.report.tables import NetworkTable

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

# Orange against purple: colour-blind readers can tell them apart, and neither reads as good or bad.
_KERNEL_COLORS = ("#2d004b", "#542788", "#8073ac", "#b2abd2", "#d8daeb", "#f7f7f7", "#fee0b6",
                  "#fdb863", "#e08214", "#b35806", "#7f3b08")  # fmt: skip
# Like viridis, without the ends that cannot be told from a dark or a white page.
_LAYER_COLORS = ("#5b5fae", "#3f7bb5", "#2b93a3", "#1f9e89", "#3fb072", "#6fb950", "#93bd3a")
_CHANCE = "#9aa5b1"

_MOST_PANELS = 120
_MOST_COLUMNS = 8
_MOST_NAMES = 12
_MOST_STEPS = 1000
# Cells along an axis of a kernel's picture.
_MOST_CELLS = 64

# Sizes in points, 72 to the inch.
_TITLE, _TEXT, _SMALL = 10, 9, 7
_KERNEL, _ACROSS, _DOWN, _MARGIN, _HEAD, _BAR = 81, 88, 110, 8, 50, 62
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 540, 260, 38, 34
# Lengths of the dashes and gaps of a trajectory.
_DASHES = {"strided": (5.2, 2.6), "first": (1.3, 1.3)}


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
    for name, drawing in draw(table).items():
        path = folder / f"{prefix}{name}.svg"
        path.write_text(drawing.svg(), encoding="utf-8")
        drawing.write_png(path.with_suffix(".png"))
        written.append(path)
    return written


def draw(table: "NetworkTable") -> dict[str, Drawing]:
    """Draws the figures of one network.

    Args:
      table: from `network_table`.

    Returns:
      ``mean_kernels``, ``score_by_depth`` and, for a run that recorded its scores, ``trajectory``:
      name -> drawing.
    """
    drawings = {"mean_kernels": gallery(table), "score_by_depth": score_by_depth(table)}
    if len(table.history) > 1:
        drawings["trajectory"] = trajectory(table)
    return drawings


def gallery(table: "NetworkTable") -> Drawing:
    """Draws the mean kernels side by side, each on the scale of its own largest cell."""
    shown = table.rows[:_MOST_PANELS]
    columns = min(len(shown), _MOST_COLUMNS)
    lines = -(-len(shown) // columns)
    few = f"First {len(shown)} mean kernels" if len(shown) < len(table.rows) else "Mean kernels"
    title = f"{few} of {printable(table.source)}"
    width = max(2 * _MARGIN + columns * _ACROSS + _BAR, 2 * _MARGIN + text_width(title, _TITLE))
    drawing = Drawing(width, _HEAD + lines * _DOWN - 20, smooth=False)
    drawing.text(width / 2, 14, title, _TITLE, "middle")
    for index, row in enumerate(shown):
        left = _MARGIN + _ACROSS * (index % columns)
        top = _HEAD + _DOWN * (index // columns)
        _draw_kernel(drawing, left, top, coarse(table.mean_kernels[row["layer"]]))
        name = printable(row["layer"])
        name = name if len(name) <= 18 else f"…{name[-17:]}"
        score = "undefined" if row["score"] is None else f"{row['score']:.2f}"
        middle = left + _KERNEL / 2
        drawing.text(middle, top - 12, name, _SMALL, "middle")
        drawing.text(middle, top - 3, f"{row['role'] or ''} {score}".strip(), _SMALL, "middle")
    taken = _KERNEL + _DOWN * (lines - 1)
    height = min(145, 0.7 * taken)
    _draw_scale(drawing, _MARGIN + columns * _ACROSS + 10, _HEAD + (taken - height) / 2, height)
    return drawing


def _draw_kernel(drawing: Drawing, left: float, top: float, kernel: np.ndarray) -> None:
    cell = _KERNEL / max(kernel.shape)
    for (y, x), value in np.ndenumerate(unit_kernel(kernel)):
        drawing.box((left + x * cell, top + y * cell), (cell, cell), kernel_color(float(value)))


def _draw_scale(drawing: Drawing, left: float, top: float, height: float) -> None:
    """Draws the colours of the cells from 1 at the top to −1, with numbers and a label."""
    steps, wide = 64, 8
    for step in range(steps):
        color = kernel_color(1 - 2 * step / (steps - 1))
        drawing.box((left, top + step * height / steps), (wide, height / steps), color)
    corners = [(left, top), (left + wide, top), (left + wide, top + height), (left, top + height)]
    drawing.line([*corners, corners[0]], INK, 0.8)
    for share, number in enumerate(("1", "0", "−1")):
        y = top + share * height / 2
        drawing.line([(left + wide, y), (left + wide + 3.5, y)], INK, 0.8)
        drawing.text(left + wide + 7, y + 3.2, number, _TEXT)
    drawing.text(
        left + wide + 32, top + height / 2, "of the largest cell", _SMALL, "middle", upright=True
    )


def score_by_depth(table: "NetworkTable") -> Drawing:
    """Draws the score of every layer in order, over the band of chance."""
    rows = table.rows
    marks = [_Mark("chance: mean to 95 % point", _CHANCE, "band")]
    marks += [
        _Mark(role or "stride not known", color, "dot")
        for role, color in ROLE_COLORS.items()
        if any(row["role"] == role for row in rows)
    ]
    legend = _legend_lines(marks)
    top = 6 + 14 * len(legend)
    drawing = Drawing(_WIDTH, _HEIGHT + top)
    sides = (_LEFT, top, _WIDTH - 4, _HEIGHT + top - _BOTTOM)
    axes = _Axes(drawing, sides, (0.5, len(rows) + 0.5), (0.3, 1.02))
    steps = []
    for first, last, low, high in chance_spans(rows):
        axes.band((first, last), (low, high))
        steps += [axes.at(first, low), axes.at(last, low)]
    drawing.line(steps, _CHANCE, 1)
    points = [(number, _or_nan(row["score"])) for number, row in enumerate(rows, 1)]
    axes.curve(points, _CHANCE, 0.8)
    for point, row in zip(points, rows, strict=True):
        if row["score"] is not None:
            drawing.dot(*axes.at(*point), 3, ROLE_COLORS[row["role"]])
    names = (depth_label(table), "symmetry score, |T| = 8")
    axes.frame(_ticks(1, len(rows), 10, whole=True), _ticks(0.3, 1, 8), names)
    _draw_legend(drawing, axes, legend)
    return drawing


def trajectory(table: "NetworkTable") -> Drawing:
    """Draws the score of every layer over the steps of a run that recorded it."""
    # More points than these cannot be told apart; the last one is always among them.
    every = -(-len(table.history) // _MOST_STEPS)
    lines = table.history[::-every][::-1]
    shade = 1 / max(1, len(table.rows) - 1)
    curves = {
        _Mark(
            f"{printable(row['layer'])} ({row['role'] or 'stride not known'})",
            mixed(_LAYER_COLORS, number * shade),
            "line",
            _DASHES.get(row["role"], ()),
        ): [(line["step"], _or_nan(line["scores"].get(row["layer"]))) for line in lines]
        for number, row in enumerate(table.rows)
    }
    levels = {(row["null_mean"], row["null_q95"]) for row in table.rows}
    chance = levels.pop() if len(levels) == 1 else ()
    named = list(curves) if len(curves) <= _MOST_NAMES else []
    legend = _legend_lines(named)
    top = 6 + 14 * len(legend)
    drawing = Drawing(_WIDTH, _HEIGHT + top)
    scores = (score for points in curves.values() for _, score in points)
    axes = _Axes(
        drawing,
        (_LEFT + 8, top, _WIDTH - 8, _HEIGHT + top - _BOTTOM),
        _around([lines[0]["step"], lines[-1]["step"]]),
        _around([*scores, *chance]),
    )
    if chance:
        axes.band(axes.x, chance)
        right, bottom = axes.at(lines[-1]["step"], chance[0])
        drawing.text(right, bottom - 3, "chance, mean to 95 % point", _SMALL, "end")
    for mark, points in curves.items():
        axes.curve(points, mark.color, 1.3, mark.dashes)
    names = ("completed steps or epochs", "symmetry score, |T| = 8")
    axes.frame(_ticks(*axes.x, 8), _ticks(*axes.y, 8), names)
    _draw_legend(drawing, axes, legend)
    return drawing


def chance_spans(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[float, float, float, float]]:
    """Yields the stretches of layers with one level of chance.

    Args:
      rows: of the layer table.

    Yields:
      Where the stretch begins and ends, half a layer before its first and after its last, counted
      from 1; the mean score of random kernels and the 95 % point of their scores.
    """
    start = 0.5
    for level, group in itertools.groupby((row["null_mean"], row["null_q95"]) for row in rows):
        end = start + len(list(group))
        yield start, end, *level
        start = end


def coarse(kernel: np.ndarray) -> np.ndarray:
    """Returns the kernel, or means of blocks of its cells if it has too many for a picture."""
    for axis, size in enumerate(kernel.shape):
        if size > _MOST_CELLS:
            edges = np.linspace(0, size, _MOST_CELLS, endpoint=False).astype(int)
            with np.errstate(over="ignore", invalid="ignore"):
                sums = np.add.reduceat(kernel, edges, axis=axis)
            counts = np.diff(edges, append=size)
            kernel = sums / np.expand_dims(counts, 1 - axis).astype(kernel.dtype)
    return kernel


def unit_kernel(kernel: np.ndarray) -> np.ndarray:
    """Divides a kernel by its largest cell, so that all share one scale from −1 to 1.

    Layers differ by orders of magnitude, and the measure ignores the scale. A kernel that is zero
    or not finite becomes zero.
    """
    with np.errstate(invalid="ignore"):
        largest = np.abs(kernel).max()
    return kernel / largest if 0 < largest < np.inf else np.zeros_like(kernel)


def kernel_color(value: float) -> str:
    """Returns the colour of a cell of a `unit_kernel`, such as ``#f7f7f7`` for zero."""
    return _shade(round(127 * value))


@functools.cache
def _shade(number: int) -> str:
    return mixed(_KERNEL_COLORS, (number + 127) / 254)


def moment_arrow(
    row: dict[str, Any], figure: str, scale: float, shape: tuple[int, ...]
) -> dict[str, float] | None:
    """Returns an arrow from the middle along a first moment, lengthened and clipped."""
    moment_x, moment_y = row[f"{figure}_x"], row[f"{figure}_y"]
    if row["role"] != "strided" or moment_x is None or moment_y is None:
        return None
    x, y = shape[1] / 2, shape[0] / 2
    longest = max(abs(moment_x) / x, abs(moment_y) / y)
    longer = min(scale, 0.9 / longest) if longest else 0
    return {"x1": x, "y1": y, "x2": x + longer * moment_x, "y2": y + longer * moment_y}


def depth_label(table: "NetworkTable") -> str:
    """Returns the label of the axis along which layers are drawn."""
    if any(row["order"] is None for row in table.rows):
        return "layer, by name: the file keeps no order"
    return "layer, in order"


class _Axes:
    """A rectangle of a drawing, and the values that its sides stand for.

    Args:
      sides: left, top, right and bottom, in points.
      x: values at the left and at the right.
      y: values at the bottom and at the top.
    """

    def __init__(
        self,
        drawing: Drawing,
        sides: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
    ) -> None:
        self._drawing = drawing
        self.left, self.top, self.right, self.bottom = sides
        self.x, self.y = x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of two values."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def band(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Fills the values between two corners with the colour of chance."""
        left, bottom = self.at(x[0], y[0])
        right, top = self.at(x[1], y[1])
        self._drawing.box((left, top), (right - left, bottom - top), _CHANCE, 0.35)

    def curve(
        self, points: Points, color: str, width: float, dashes: tuple[float, ...] = ()
    ) -> None:
        """Draws a line through values, with a gap at each that is NaN."""
        for known, part in itertools.groupby(points, lambda point: not math.isnan(point[1])):
            if known:
                self._drawing.line([self.at(*point) for point in part], color, width, dashes)

    def frame(
        self, columns: Sequence[float], rows: Sequence[float], names: tuple[str, str]
    ) -> None:
        """Draws the left and the bottom side, their ticks with numbers, and their names."""
        drawing = self._drawing
        corners = [(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)]
        drawing.line(corners, INK, 0.8)
        for value, number in zip(columns, _numbers(columns), strict=True):
            x, _ = self.at(value, self.y[0])
            drawing.line([(x, self.bottom), (x, self.bottom + 3.5)], INK, 0.8)
            drawing.text(x, self.bottom + 14, number, _TEXT, "middle")
        for value, number in zip(rows, _numbers(rows), strict=True):
            _, y = self.at(self.x[0], value)
            drawing.line([(self.left - 3.5, y), (self.left, y)], INK, 0.8)
            drawing.text(self.left - 7, y + 3.2, number, _TEXT, "end")
        drawing.text((self.left + self.right) / 2, self.bottom + 27, names[0], _TEXT, "middle")
        drawing.text(10, (self.top + self.bottom) / 2, names[1], _TEXT, "middle", upright=True)


class _Mark(NamedTuple):
    """A name of a legend and what stands beside it: a band, a dot or a line."""

    name: str
    color: str
    kind: Literal["band", "dot", "line"]
    dashes: tuple[float, ...] = ()

    @property
    def width(self) -> float:
        return 32 + text_width(self.name, _SMALL)

    def draw(self, drawing: Drawing, x: float, y: float) -> None:
        if self.kind == "band":
            drawing.box((x, y - 5), (14, 5), self.color, 0.35)
        elif self.kind == "dot":
            drawing.dot(x + 7, y - 2.5, 3, self.color)
        else:
            drawing.line([(x, y - 2.5), (x + 14, y - 2.5)], self.color, 1.3, self.dashes)
        drawing.text(x + 19, y, self.name, _SMALL)


def _legend_lines(marks: Sequence[_Mark]) -> list[list[_Mark]]:
    """Fills lines of the figure's width with the marks of a legend."""
    lines: list[list[_Mark]] = []
    left = 0.0
    for mark in marks:
        if not lines or mark.width > left:
            lines.append([])
            left = _WIDTH - _LEFT
        lines[-1].append(mark)
        left -= mark.width
    return lines


def _draw_legend(drawing: Drawing, axes: _Axes, lines: Sequence[Sequence[_Mark]]) -> None:
    """Draws a legend above the axes, each line in the middle."""
    for number, line in enumerate(lines):
        x = (axes.left + axes.right - sum(mark.width for mark in line)) / 2
        for mark in line:
            mark.draw(drawing, x, 13 + 14 * number)
            x += mark.width


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Returns round numbers from low to high, at most so many."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= least)
    step = max(1, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _numbers(values: Sequence[float]) -> list[str]:
    """Returns numbers as text, with as many decimals as the longest of them needs."""
    decimals = max((len(f"{value:f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def _around(values: Iterable[float]) -> tuple[float, float]:
    """Returns the least and the largest value with a margin on both sides."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    margin = 0.05 * (max(known) - min(known)) or 0.5
    return min(known) - margin, max(known) + margin


def _or_nan(score: float | None) -> float:
    return math.nan if score is None else score
