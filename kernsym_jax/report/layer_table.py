"""One row of figures per layer: the table that everything else in a report is drawn from."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
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
# Kernels are measured so many cells at a time: one compiled program for each kernel shape, working
# on pieces small enough for the processor's cache.
_BATCH_CELLS = 36_864
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
    rows = []
    measured = _measure_layers(weights)
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
            **_beside_null(measured[layer]["score"], *kernel.shape[:2]),
            "uneven_h": found.uneven[0] if found else None,
            "uneven_w": found.uneven[-1] if found else None,
            "predicted_skew": found.skew if found else None,
        }
        row["note"] = _note(row)
        rows.append(row)
    _add_false_discovery_rates(rows)
    order_of_keys = (*COLUMNS, *FURTHER)
    rows = [{key: row[key] for key in order_of_keys} for row in rows]
    means = {layer: mean_kernel(kernel.weight) for layer, kernel in weights.kernels.items()}
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


def mean_kernel(weight: np.ndarray) -> np.ndarray:
    """The mean kernel (kh, kw) float32 of a weight in host memory, added up in double precision."""
    return weight.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)


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
    block = kernels.astype(np.float32), len(symmetry.FIELDS)
    (figures,) = _measure_blocks([block], kh, kw)
    names = ("score", "score_centered")
    plain, centred = (np.sort(figures[:, symmetry.FIELDS.index(name)]) for name in names)
    return plain, centred


def _measure_layers(weights: Weights) -> dict[str, dict[str, float | None]]:
    """Measures the mean kernels, the kernels of single outputs, and the single kernels."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for layer, kernel in weights.kernels.items():
        by_shape.setdefault(kernel.shape[:2], []).append(layer)
    measured = {}
    for shape, layers in by_shape.items():
        kernels = (weights.kernels[layer].weight for layer in layers)
        blocks = itertools.chain.from_iterable(map(_kernels_of, kernels))
        figures = iter(_measure_blocks(blocks, *shape))
        for layer in layers:
            of_mean, of_neurons, of_singles = itertools.islice(figures, 3)
            row = dict(zip(symmetry.FIELDS, map(_number, of_mean[0]), strict=True))
            row["neuron_score"] = _mean_score(of_neurons)
            row["single_score"] = _mean_score(of_singles)
            measured[layer] = row
    return measured


def _kernels_of(weight: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The mean kernel, those of single outputs and the single kernels, each (n, kh, kw), and how
    many of the leading `symmetry.FIELDS` are wanted: of all but the first only the score."""
    yield mean_kernel(weight)[None], len(symmetry.FIELDS)
    yield np.moveaxis(weight.mean(axis=2, dtype=np.float32), -1, 0), 1
    yield np.moveaxis(weight, (2, 3), (1, 0)).reshape(-1, *weight.shape[:2]), 1


def _measure_blocks(
    blocks: Iterable[tuple[np.ndarray, int]], kh: int, kw: int
) -> Iterator[np.ndarray]:
    """Measures blocks of kernels (n, kh, kw), giving (n, wanted) leading fields for each."""
    size = max(64, _BATCH_CELLS // (kh * kw))
    batch, filled = np.zeros((size, kh, kw), np.float32), 0
    # Blocks that are not finished: rows still missing, fields wanted, and the rows so far.
    waiting: collections.deque[list[Any]] = collections.deque()

    def measure_batch() -> Iterator[np.ndarray]:
        rows, start = np.asarray(_figure_rows(batch)), 0
        while waiting and start < filled:
            missing, wanted, parts = waiting[0]
            taken = min(missing, filled - start)
            parts.append(rows[start : start + taken, :wanted].copy())
            start, waiting[0][0] = start + taken, missing - taken
            if taken == missing:
                yield np.concatenate(waiting.popleft()[2])

    for block, wanted in blocks:
        waiting.append([len(block), wanted, []])
        while len(block):
            taken = min(size - filled, len(block))
            batch[filled : filled + taken] = block[:taken]
            filled, block = filled + taken, block[taken:]
            if filled == size:
                yield from measure_batch()
                filled = 0
    if filled:
        yield from measure_batch()


@jax.jit
def _figure_rows(kernels: jax.Array) -> jax.Array:
    return symmetry.kernel_symmetry(kernels).row


def _mean_score(figures: np.ndarray) -> float | None:
    """The mean over the kernels whose score is defined."""
    scores = figures[:, symmetry.FIELDS.index("score")].astype(np.float64)
    defined = ~np.isnan(scores)
    return float(scores[defined].mean()) if defined.any() else None


def _beside_null(score: float | None, kh: int, kw: int) -> dict[str, float | None]:
    null, _ = null_quantiles(kh, kw)
    # How many of the sorted draws lie below the score, from which the p-value follows.
    below = None if score is None else int(np.searchsorted(null, np.float32(score)))
    return {
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
    # Summed without a copy of the layer.
    norms = np.sqrt(np.einsum("hwio,hwio->hw", weight, weight))
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
