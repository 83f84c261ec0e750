"""What an evaluation has found of a network's answers, to stand beside its symmetry."""

import pathlib
from typing import Any

import numpy as np

from kernsym_jax import run_directory, symmetry
from kernsym_jax.cli import path_name
from kernsym_jax.report.layer_table import NetworkTable
from kernsym_jax.report.summary import ORDINARY

Figures = dict[str, float]


def read_consistency(source: pathlib.Path) -> dict[str, Any] | None:
    """The evaluation of a source, where there is one.

    Args:
      source: a run directory, with ``consistency.json`` in it; or a file of weights, with one
        beside it that says it is of this file.

    Returns:
      What the file holds; ``None`` where there is none of this source.

    Raises:
      ValueError: if it is damaged.
    """
    folder = source if source.is_dir() else source.parent
    path = folder / run_directory.CONSISTENCY
    if not path.exists():
        return None
    found = run_directory.read_consistency(folder)
    try:
        weights = pathlib.Path(str(found["settings"]["weights"])).name
        if source.is_file() and weights != source.name:
            return None
        for estimate in _estimates(found):
            if not all(isinstance(estimate[key], int | float) for key in ("value", "low", "high")):
                raise ValueError(f"{estimate} is no figure with its interval")
        _sentence(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path_name(path)}: not an evaluation ({error})") from error
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation without its maps and classes, as ``layers.json`` holds them."""
    names = ("settings", "images", "accuracy", "mean_iou")
    kept: dict[str, Any] = {name: found[name] for name in names if name in found}
    if "shift_consistency" in found:
        kept["shift_consistency"] = {
            key: value for key, value in found["shift_consistency"].items() if key != "map"
        }
    return {**kept, "flip_consistency": found.get("flip_consistency", {})}


def shift_words(found: dict[str, Any]) -> str:
    """Which shifts were compared, such as ``circular shifts of −3 to 3 pixels``."""
    asked = found["shift_consistency"]["settings"]
    low, high = (str(asked[key]).replace("-", "−") for key in ("low", "high"))
    return f"{asked['mode']} shifts of {low} to {high} pixels"


def sentence(table: NetworkTable) -> str:
    """The evaluation in one sentence; empty without one."""
    return _sentence(table.consistency) if table.consistency else ""


def _sentence(found: dict[str, Any]) -> str:
    parts = [f"{_share(found['accuracy'])} are right"]
    if "mean_iou" in found:
        parts[0] += f", mean IoU {_share(found['mean_iou'])}"
    if "shift_consistency" in found:
        parts.append(f"{_share(found['shift_consistency'])} stay under {shift_words(found)}")
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


def beside_symmetry(table: NetworkTable) -> list[dict[str, Any]]:
    """Each element of D4 with how far kernels are from their image under it, and answers too.

    Args:
      table: with an evaluation.

    Returns:
      ``element``, ``distance`` (the mean over the ordinary layers; None where no layer has one)
      and the estimates ``hard``, ``soft``, ``rolled_hard`` and ``rolled_soft``.
    """
    flips = (table.consistency or {}).get("flip_consistency", {})
    return [
        {"element": name, "distance": _distance(table, name), **flips[name]}
        for name in symmetry.D4
        if name in flips and name != "e"
    ]


def _distance(table: NetworkTable, element: str) -> float | None:
    # A quarter turn forth is as far as one back.
    column = "d_r90" if element == "r270" else f"d_{element}"
    known = [
        row[column] for row in table.rows if row["role"] in ORDINARY and row.get(column) is not None
    ]
    return float(np.mean(known)) if known else None


def _estimates(found: dict[str, Any]) -> list[Figures]:
    shown = [found["accuracy"]]
    shown += [found[name] for name in ("mean_iou", "shift_consistency") if name in found]
    for kinds in found.get("flip_consistency", {}).values():
        shown += kinds.values()
    return shown


def _share(estimate: Figures) -> str:
    low, high = (100 * estimate[key] for key in ("low", "high"))
    return f"{100 * estimate['value']:.1f} % ({low:.1f}–{high:.1f})"
