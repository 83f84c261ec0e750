"""A network in a few numbers and sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report.layer_table import NetworkTable
from kernsym_jax.report.measured import null_scores

ORDINARY = ("internal", "strided", None)
"""The roles whose scores are compared: ordinary square kernels that do not see the image itself.
None is one of the two, in a file that does not tell strides."""

# Below a tenth of the energy the odd part is not worth a word.
_ODD_SHARE = 0.10
# A component of the skew counts when it is more than this share of the other: 22.5° from an axis.
_OBLIQUE = math.tan(math.pi / 8)


def summarize(table: NetworkTable) -> dict[str, Any]:
    """The figures of a whole network; None where it has no layer of the kind.

    Args:
      table: from `network_table`.

    Returns:
      ``layers``, ``strides_known``, ``mean`` (mean score of the internal and strided layers),
      ``internal_mean`` and ``strided_mean`` (by role), ``first_score``,
      ``above_null`` and ``above_null_centered`` (share of the internal and strided layers whose
      score, or score without the offset, is above the 95 % point of its null),
      ``discoveries`` (the share of them that stay at a false-discovery rate of 5 %),
      ``depth_spearman`` (rank correlation of score and depth over the internal layers) and
      ``strided_deficit`` (how much lower strided layers score than the internal layers between
      them and the next stride, on average; where sizes are known without those on the way back up,
      whose maps are larger).
    """
    rows = [row for row in table.rows if row["score"] is not None]
    by_role = {name: [row for row in rows if row["role"] == name] for name in ORDINARY}
    ordinary = [row for row in rows if row["role"] in ORDINARY]
    internal = by_role["internal"]
    first = [row["score"] for row in rows if row["role"] == "first"]
    ordered = all(row["order"] is not None for row in rows)
    deficits = strided_deficits(rows, table.geometry) if ordered else {}
    return {
        "layers": len(table.rows),
        "strides_known": not by_role[None],
        "mean": _mean([row["score"] for row in ordinary]),
        "internal_mean": _mean([row["score"] for row in internal]),
        "strided_mean": _mean([row["score"] for row in by_role["strided"]]),
        "first_score": first[0] if first else None,
        "above_null": _mean([float(row["score"] > row["null_q95"]) for row in ordinary]),
        "above_null_centered": _mean([_above_centred(table, row) for row in ordinary]),
        "discoveries": _mean([float(row["q_value"] <= 0.05) for row in ordinary]),
        "depth_spearman": _rank_correlation(internal),
        "strided_deficit": _mean(list(deficits.values())),
    }


def strided_deficits(
    rows: Sequence[Mapping[str, Any]], geometry: Sequence[LayerGeometry] = ()
) -> dict[str, float]:
    """How much lower each strided layer scores than the internal layers of its own stage.

    Args:
      rows: of a layer table, in forward order.
      geometry: rows of the audit, which tell where a network goes back up to larger maps: what
        follows there is of another stage.

    Returns:
      Strided layer -> mean score of the internal layers after it, up to the next strided one, minus
      its own. Layers without such neighbours, or without a score, are left out.
    """
    audited = {row.layer: row for row in geometry}

    def goes_back_up(row: Mapping[str, Any], strided: Mapping[str, Any]) -> bool:
        one, other = audited.get(row["layer"]), audited.get(strided["layer"])
        return bool(one and other and math.prod(one.input_size) > math.prod(other.output_size))

    stages: list[tuple[Mapping[str, Any], list[float]]] = []
    for row in rows:
        if row["role"] == "strided":
            stages.append((row, []))
        elif row["role"] == "internal" and stages and row["score"] is not None:
            strided, scores = stages[-1]
            if not goes_back_up(row, strided):
                scores.append(row["score"])
    return {
        strided["layer"]: float(np.mean(scores)) - strided["score"]
        for strided, scores in stages
        if scores and strided["score"] is not None
    }


def in_words(row: dict[str, Any]) -> str:
    """What kind of asymmetry a layer has, in a few words; empty if it has hardly any.

    Args:
      row: of the layer table.

    Returns:
      For example ``"odd part 31 %, towards bottom right: the padding-skew pattern"``, where the
      last words need a layer that leans to where its padding is predicted to skew it.
    """
    if row["score"] is None or row["E"] < _ODD_SHARE:
        return ""
    words = f"odd part {_percent(row['E'])}"
    direction = measured_direction(row["skew_x"], row["skew_y"])
    if direction:
        words += f", towards {direction}"
    if direction and direction == row["predicted_skew"]:
        words += ": the padding-skew pattern"
    return words


def advice(table: NetworkTable) -> str:
    """What the audit says about the network's padding, in one sentence; empty without an audit."""
    rows = list(table.geometry)
    if not rows:
        return ""
    from kernsym_jax import geometry

    size = "×".join(map(str, rows[0].input_size))
    try:
        return f"Padding at {size} pixels: {geometry.advise(rows, table.rows_at).verdict}."
    except ValueError:  # other sizes cannot be foretold from these rows
        return ""


def measured_direction(x: float, y: float) -> str:
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
    if not summary["strides_known"]:
        said.append(
            f"All but the first score {summary['mean']:.3f} on average; strides are not in this "
            "file, so strided layers are not told from the others (--model can tell them)."
        )
    if summary["internal_mean"] is not None:
        said.append(f"Internal layers score {summary['internal_mean']:.3f} on average.")
    if summary["strided_mean"] is not None:
        said.append(f"Strided layers score {summary['strided_mean']:.3f} on average.")
    if summary["strided_deficit"] is not None:
        lower = summary["strided_deficit"]
        said.append(
            f"Against the internal layers of its own stage a strided layer is {abs(lower):.3f} "
            f"{'lower' if lower > 0 else 'higher'} on average."
        )
    if summary["first_score"] is not None:
        said.append(f"The first layer scores {summary['first_score']:.3f}.")
    if summary["above_null"] is not None:
        said.append(
            "Of the ordinary layers (internal and strided) "
            f"{_percent(summary['above_null'])} lie above the 95 % point of chance, "
            f"{_percent(summary['above_null_centered'])} once the offset is removed; "
            f"{_percent(summary['discoveries'])} count at a false-discovery rate of 5 %."
        )
    if summary["depth_spearman"] is not None:
        said.append(
            f"Rank correlation of score and depth, internal layers: "
            f"{summary['depth_spearman']:+.2f}."
        )
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _above_centred(table: NetworkTable, row: dict[str, Any]) -> float:
    _, centred = null_scores(*table.mean_kernels[row["layer"]].shape)
    score = row["score_centered"]
    return float(score is not None and score > np.quantile(centred, 0.95))


def _rank_correlation(rows: list[dict[str, Any]]) -> float | None:
    if len(rows) < 3 or any(row["order"] is None for row in rows):
        return None
    ranks = [np.argsort(np.argsort([row[name] for row in rows])) for name in ("order", "score")]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
