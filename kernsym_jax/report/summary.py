"""A network in a few numbers and sentences."""

import math
from typing import Any

import numpy as np

from kernsym_jax.report.layer_table import NetworkTable, null_quantiles

ORDINARY = ("internal", "strided")
"""The roles whose scores are compared: ordinary square kernels that do not see the image itself."""

# Below a tenth of the energy the odd part is not worth a word.
_ODD_SHARE = 0.10
# A component of the skew counts when it is more than this share of the other: 22.5° from an axis.
_OBLIQUE = math.tan(math.pi / 8)


def summarize(table: NetworkTable) -> dict[str, Any]:
    """The figures of a whole network; None where it has no layer of the kind.

    Args:
      table: from `network_table`.

    Returns:
      ``layers``, ``internal_mean`` and ``strided_mean`` (mean scores by role), ``first_score``,
      ``above_null`` and ``above_null_centered`` (share of the internal and strided layers whose
      score, or score without the offset, is above the 95 % point of its null) and
      ``depth_spearman`` (rank correlation of score and depth over the internal layers).
    """
    rows = [row for row in table.rows if row["score"] is not None]
    by_role = {name: [row for row in rows if row["role"] == name] for name in ORDINARY}
    ordinary = [row for row in rows if row["role"] in ORDINARY]
    internal = by_role["internal"]
    first = [row["score"] for row in rows if row["role"] == "first"]
    return {
        "layers": len(table.rows),
        "internal_mean": _mean([row["score"] for row in internal]),
        "strided_mean": _mean([row["score"] for row in by_role["strided"]]),
        "first_score": first[0] if first else None,
        "above_null": _mean([float(row["score"] > row["null_q95"]) for row in ordinary]),
        "above_null_centered": _mean([_above_centred(table, row) for row in ordinary]),
        "depth_spearman": _rank_correlation(internal),
    }


def in_words(row: dict[str, Any]) -> str:
    """What kind of asymmetry a layer has, in a few words; empty if it has hardly any.

    Args:
      row: of the layer table.

    Returns:
      For example ``"odd part 31 %, towards bottom right: the padding-skew pattern"``, where the
      last words need a strided layer with uneven padding that leans to the bottom right.
    """
    if row["score"] is None or row["E"] < _ODD_SHARE:
        return ""
    words = f"odd part {row['E']:.0%}".replace("%", " %")
    direction = skew_direction(row["skew_x"], row["skew_y"])
    if direction:
        words += f", towards {direction}"
    uneven = (row["uneven_h"] or 0) > 0 and (row["uneven_w"] or 0) > 0
    if row["role"] == "strided" and uneven and direction == "bottom right":
        words += ": the padding-skew pattern"
    return words


def skew_direction(x: float, y: float) -> str:
    """The direction of a skew vector, x to the right and y down, such as ``bottom right``."""
    if not x and not y:
        return ""
    vertical = "" if abs(y) < _OBLIQUE * abs(x) else "bottom" if y > 0 else "top"
    horizontal = "" if abs(x) < _OBLIQUE * abs(y) else "right" if x > 0 else "left"
    return f"{vertical} {horizontal}".strip()


def sentences(summary: dict[str, Any]) -> list[str]:
    """The summary as text, leaving out what the network does not have."""
    count = summary["layers"]
    said = [f"{count} spatial convolution{'s' if count != 1 else ''}."]
    if summary["internal_mean"] is not None:
        said.append(f"Internal layers score {summary['internal_mean']:.3f} on average.")
    if summary["strided_mean"] is not None:
        said.append(f"Strided layers score {summary['strided_mean']:.3f} on average.")
    if summary["first_score"] is not None:
        said.append(f"The first layer scores {summary['first_score']:.3f}.")
    if summary["above_null"] is not None:
        said.append(
            f"{summary['above_null']:.0%} of the internal and strided layers lie above the 95 % "
            f"point of chance, {summary['above_null_centered']:.0%} once the offset is removed."
        )
    if summary["depth_spearman"] is not None:
        said.append(
            f"Rank correlation of score and depth, internal layers: "
            f"{summary['depth_spearman']:+.2f}."
        )
    return said


def _above_centred(table: NetworkTable, row: dict[str, Any]) -> float:
    _, centred = null_quantiles(*table.mean_kernels[row["layer"]].shape)
    score = row["score_centered"]
    return float(score is not None and score > np.quantile(centred, 0.95))


def _rank_correlation(rows: list[dict[str, Any]]) -> float | None:
    if len(rows) < 3 or any(row["order"] is None for row in rows):
        return None
    ranks = [np.argsort(np.argsort([row[name] for row in rows])) for name in ("order", "score")]
    return float(np.corrcoef(*ranks)[0, 1])


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
