"""Measures of a finished run: figures of its layers at the end, the start and on the way."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from kernsym_jax import report, symmetry
from kernsym_jax.studies import statistics
from kernsym_jax.symmetry.measure import chance_scores

if TYPE_CHECKING:
    from kernsym_jax.studies.results import FinishedRun

Row = Mapping[str, Any]
Figure = str | Callable[[Row], float | None]

ORDINARY = ("internal", "strided")
"""Roles of square kernels that do not see the image itself."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a finished run.

    Attributes:
      meaning: the number in a few words.
      of: computes the number from the run; None if the run has none.

    >>> from kernsym_jax import studies
    >>> loss = studies.Measure("loss on the test images", lambda run: run.summary["eval_loss"])
    >>> loss.meaning
    'loss on the test images'
    """

    meaning: str
    of: "Callable[[FinishedRun], float | None]"


def accuracy() -> Measure:
    """Returns the measure of test accuracy at the end."""
    return Measure("test accuracy", lambda run: run.summary["eval_accuracy"])


def train_loss() -> Measure:
    """Returns the measure of the training loss towards the end."""
    return Measure("training loss, towards the end", lambda run: run.summary["train_loss"])


def train_accuracy() -> Measure:
    """Returns the measure of the training accuracy towards the end."""
    return Measure("training accuracy, towards the end", lambda run: run.summary["train_accuracy"])


def shift_consistency(meaning: str = "shift consistency") -> Measure:
    """Returns the measure of how many shifts of a test image keep its class."""
    return Measure(meaning, lambda run: run.consistency["shift_consistency"]["value"])


def flip_consistency(element: str, kind: str = "hard", meaning: str | None = None) -> Measure:
    """Returns the measure of how many test images keep their class under an element of D4.

    Args:
      element: an element of D4.
      kind: ``hard``, ``soft``, or either after the one-pixel roll: ``rolled_hard``,
        ``rolled_soft``.
      meaning: meaning of the measure; by default the element and the kind.
    """

    def of(run: "FinishedRun") -> float | None:
        kinds = run.consistency["flip_consistency"].get(element)
        return None if kinds is None else kinds[kind]["value"]

    return Measure(meaning or f"{element} consistency, {kind.replace('_', ', ')}", of)


def mean_over(figure: Figure, roles: Sequence[str], meaning: str) -> Measure:
    """Returns the measure of a figure's mean over the layers of some roles, at the end.

    Args:
      figure: a key of the layer table's rows, or a function of a row.
      roles: roles of the layers.
      meaning: meaning of the measure.

    Returns:
      The measure; None for runs without such a layer.
    """
    return Measure(meaning, lambda run: mean_figure(_of_role(run.table.rows, roles), figure))


def at_layers(figure: Figure, layers: Sequence[str], meaning: str) -> Measure:
    """Returns the measure of a figure's mean over the layers of some names, at the end."""

    def of(run: "FinishedRun") -> float | None:
        return mean_figure([row for row in run.table.rows if row["layer"] in layers], figure)

    return Measure(meaning, of)


def moment_distance(element: str, layers: Sequence[str], meaning: str) -> Measure:
    """Returns the measure of the slices' second moments under an element of D4.

    Args:
      element: an element of D4.
      layers: names of the layers; their `symmetry.moment_distances` are averaged.
      meaning: meaning of the measure.
    """
    index = symmetry.D4.index(element)

    def of(run: "FinishedRun") -> float | None:
        found = [
            float(symmetry.moment_distances(jnp.asarray(weight))[index])
            for name, weight in run.weights.items()
            if name in layers
        ]
        known = [value for value in found if not math.isnan(value)]
        return float(np.mean(known)) if known else None

    return Measure(meaning, of)


def along_training(figure: Figure, roles: Sequence[str], kept: str, meaning: str) -> Measure:
    """Returns the measure of how changes of symmetry and of consistency go together in a run.

    Both rise in training for reasons of their own, so that their values correlate in any run.
    The measure is Spearman's correlation of their changes from one evaluation to the next.

    Args:
      figure: one of `symmetry.FIELDS`, or a function of a mapping of them; its mean over layers.
      roles: roles of the layers, as they are at the end.
      kept: ``shifts``, or an element of D4.
      meaning: meaning of the measure.

    Returns:
      The measure; None for runs with fewer than five evaluations, or where one side is constant.
    """

    def of(run: "FinishedRun") -> float | None:
        names = [row["layer"] for row in _of_role(run.table.rows, roles)]
        layers = {line["step"]: line["layers"] for line in run.history}
        pairs: list[tuple[float, float]] = []
        for line in run.answers:
            share = line["shifts"] if kept == "shifts" else line["flips"].get(kept)
            if share is None or line["step"] not in layers:
                continue
            value = mean_figure([layers[line["step"]][name] for name in names], figure)
            if value is not None:
                pairs.append((value, share))
        if len(pairs) < 5:
            return None
        changes = np.diff(np.array(pairs), axis=0)
        return statistics.correlation(changes[:, 0].tolist(), changes[:, 1].tolist()).effect

    return Measure(meaning, of)


def at_step(figure: Figure, roles: Sequence[str], index: int, meaning: str) -> Measure:
    """Returns the measure of a figure's mean over some layers at one of the recorded steps.

    Args:
      figure: one of `symmetry.FIELDS`, or a function of a mapping of them.
      roles: roles of the layers, as they are at the end.
      index: index of the record; 0 is the initialisation, −1 the end.
      meaning: meaning of the measure.
    """

    def of(run: "FinishedRun") -> float | None:
        layers = run.history[index]["layers"]
        rows = _of_role(run.table.rows, roles)
        return mean_figure([layers[row["layer"]] for row in rows], figure)

    return Measure(meaning, of)


def over_chance(
    roles: Sequence[str], index: int, meaning: str, *, centered: bool = False
) -> Measure:
    """Returns the measure of the mean score minus that of random kernels of the same sizes.

    Args:
      roles: roles of the layers, as they are at the end.
      index: index of the record; 0 is the initialisation, −1 the end.
      meaning: meaning of the measure.
      centered: takes the score of K − mean(K), beside random kernels that are centred too.
    """
    name = "score_centered" if centered else "score"

    def of(run: "FinishedRun") -> float | None:
        layers = run.history[index]["layers"]
        scored = []
        for row in _of_role(run.table.rows, roles):
            score = layers[row["layer"]][name]
            if score is not None:
                scored.append({"over": score - chance(row, centered=centered)})
        return mean_figure(scored, "over")

    return Measure(meaning, of)


def chance(row: Row, *, centered: bool = False) -> float:
    """Returns the mean score of random kernels of a layer's size, plain or centred."""
    if not centered:
        return float(row["null_mean"])
    kh, kw = map(int, row["shape"].split("×")[:2])
    return float(chance_scores(kh, kw)[1].mean())


def deficit(meaning: str, layer: str | None = None) -> Measure:
    """Returns the measure of how much lower strided layers score than layers of their own stage.

    Args:
      meaning: meaning of the measure.
      layer: a strided layer; None for the mean over all that internal layers follow before the next
        stride.
    """

    def of(run: "FinishedRun") -> float | None:
        found = report.strided_deficits(run.table.rows, run.table.geometry)
        if layer is not None:
            return found.get(layer)
        return float(np.mean(list(found.values()))) if found else None

    return Measure(meaning, of)


def signature_diagonal(row: Row) -> float | None:
    """Returns the padding signature along the diagonal to the bottom right, in cells per axis."""
    if row["sig_x"] is None:
        return None
    return (row["sig_x"] + row["sig_y"]) / 2


def odd_size(row: Row) -> float | None:
    """Returns the size of the mean kernel's odd moment per axis, √((z_x² + z_y²)/2).

    Random kernels have 0.89 on average (a Rayleigh distribution).
    """
    if row["odd_z_x"] is None or row["odd_z_y"] is None:
        return None
    return math.hypot(row["odd_z_x"], row["odd_z_y"]) / math.sqrt(2)


def flipud_over_fliplr(row: Row) -> float | None:
    """Returns the distance to the upside-down image minus that to the mirror image."""
    if row["d_fliplr"] is None:
        return None
    return row["d_flipud"] - row["d_fliplr"]


def mean_figure(rows: Sequence[Row], figure: Figure) -> float | None:
    """Returns the mean of a figure over the rows in which it is defined, None if there are none."""
    found = [row[figure] if isinstance(figure, str) else figure(row) for row in rows]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _of_role(rows: Sequence[Row], roles: Sequence[str]) -> list[Row]:
    return [row for row in rows if row["role"] in roles]
