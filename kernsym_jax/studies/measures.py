"""Measures of a finished run: figures of its layers at the end, at the start and along the way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax import report
from kernsym_jax.studies import statistics
from kernsym_jax.studies.results import FinishedRun
from kernsym_jax.studies.study import Measure

Row = Mapping[str, Any]
Figure = str | Callable[[Row], float | None]

ORDINARY = ("internal", "strided")
"""Roles of square kernels that do not see the image itself."""


def accuracy() -> Measure:
    """The share of the test images that the run gets right at its end."""
    return Measure("test accuracy", lambda run: run.summary["eval_accuracy"])


def shift_consistency(meaning: str = "shift consistency") -> Measure:
    """The share of shifts that leave the class of a test image as it is."""
    return Measure(meaning, lambda run: run.consistency["shift_consistency"]["value"])


def flip_consistency(element: str, kind: str = "hard", meaning: str | None = None) -> Measure:
    """The share of test images whose class an element of D4 leaves as it is.

    Args:
      element: of D4.
      kind: ``hard``, ``soft``, or either after the one-pixel roll: ``rolled_hard``,
        ``rolled_soft``.
      meaning: of the measure; the element and kind by default.

    Returns:
      The measure.
    """

    def of(run: FinishedRun) -> float | None:
        kinds = run.consistency["flip_consistency"].get(element)
        return None if kinds is None else kinds[kind]["value"]

    return Measure(meaning or f"{element} consistency, {kind.replace('_', ', ')}", of)


def mean_over(figure: Figure, roles: Sequence[str], meaning: str) -> Measure:
    """The mean of a figure over the layers of some roles, at the end.

    Args:
      figure: a column of the layer table, or a function of its rows.
      roles: of the layers.
      meaning: of the measure.

    Returns:
      The measure; it has no value where there is no such layer.
    """
    return Measure(meaning, lambda run: mean_figure(_of_role(run.table.rows, roles), figure))


def at_layers(figure: Figure, layers: Sequence[str], meaning: str) -> Measure:
    """The mean of a figure over layers of some names, at the end."""

    def of(run: FinishedRun) -> float | None:
        return mean_figure([row for row in run.table.rows if row["layer"] in layers], figure)

    return Measure(meaning, of)


def along_training(figure: Figure, roles: Sequence[str], kept: str, meaning: str) -> Measure:
    """Spearman's correlation of symmetry and consistency over the evaluations of one run.

    Args:
      figure: one of `symmetry.FIELDS`, or a function of a mapping of them; its mean over layers.
      roles: of the layers, as they are at the end.
      kept: ``shifts``, or an element of D4.
      meaning: of the measure.

    Returns:
      The measure; it has no value with fewer than four evaluations, or where one side of them
      never changes.
    """

    def of(run: FinishedRun) -> float | None:
        names = [row["layer"] for row in _of_role(run.table.rows, roles)]
        layers = {line["step"]: line["layers"] for line in run.history}
        pairs = [
            (mean_figure([layers[line["step"]][name] for name in names], figure), share)
            for line in run.answers
            if line["step"] in layers
            and (share := line[kept] if kept == "shifts" else line["flips"].get(kept)) is not None
        ]
        x, y = zip(*((a, b) for a, b in pairs if a is not None), strict=True) if pairs else ((), ())
        return statistics.correlation(x, y, (), "spearman", 0.95).effect if len(x) > 3 else None

    return Measure(meaning, of)


def at_step(figure: Figure, roles: Sequence[str], index: int, meaning: str) -> Measure:
    """The mean of a figure over the layers of some roles at one of the recorded steps.

    Args:
      figure: one of `symmetry.FIELDS`, or a function of a mapping of them.
      roles: of the layers, as they are at the end.
      index: of the record; 0 is the initialisation, −1 the end.
      meaning: of the measure.

    Returns:
      The measure.
    """

    def of(run: FinishedRun) -> float | None:
        layers = run.history[index]["layers"]
        rows = _of_role(run.table.rows, roles)
        return mean_figure([layers[row["layer"]] for row in rows], figure)

    return Measure(meaning, of)


def over_chance(roles: Sequence[str], index: int, meaning: str) -> Measure:
    """How far the mean score is above the mean score of random kernels of the same sizes.

    Args:
      roles: of the layers, as they are at the end.
      index: of the record; 0 is the initialisation, −1 the end.
      meaning: of the measure.

    Returns:
      The measure.
    """

    def of(run: FinishedRun) -> float | None:
        layers = run.history[index]["layers"]
        scored = [
            {"over": layers[row["layer"]]["score"] - row["null_mean"]}
            for row in _of_role(run.table.rows, roles)
            if layers[row["layer"]]["score"] is not None
        ]
        return mean_figure(scored, "over")

    return Measure(meaning, of)


def deficit(meaning: str, layer: str | None = None) -> Measure:
    """How much lower strided layers score than the internal layers of their own stage.

    Args:
      meaning: of the measure.
      layer: a strided layer; ``None`` for the mean over all that internal layers follow before the
        next stride.

    Returns:
      The measure.
    """

    def of(run: FinishedRun) -> float | None:
        found = report.strided_deficits(run.table.rows, run.table.geometry)
        if layer is not None:
            return found.get(layer)
        return float(np.mean(list(found.values()))) if found else None

    return Measure(meaning, of)


def towards_bottom_right(row: Row) -> float | None:
    """The skew along the diagonal to which uneven zero padding is predicted to lean."""
    if row["skew_x"] is None:
        return None
    return (row["skew_x"] + row["skew_y"]) / 2


def flipud_over_fliplr(row: Row) -> float | None:
    """How much farther a kernel is from its upside-down image than from its mirror image."""
    if row["d_fliplr"] is None:
        return None
    return row["d_flipud"] - row["d_fliplr"]


def mean_figure(rows: Sequence[Row], figure: Figure) -> float | None:
    """The mean of a figure over rows, where it is defined."""
    found = [row[figure] if isinstance(figure, str) else figure(row) for row in rows]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _of_role(rows: Sequence[Row], roles: Sequence[str]) -> list[Row]:
    return [row for row in rows if row["role"] in roles]
