"""One row of figures per layer: the table that everything else in a report is drawn from."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax import symmetry
from kernsym_jax.geometry import LayerGeometry
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

FURTHER = ("q_value", "predicted_skew")
"""What a row holds beside the columns: its p-value's false-discovery rate among the network's
layers, and the direction to which its padding is predicted to skew it."""

NULL_DRAWS = 20_000
_NULL_SEED = 0
# A few sizes of batch, so that layers of every size share a few compiled programs.
_CHUNKS = (1 << 10, 1 << 13, 1 << 16)
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
      history: the ``symmetry`` lines of a run's ``metrics.jsonl``, if it is one.
    """

    source: str
    weights: Weights
    rows: list[dict[str, Any]]
    mean_kernels: dict[str, np.ndarray]
    geometry: Sequence[LayerGeometry] = ()
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def network_table(
    weights: Weights,
    source: str | None = None,
    geometry: Sequence[LayerGeometry] = (),
    history: Iterable[dict[str, Any]] = (),
) -> NetworkTable:
    """Measures every kernel of a network.

    Args:
      weights: from `weights.read`.
      source: the network's name, its path if None.
      geometry: rows of the network's audit, for what the weights do not say themselves.
      history: lines of ``metrics.jsonl`` to keep along.

    Returns:
      The table.
    """
    source = source or weights.source
    audited = {row.layer: row for row in geometry}
    ordered = weights.order in ("forward", "file")
    first = _first_layer(weights, ordered)
    rows, means = [], {}
    for order, (layer, kernel) in enumerate(weights.kernels.items(), 1):
        weight = kernel.weight
        mean = np.asarray(weight.mean(axis=(2, 3), dtype=np.float64), np.float32)
        means[layer] = mean
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
            **_figures(mean),
            "neuron_score": _mean_score(weight.mean(axis=2, dtype=np.float32)[:, :, None]),
            "single_score": _mean_score(weight),
            "uneven_h": found.uneven[0] if found else None,
            "uneven_w": found.uneven[-1] if found else None,
            "predicted_skew": found.skew if found else None,
        }
        row["note"] = _note(row)
        rows.append(row)
    _add_false_discovery_rates(rows)
    order_of_keys = (*COLUMNS, *FURTHER)
    rows = [{key: row[key] for key in order_of_keys} for row in rows]
    return NetworkTable(source, weights, rows, means, geometry, list(history))


def role(kernel: ConvKernel, is_first: bool) -> str:
    """What part a layer plays; the first that holds of trivial, first, transposed, strided,
    depthwise, non-square and internal.

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
    return "internal" if kh == kw else "non-square"


@functools.lru_cache(maxsize=64)
def null_quantiles(kh: int, kw: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted scores of `NULL_DRAWS` random kernels, plain and centred; always the same ones.

    Args:
      kh: rows.
      kw: columns.

    Returns:
      Two sorted float32 arrays.
    """
    kernels = np.random.default_rng(_NULL_SEED).normal(size=(NULL_DRAWS, kh, kw))
    plain, centred = _score_pair(jnp.asarray(kernels, jnp.float32))
    return np.sort(plain), np.sort(centred)


@jax.jit
def _score_pair(kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return symmetry.symmetry_score(kernels), symmetry.symmetry_score(kernels, centered=True)


@jax.jit
def _figure_row(kernel: jax.Array) -> jax.Array:
    return symmetry.kernel_symmetry(kernel).row


@jax.jit
def _score_cells(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the scores of (kh, kw, n) kernels and how many are defined."""
    scores = symmetry.symmetry_score(jnp.moveaxis(cells, -1, 0))
    return jnp.nansum(scores), jnp.sum((~jnp.isnan(scores)).astype(jnp.float32))


def _mean_score(weight: np.ndarray) -> float | None:
    """The mean score over all (in, out) slices of (kh, kw, in, out)."""
    cells = weight.reshape(*weight.shape[:2], -1)
    count = cells.shape[-1]
    chunk = next((size for size in _CHUNKS if size >= count), _CHUNKS[-1])
    total = defined = 0.0
    for start in range(0, count, chunk):
        part = cells[..., start : start + chunk]
        # Filled up with zero kernels, which are undefined and so do not count.
        filled = np.pad(part, ((0, 0), (0, 0), (0, chunk - part.shape[-1])))
        score, number = _score_cells(filled)
        total, defined = total + float(score), defined + float(number)
    return total / defined if defined else None


def _figures(mean: np.ndarray) -> dict[str, float | None]:
    """The measure of a mean kernel, beside the null of its shape."""
    row = np.asarray(_figure_row(mean))
    figures = dict(zip(symmetry.FIELDS, map(_number, row), strict=True))
    null, _ = null_quantiles(*mean.shape)
    score = figures["score"]
    # How many of the sorted draws lie below the score, from which the p-value follows.
    below = None if score is None else int(np.searchsorted(null, np.float32(score)))
    return figures | {
        "null_mean": float(null.mean()),
        "null_q95": float(np.quantile(null, 0.95)),
        "p_value": None if below is None else (1 + len(null) - below) / (1 + len(null)),
    }


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
    norms = np.sqrt(np.square(weight, dtype=np.float32).mean(axis=(2, 3)))
    middle = norms[kh // 2, kw // 2]
    norms[kh // 2, kw // 2] = 0
    return bool(middle > 0 and norms.max() <= _VANISHED * middle)


def _note(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return "undefined: the mean kernel is zero"
    if row["role"] == "trivial":
        return "only the middle tap is left"
    if row["score_centered"] is None:
        return "constant: no shape beside the offset"
    return ""


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


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
