"""The rows of figures per layer, from which a whole report is drawn."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax import symmetry
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.symmetry.measure import (
    HostFigures,
    beside_chance,
    few_draws,
    measure_on_host,
)
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
    "sig_x",
    "sig_y",
    "sig_p",
    "neuron_score",
    "single_score",
    "uneven_h",
    "uneven_w",
    "note",
)
"""The columns of ``layers.csv``; unknown facts are empty."""

FURTHER = (
    "odd_z_x",
    "odd_z_y",
    "q_value",
    "centre_drift",
    "predicted_skew",
    "padding_p",
    "padding_p_shuffled",
    "shows_padding",
)
"""Keys of a row beyond the columns: `symmetry.odd_moment_z`; the false-discovery rate among the
network's layers; the distance of the windows' middle from the map's middle in pixels, down and
right (0 if padding is applied evenly); the direction towards which uneven padding is predicted to
make the weights grow; the p-value of the padding signature in that direction if the weights are
independent and normal, and if the cells of each slice are shuffled; whether the layer shows the
padding, that is whether both are at most `SIGNIFICANT` and neither axis leans the other way."""

SIGNIFICANT = 0.01

# What is measured in one network: sizes, height by width, of which published networks have six;
# layers; cells of a kernel, height times width, and of all large kernels together. A report on more
# takes many seconds.
_MOST_SIZES, _MOST_LAYERS = 12, 5000
_MOST_CELLS, _LARGE, _MOST_CELLS_OF_LARGE = 1_000_000, 1000, 4_000_000

# Taps below this share of the middle tap count as vanished.
_VANISHED = 1e-3
# Axis of the signature and sign of its component.
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


def measurable(weights: Weights) -> Weights:
    """Leaves out kernels that would take too long: rare sizes, large ones, all behind thousands.

    Args:
      weights: from `weights.read`.

    Returns:
      The weights, with the kernels that are left out among ``skipped`` and their number in a note.
    """
    sizes = Counter(kernel.shape[:2] for kernel in weights.kernels.values())
    commonest = {size for size, _ in sizes.most_common(_MOST_SIZES)}
    left_out: dict[str, str] = {}
    layers = cells_of_large = rare = 0
    for name, kernel in weights.kernels.items():
        cells = math.prod(kernel.shape[:2])
        if kernel.shape[:2] not in commonest:
            rare += 1
            which = f"none of the {_MOST_SIZES} commonest of {len(sizes)}"
            left_out[name] = f"not measured: its size is {which}"
        elif cells > _MOST_CELLS:
            left_out[name] = f"not measured: its {cells} cells are more than {_MOST_CELLS}"
        elif cells > _LARGE and cells_of_large + cells > _MOST_CELLS_OF_LARGE:
            which = f"large kernels have more than {_MOST_CELLS_OF_LARGE} cells"
            left_out[name] = f"not measured: with it, {which}"
        elif layers == _MOST_LAYERS:
            left_out[name] = f"not measured: {_MOST_LAYERS} layers come before it"
        else:
            layers += 1
            cells_of_large += cells if cells > _LARGE else 0
    if not left_out:
        return weights
    if not layers:
        raise ValueError(f"{weights.source}: no kernel of {_MOST_CELLS} cells or fewer to measure")
    counts = {"of rare sizes": rare, "beyond what a report can hold": len(left_out) - rare}
    notes = [f"{n} kernels {which} are not measured" for which, n in counts.items() if n]
    return dataclasses.replace(
        weights,
        kernels={name: k for name, k in weights.kernels.items() if name not in left_out},
        skipped=weights.skipped | left_out,
        notes=(*weights.notes, *notes),
    )


def layer_rows(
    weights: Weights,
    measured: Mapping[str, HostFigures],
    source: str,
    geometry: Sequence[LayerGeometry] = (),
) -> list[dict[str, Any]]:
    """Returns one row of figures for every kernel of a network.

    Args:
      weights: from `weights.read`.
      measured: from `measure_layers`.
      source: name of the network.
      geometry: rows of the network's audit.

    Returns:
      One dict per layer with the keys of `COLUMNS` and `FURTHER`; unknown or undefined values are
      None.
    """
    audited = {row.layer: row for row in geometry}
    ordered = weights.order in ("forward", "file")
    first = _first_layer(weights, ordered=ordered)
    rows = []
    for order, (layer, kernel) in enumerate(weights.kernels.items(), 1):
        found, own = audited.get(layer), measured[layer]
        figures = _figures(own)
        row = {
            "source": source,
            "order": order if ordered else None,
            "layer": layer,
            "kind": kernel.kind,
            "role": role(kernel, own.square_sums, is_first=layer == first),
            "shape": "×".join(map(str, kernel.shape)),
            "stride": _pair(kernel.stride),
            "padding": _padding(kernel.padding),
            **figures,
            **beside_chance(figures["score"], *kernel.shape[:2]),
            "uneven_h": found.uneven[0] if found else None,
            "uneven_w": found.uneven[-1] if found else None,
            "centre_drift": list(found.centre_drift) if found else None,
            "predicted_skew": found.skew if found else None,
        }
        row |= _padding_test(row, kernel)
        row["note"] = _note(row, *kernel.shape[:2], finite=own.finite)
        rows.append(row)
    _add_false_discovery_rates(rows)
    return [{key: row[key] for key in (*COLUMNS, *FURTHER)} for row in rows]


def role(kernel: ConvKernel, square_sums: np.ndarray, *, is_first: bool) -> str | None:
    """Returns the role of a layer.

    A trivial layer has lost all taps but the middle one. This happens on maps of one pixel, where
    the other taps see only padding; its mean kernel is symmetric for no reason.

    Args:
      kernel: the layer.
      square_sums: (kh, kw), sums of squared weights per tap.
      is_first: whether its input is the image.

    Returns:
      The first that applies of ``trivial``, ``first``, ``transposed``, ``strided``, ``depthwise``,
      ``non-square`` and ``internal``; None for an ordinary layer of unknown stride.
    """
    kh, kw, *_ = kernel.shape
    if _only_middle_tap(square_sums):
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


def measure_layers(weights: Weights) -> dict[str, HostFigures]:
    """Measures the mean kernel, the kernels of output channels and the single kernels of layers.

    Args:
      weights: from `weights.read`.
    """
    found = measure_on_host([kernel.weight for kernel in weights.kernels.values()])
    return dict(zip(weights.kernels, found, strict=True))


def _figures(found: HostFigures) -> dict[str, float | None]:
    """Returns `symmetry.FIELDS`, ``neuron_score`` and ``single_score``; None where undefined."""
    row = dict(zip(symmetry.FIELDS, map(_number, found.row), strict=True))
    scores = {"neuron_score": found.neuron_score, "single_score": found.single_score}
    return row | {name: _number(score) for name, score in scores.items()}


def _padding_test(row: Mapping[str, Any], kernel: ConvKernel) -> dict[str, Any]:
    """Tests the padding signature in the direction that the padding predicts.

    Only the axes with uneven padding count: a layer strided along y alone predicts y alone.
    """
    unknown = dict.fromkeys(("padding_p", "padding_p_shuffled", "shows_padding"))
    words = (row["predicted_skew"] or "").split()
    axes = [_DIRECTIONS[word] for word in words]
    if not axes or row["sig_x"] is None or row["sig_y"] is None:
        return unknown
    signature = (row["sig_x"], row["sig_y"])
    kh, kw, channels_in, channels_out = kernel.shape
    nulls = {
        "padding_p": symmetry.signature_sd(kh, kw, channels_in * channels_out),
        "padding_p_shuffled": _shuffled_sd(kernel.weight),
    }
    found: dict[str, Any] = {}
    shows = True
    for name, deviations in nulls.items():
        if not all(deviations[axis] > 0 for axis, _ in axes):
            return unknown
        z = [sign * signature[axis] / deviations[axis] for axis, sign in axes]
        found[name] = _upper_tail(sum(z) / math.sqrt(len(z)))
        away = any(_upper_tail(-one) <= SIGNIFICANT for one in z)
        shows = shows and found[name] <= SIGNIFICANT and not away
    return {**found, "shows_padding": shows}


def _upper_tail(z: float) -> float:
    """Returns the one-sided p-value of a standard normal z."""
    return math.erfc(z / math.sqrt(2)) / 2


def _shuffled_sd(weight: np.ndarray) -> tuple[float, float]:
    kh, kw, *_ = weight.shape
    # Scaled, so that fourth powers neither overflow nor vanish; the spread is free of scale.
    squares = np.square(weight / np.abs(weight).max())
    by_slice = squares.sum(axis=(0, 1))
    powers = np.sum(np.square(squares), dtype=np.float64)
    cells = kh * kw
    spread = (powers - np.sum(np.square(by_slice), dtype=np.float64) / cells) / (cells - 1)
    return symmetry.shuffled_sd(kh, kw, float(by_slice.sum(dtype=np.float64)), float(spread))


def _add_false_discovery_rates(rows: list[dict[str, Any]]) -> None:
    """Benjamini and Hochberg's step-up procedure over the layers whose score is defined."""
    tested = sorted((r for r in rows if r["p_value"] is not None), key=lambda r: r["p_value"])
    smallest = 1.0
    for row in rows:
        row["q_value"] = None
    for rank, row in reversed(list(enumerate(tested, 1))):
        smallest = min(smallest, row["p_value"] * len(tested) / rank)
        row["q_value"] = smallest


def _first_layer(weights: Weights, *, ordered: bool) -> str | None:
    """Returns the layer that reads the image: the one that the reader found, else the first.

    If the order is unknown, it is the only one with an image's number of input channels.
    """
    if weights.first is not None:
        return weights.first if weights.first in weights.kernels else None
    if ordered:
        return next(iter(weights.kernels))
    entries = [
        name
        for name, kernel in weights.kernels.items()
        if kernel.kind == "conv" and kernel.shape[2] in (1, 3, 4)
    ]
    return entries[0] if len(entries) == 1 else None


def _only_middle_tap(square_sums: np.ndarray) -> bool:
    kh, kw = square_sums.shape
    if not (kh % 2 and kw % 2) or not np.isfinite(square_sums).all():
        return False
    norms = np.sqrt(square_sums)
    middle = norms[kh // 2, kw // 2]
    norms[kh // 2, kw // 2] = 0
    return bool(middle > 0 and norms.max() <= _VANISHED * middle)


def _note(row: dict[str, Any], kh: int, kw: int, *, finite: bool) -> str:
    if not finite:
        return "undefined: the weights are not finite"
    if row["score"] is None:
        return "undefined: the mean kernel is zero"
    if row["role"] == "trivial":
        return "only the middle tap is left"
    if row["score_centered"] is None:
        return "constant: no shape beside the offset"
    return few_draws(kh, kw)


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


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
