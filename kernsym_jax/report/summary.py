"""A network, and an evaluation of its answers, in a few numbers and sentences."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernsym_jax import geometry as audits
from kernsym_jax import symmetry
from kernsym_jax.report.layer_table import SIGNIFICANT
from kernsym_jax.symmetry.measure import chance_levels

if TYPE_CHECKING:
    from kernsym_jax.report.tables import NetworkTable

ORDINARY = ("internal", "strided", None)
"""The roles whose scores are compared: ordinary square kernels behind the first layer. None is
internal or strided, in a file without strides."""

# An odd part below a tenth of the energy is not mentioned.
_ODD_SHARE = 0.10
# A component of a direction counts if it exceeds this share of the other: 22.5° from an axis.
_OBLIQUE = math.tan(math.pi / 8)
# Reflect and replicate padding change the mean kernels and not the size of the weights.
_REMEDIES = "circular padding, or blur pooling, max-pooling or SBPool in place of the strides"


def summarize(table: "NetworkTable") -> dict[str, Any]:
    """Computes the figures of a whole network; None where it has no layer of the kind.

    Args:
      table: from `network_table`.

    Returns:
      ``layers``, ``strides_known``, ``mean`` (mean score of the internal and strided layers),
      ``internal_mean`` and ``strided_mean`` (by role), ``first_score``,
      ``above_null`` and ``above_null_centered`` (share of the internal and strided layers whose
      score, or centred score, is above the 95 % point of its null),
      ``padding_tested`` and ``padding_shown`` (numbers of layers whose padding predicts where their
      weights grow, and of those that show it),
      ``discoveries`` (share of them found at a false-discovery rate of 5 %),
      ``depth_spearman`` (rank correlation of score and depth over the internal layers) and
      ``strided_deficit`` (the mean of `strided_deficits`).

    >>> import numpy as np
    >>> from kernsym_jax import geometry, report, weights
    >>> kernel = np.ones((3, 3, 8, 8), np.float32)
    >>> kernel[2], kernel[:, 2] = 1.5, 1.5  # larger at the bottom right
    >>> kernel *= np.random.default_rng(0).standard_normal(kernel.shape)
    >>> found = weights.read({"conv": {"kernel": kernel}})
    >>> rows = [
    ...     geometry.LayerGeometry(
    ...         "conv", "conv", (32, 32), (16, 16), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    ...     )
    ... ]
    >>> table = report.network_table(found, "net", rows)
    >>> summary = report.summarize(table)
    >>> summary["layers"], summary["padding_tested"], summary["padding_shown"]
    (1, 1, 1)
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
        "padding_tested": sum(row["shows_padding"] is not None for row in table.rows),
        "padding_shown": sum(row["shows_padding"] is True for row in table.rows),
        "discoveries": _mean([float(row["q_value"] <= 0.05) for row in ordinary]),
        "depth_spearman": _rank_correlation(internal),
        "strided_deficit": _mean(list(deficits.values())),
    }


def strided_deficits(
    rows: Sequence[Mapping[str, Any]], geometry: Sequence[audits.LayerGeometry] = ()
) -> dict[str, float]:
    """Compares each strided layer's score with the internal layers of its own stage.

    Args:
      rows: rows of a layer table, in forward order.
      geometry: rows of the audit. They tell where a network goes back up to larger maps; layers
        from there on belong to another stage.

    Returns:
      Strided layer -> mean score of the internal layers after it, up to the next strided one, minus
      its own score. Layers without such neighbours, or without a score, are left out.

    >>> from kernsym_jax import report
    >>> rows = [
    ...     {"layer": "conv1", "role": "strided", "score": 0.5, "order": 1},
    ...     {"layer": "conv2", "role": "internal", "score": 0.8, "order": 2},
    ... ]
    >>> round(report.strided_deficits(rows)["conv1"], 3)
    0.3
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
    """Describes the direction in which a layer's weights grow, and its mean kernel's odd part.

    Args:
      row: a row of the layer table.

    Returns:
      For example ``"weights grow towards the bottom right, as the padding predicts, p = 2e-09; odd
      part 31 %, towards bottom right"``; empty if there is nothing to say. The first part is the
      padding signature, which decides; the second is the skew of the mean kernel, whose sign
      differs between layers and seeds.

    >>> import numpy as np
    >>> from kernsym_jax import geometry, report, weights
    >>> kernel = np.ones((3, 3, 8, 8), np.float32)
    >>> kernel[2], kernel[:, 2] = 1.5, 1.5  # larger at the bottom right
    >>> kernel *= np.random.default_rng(0).standard_normal(kernel.shape)
    >>> found = weights.read({"conv": {"kernel": kernel}})
    >>> rows = [
    ...     geometry.LayerGeometry(
    ...         "conv", "conv", (32, 32), (16, 16), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    ...     )
    ... ]
    >>> table = report.network_table(found, "net", rows)
    >>> print(report.in_words(table.rows[0]).split(", p")[0])
    weights grow towards the bottom right, as the padding predicts
    """
    said = [_growth(row)]
    if row["score"] is not None and row["E"] >= _ODD_SHARE:
        direction = measured_direction(row["skew_x"], row["skew_y"])
        towards = f", towards {direction}" if direction else ""
        said.append(f"odd part {_percent(row['E'])}{towards}")
    return "; ".join(filter(None, said))


def _growth(row: Mapping[str, Any]) -> str:
    """Describes the padding signature of a layer that has a stride or a predicted direction."""
    if row["sig_x"] is None or row["sig_y"] is None:
        return ""
    direction = measured_direction(row["sig_x"], row["sig_y"])
    predicted = row["predicted_skew"]
    if row["padding_p"] is not None:
        p, shuffled = row["padding_p"], row["padding_p_shuffled"]
        if row["shows_padding"]:
            sides = {
                "right" if row["sig_x"] > 0 else "left",
                "bottom" if row["sig_y"] > 0 else "top",
            }
            # A lean to the bottom right confirms the prediction even if it is not at 45°.
            named = predicted if sides >= set(predicted.split()) else direction
            words = f"weights grow towards the {named}, as the padding predicts"
        elif 1 - min(p, shuffled) <= SIGNIFICANT and direction != predicted:
            words = f"weights grow towards the {direction}, the padding predicts the {predicted}"
            # Rounding leaves no smaller number in the other tail.
            p, shuffled = max(1 - p, 1e-15), max(1 - shuffled, 1e-15)
        else:
            words = f"the weights do not show the padding's growth towards the {predicted}"
        return f"{words}, {_two_p(p, shuffled)}"
    if row["role"] == "strided" and row["sig_p"] is not None and row["sig_p"] <= SIGNIFICANT:
        return f"weights grow towards the {direction}, p = {row['sig_p']:.1g}"
    return ""


def _two_p(p: float, shuffled: float) -> str:
    """Returns the larger p-value; both if they differ much or decide differently."""
    digits = [-math.log10(max(value, 1e-300)) for value in (p, shuffled)]
    apart = max(digits) > 1 + 1.5 * min(digits)
    if apart or (p <= SIGNIFICANT) != (shuffled <= SIGNIFICANT):
        return f"p = {p:.1g} for normal weights, {shuffled:.1g} by shuffling their cells"
    return f"p = {max(p, shuffled):.1g}"


def verdict(table: "NetworkTable") -> str:
    """Returns in one line whether the network shows its padding, and the remedies.

    Args:
      table: from `network_table`.

    Returns:
      For example ``"5 of 5 strided layers show the padding; 225 px would be even; remedies: …"``;
      empty if the network was not audited.

    >>> import numpy as np
    >>> from kernsym_jax import geometry, report, weights
    >>> kernel = np.ones((3, 3, 8, 8), np.float32)
    >>> kernel[2], kernel[:, 2] = 1.5, 1.5  # larger at the bottom right
    >>> kernel *= np.random.default_rng(0).standard_normal(kernel.shape)
    >>> found = weights.read({"conv": {"kernel": kernel}})
    >>> rows = [
    ...     geometry.LayerGeometry(
    ...         "conv", "conv", (32, 32), (16, 16), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    ...     )
    ... ]
    >>> table = report.network_table(found, "net", rows)
    >>> print(report.verdict(table).split(";")[0])
    1 of 1 strided layer shows the padding
    """
    rows = tuple(table.geometry)
    if not rows:
        return ""
    strided = {row.layer for row in rows if row.strided}
    tested = [
        row for row in table.rows if row["shows_padding"] is not None and row["layer"] in strided
    ]
    shown = sum(row["shows_padding"] for row in tested)
    if all(row.even for row in rows if row.strided):
        return f"No strided layer has uneven padding at {_pixels(rows[0].input_size)} px."
    found = _advise(rows, table.rows_at)
    even = ""
    if found is not None and found.nearest is not None:
        even = f"{_pixels(found.nearest)} px would be even"
    if tested:
        verb = "shows" if len(tested) == 1 else "show"
        layers = "strided layer" if len(tested) == 1 else "strided layers"
        parts = [f"{shown} of {len(tested)} {layers} {verb} the padding", even]
    else:
        parts = ["Padding is uneven, but not with zeros in front of a strided kernel", even]
    if shown:
        parts.append(f"remedies: {'this size, ' if even else ''}{_REMEDIES}")
    return f"{'; '.join(filter(None, parts))}."


def advice(table: "NetworkTable") -> str:
    """Returns the audit's verdict on the network's padding in one sentence; empty without an audit.

    Args:
      table: from `network_table`.

    >>> import numpy as np
    >>> from kernsym_jax import geometry, report, weights
    >>> kernel = np.ones((3, 3, 8, 8), np.float32)
    >>> kernel[2], kernel[:, 2] = 1.5, 1.5  # larger at the bottom right
    >>> kernel *= np.random.default_rng(0).standard_normal(kernel.shape)
    >>> found = weights.read({"conv": {"kernel": kernel}})
    >>> rows = [
    ...     geometry.LayerGeometry(
    ...         "conv", "conv", (32, 32), (16, 16), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))
    ...     )
    ... ]
    >>> table = report.network_table(found, "net", rows)
    >>> report.advice(table)
    'Padding at 32×32 pixels: uneven at 1 of 1 strided layer; 33 is the nearest size where none is.'
    """
    rows = tuple(table.geometry)
    found = _advise(rows, table.rows_at) if rows else None
    if found is None:
        return ""
    return f"Padding at {'×'.join(map(str, rows[0].input_size))} pixels: {found.verdict}."


# The checkpoints of one run have one audit, and other sizes take long to try.
@functools.lru_cache(maxsize=16)
def _advise(rows: tuple[audits.LayerGeometry, ...], rows_at: Any) -> audits.Advice | None:
    try:
        return audits.advise(rows, rows_at)
    except ValueError:  # these rows do not determine other sizes
        return None


def _pixels(size: int | Sequence[int]) -> str:
    sides = [size] if isinstance(size, int) else list(dict.fromkeys(size))
    return "×".join(map(str, sides))


def measured_direction(x: float, y: float) -> str:
    """Names the direction of a vector, x to the right and y down, such as ``bottom right``."""
    if not x and not y:
        return ""
    vertical = "" if abs(y) < _OBLIQUE * abs(x) else "bottom" if y > 0 else "top"
    horizontal = "" if abs(x) < _OBLIQUE * abs(y) else "right" if x > 0 else "left"
    return f"{vertical} {horizontal}".strip()


def sentences(summary: dict[str, Any]) -> list[str]:
    """Writes a summary as text, without the figures that the network lacks."""
    count = summary["layers"]
    said = [f"{count} spatial convolution{'s' if count != 1 else ''}."]
    if not summary["strides_known"]:
        said.append(
            f"All but the first score {summary['mean']:.3f} on average; this file keeps no "
            "strides, so strided layers cannot be told from the others (--model adds strides)."
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


def check_evaluation(found: Mapping[str, Any]) -> None:
    """Checks that an evaluation has every figure that a report shows.

    Args:
      found: the contents of ``consistency.json``.

    Raises:
      LookupError, TypeError, ValueError: if a figure is missing or malformed.
    """
    shown = [found["accuracy"]]
    shown += [found[name] for name in ("mean_iou", "shift_consistency") if name in found]
    for kinds in found.get("flip_consistency", {}).values():
        shown += kinds.values()
    for estimate in shown:
        if not all(isinstance(estimate[key], int | float) for key in ("value", "low", "high")):
            raise ValueError(f"{estimate} is not an estimate with its interval")
    answers_sentence(found)


def evaluation_figures(found: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluation without its maps and classes, as ``layers.json`` stores it."""
    names = ("settings", "images", "accuracy", "mean_iou")
    kept: dict[str, Any] = {name: found[name] for name in names if name in found}
    if "shift_consistency" in found:
        kept["shift_consistency"] = {
            key: value for key, value in found["shift_consistency"].items() if key != "map"
        }
    return {**kept, "flip_consistency": found.get("flip_consistency", {})}


def answers_sentence(found: Mapping[str, Any] | None) -> str:
    """Writes an evaluation as one sentence; empty without one."""
    if found is None:
        return ""
    parts = [f"{_share(found['accuracy'])} are right"]
    if "mean_iou" in found:
        parts[0] += f", mean IoU {_share(found['mean_iou'])}"
    if "shift_consistency" in found:
        asked = found["shift_consistency"]["settings"]
        low, high = (str(asked[key]).replace("-", "−") for key in ("low", "high"))
        shifts = f"{asked['mode']} shifts of {low} to {high} pixels"
        parts.append(f"{_share(found['shift_consistency'])} stay under {shifts}")
    flips = found.get("flip_consistency", {})
    parts += [
        f"{_share(flips[name]['hard'])} under {name}"
        for name in ("fliplr", "flipud")
        if name in flips
    ]
    last = parts.pop()
    what = "pixels of " if "mean_iou" in found else ""
    told = f"{', '.join(parts)} and {last}" if parts else last
    return f"Of its answers to {what}{found['images']} images {told}."


def beside_symmetry(table: "NetworkTable") -> list[dict[str, Any]]:
    """Puts the distances of kernels and the consistency of answers side by side, per element of D4.

    Args:
      table: a table with an evaluation.

    Returns:
      ``element``, ``distance`` (mean over the ordinary layers; None if no layer has one) and the
      estimates ``hard``, ``soft``, ``rolled_hard`` and ``rolled_soft``.
    """
    flips = (table.consistency or {}).get("flip_consistency", {})
    return [
        {"element": name, "distance": _distance(table, name), **flips[name]}
        for name in symmetry.D4
        if name in flips and name != "e"
    ]


def _distance(table: "NetworkTable", element: str) -> float | None:
    # A quarter turn to the left moves a kernel as far as one to the right.
    column = "d_r90" if element == "r270" else f"d_{element}"
    return _mean(
        [
            row[column]
            for row in table.rows
            if row["role"] in ORDINARY and row.get(column) is not None
        ]
    )


def _share(estimate: Mapping[str, float]) -> str:
    low, high = (100 * estimate[key] for key in ("low", "high"))
    return f"{100 * estimate['value']:.1f} % ({low:.1f}–{high:.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _above_centred(table: "NetworkTable", row: dict[str, Any]) -> float:
    score = row["score_centered"]
    limit = chance_levels(*table.mean_kernels[row["layer"]].shape).centred_q95
    return float(score is not None and score > limit)


def _rank_correlation(rows: list[dict[str, Any]]) -> float | None:
    if len(rows) < 3 or any(row["order"] is None for row in rows):
        return None
    ranks = [np.argsort(np.argsort([row[name] for row in rows])) for name in ("order", "score")]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
