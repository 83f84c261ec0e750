"""The table of one network."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kernsym_jax.cli import path_name
from kernsym_jax.geometry import LayerGeometry
from kernsym_jax.report.layer_table import averaged, layer_rows
from kernsym_jax.weights import Weights

RowsAt = Callable[[Any], Sequence[LayerGeometry]]


@dataclasses.dataclass(frozen=True)
class NetworkTable:
    """The measured layers of one network.

    Attributes:
      source: the network's name in tables and figures.
      weights: the weights that were measured.
      rows: one dict per layer, with the keys of `COLUMNS` and `FURTHER`; None where unknown or
        undefined.
      mean_kernels: layer -> (kh, kw) float32, in the order of the rows.
      geometry: rows of the audit, pooling included; empty if nothing is known.
      rows_at: audits the network at another input size; None if that is impossible.
      history: ``{"step": completed steps, "scores": {layer: score}}`` of a run, in order.
      consistency: the results of `evaluate`; None if the network was not evaluated.
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
      source: the network's name; its path if None.
      geometry: rows of the network's audit, for facts that the weights do not tell.
      rows_at: audits the network at another input size.
      history: the scores during training, as in `NetworkTable`.
      consistency: the results of `evaluate`.

    Returns:
      The table.
    """
    source = path_name(source or weights.source)
    rows = layer_rows(weights, source, geometry)
    means = {layer: averaged(kernel.weight) for layer, kernel in weights.kernels.items()}
    return NetworkTable(source, weights, rows, means, geometry, rows_at, list(history), consistency)
