"""One row of figures per layer: the table that everything else in a report is drawn from."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kernsym_jax import symmetry
from kernsym_jax.cli import path_name
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report.measured import beside_null, mean_kernel, measure_layers
from kernsym_jax.weights import ConvKernel, Weights

COLUMNS = (
    "source",
    "order",
    "layer",
    "kind",
    "role",
    "shape",
    "stride",
    "padding",
    "score",
    "score_no_identity",
    "score_centered",
    "null_mean",
    "null_q95",
    "p_value",
    "dc_share",
    "d_r90",
    "d_r180",
    "d_fliplr",
    "d_flipud",
    "d_transpose",
    "d_antitranspose",
    *symmetry.IRREPS,
    "skew_x",
    "skew_y",
    "neuron_score",
    "single_score",
    "uneven_h",
    "uneven_w",
    "note",
)
"""The columns of ``layers.csv``; a fact that is not known is empty."""

FURTHER = ("q_value", "centre_drift", "predicted_skew")
"""What a row holds beside the columns: its p-value's false-discovery rate among the network's
layers, how far its windows sit from the middle of the map (pixels down and to the right; 0 where
padding is applied evenly), and the direction to which that is predicted to skew it."""

RowsAt = Callable[[Any], Sequence[LayerGeometry]]

# Taps this much smaller than the middle one are taken to be gone.
_VANISHED = 1e-3


@dataclasses.dataclass(frozen=True)
class NetworkTable:
    """The measured layers of one source.

    Attributes:
      source: its name in tables and figures.
      weights: what was read.
      rows: one dict per layer, with the keys of `COLUMNS` and `FURTHER`; None where unknown or
        undefined.
      mean_kernels: layer -> (kh, kw) float32, in the order of the rows.
      geometry: rows of the audit, pooling included; empty where nothing is known.
      rows_at: the audit at another input size, where it can be made.
      history: ``{"step": completed steps, "scores": {layer: score}}``, in order, of a run.
      consistency: what `evaluate` has found of its answers; ``None`` if it was not evaluated.
    """

    source: str
    weights: Weights
    rows: list[dict[str, Any]]
    mean_kernels: dict[str, np.ndarray]
    geometry: Sequence[LayerGeometry] = ()
    rows_at: RowsAt | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    consistency: dict[str, Any] | None = None


def network_table(
    weights: Weights,
    source: str | None = None,
    geometry: Sequence[LayerGeometry] = (),
    rows_at: RowsAt | None = None,
    history: Iterable[dict[str, Any]] = (),
    consistency: dict[str, Any] | None = None,
) -> NetworkTable:
    """Measures every kernel of a network.

    Args:
      weights: from `weights.read`.
      source: the network's name, its path if None.
      geometry: rows of the network's audit, for what the weights do not say themselves.
      rows_at: the audit at another input size, where it can be made.
      history: the scores during training, as in `NetworkTable`.
      consistency: what `evaluate` has found of its answers.

    Returns:
      The table.
    """
    source = path_name(source or weights.source)
    audited = {row.layer: row for row in geometry}
    ordered = weights.order in ("forward", "file")
    first = _first_layer(weights, ordered)
    rows = []
    measured = measure_layers(weights)
    for order, (layer, kernel) in enumerate(weights.kernels.items(), 1):
        found = audited.get(layer)
        row = {
            "source": source,
            "order": order if ordered else None,
            "layer": layer,
            "kind": kernel.kind,
            "role": role(kernel, is_first=layer == first),
            "shape": "×".join(map(str, kernel.shape)),
            "stride": _pair(kernel.stride),
            "padding": _padding(kernel.padding),
            **measured[layer],
            **beside_null(measured[layer]["score"], *kernel.shape[:2]),
            "uneven_h": found.uneven[0] if found else None,
            "uneven_w": found.uneven[-1] if found else None,
            "centre_drift": list(found.centre_drift) if found else None,
            "predicted_skew": found.skew if found else None,
        }
        row["note"] = _note(row, bool(np.isfinite(kernel.weight).all()))
        rows.append(row)
    _add_false_discovery_rates(rows)
    order_of_keys = (*COLUMNS, *FURTHER)
    rows = [{key: row[key] for key in order_of_keys} for row in rows]
    means = {layer: mean_kernel(kernel.weight) for layer, kernel in weights.kernels.items()}
    return NetworkTable(source, weights, rows, means, geometry, rows_at, list(history), consistency)


def role(kernel: ConvKernel, is_first: bool) -> str | None:
    """What part a layer plays; the first that holds of trivial, first, transposed, strided,
    depthwise, non-square and internal, or None where an ordinary layer's stride is not known.

    A trivial layer has lost all taps but the middle one, as happens on maps of one pixel, where
    no other ever meets the image: its mean kernel is symmetric for no reason.

    Args:
      kernel: the layer.
      is_first: it sees the image.

    Returns:
      The role.
    """
    kh, kw, *_ = kernel.shape
    if _only_middle_tap(kernel.weight):
        return "trivial"
    if is_first:
        return "first"
    if kernel.kind == "transposed":
        return "transposed"
    if kernel.stride is not None and max(kernel.stride) > 1:
        return "strided"
    if kernel.kind == "depthwise":
        return "depthwise"
    if kh != kw:
        return "non-square"
    return None if kernel.stride is None else "internal"


def _add_false_discovery_rates(rows: list[dict[str, Any]]) -> None:
    """Benjamini and Hochberg's step-up procedure over the layers whose score is defined."""
    tested = sorted((r for r in rows if r["p_value"] is not None), key=lambda r: r["p_value"])
    smallest = 1.0
    for row in rows:
        row["q_value"] = None
    for rank, row in reversed(list(enumerate(tested, 1))):
        smallest = min(smallest, row["p_value"] * len(tested) / rank)
        row["q_value"] = smallest


def _first_layer(weights: Weights, ordered: bool) -> str | None:
    """The layer that sees the image: the first one, or where no order is known, the only one with
    an image's number of input channels."""
    names = list(weights.kernels)
    if ordered:
        return names[0]
    entries = [
        name
        for name, kernel in weights.kernels.items()
        if kernel.kind == "conv" and kernel.shape[2] in (1, 3, 4)
    ]
    return entries[0] if len(entries) == 1 else None


def _only_middle_tap(weight: np.ndarray) -> bool:
    kh, kw, *_ = weight.shape
    if not (kh % 2 and kw % 2):
        return False
    # Summed without a copy of the layer.
    norms = np.sqrt(np.einsum("hwio,hwio->hw", weight, weight))
    if not np.isfinite(norms).all():
        return False
    middle = norms[kh // 2, kw // 2]
    norms[kh // 2, kw // 2] = 0
    return bool(middle > 0 and norms.max() <= _VANISHED * middle)


def _note(row: dict[str, Any], finite: bool) -> str:
    if not finite:
        return "undefined: the weights are not finite"
    if row["score"] is None:
        return "undefined: the mean kernel is zero"
    if row["role"] == "trivial":
        return "only the middle tap is left"
    if row["score_centered"] is None:
        return "constant: no shape beside the offset"
    return ""


def _pair(value: tuple[int, int] | None) -> str | None:
    if value is None:
        return None
    return str(value[0]) if value[0] == value[1] else f"{value[0]}×{value[1]}"


def _padding(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    (top, bottom), (left, right) = value
    if top == bottom == left == right:
        return str(top)
    if top == bottom and left == right:
        return f"{top}×{left}"
    return f"{top},{bottom}×{left},{right}"
