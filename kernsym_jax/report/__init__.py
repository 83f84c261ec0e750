"""Reports on trained weights: the layer table, figures, and one HTML page."""

from kernsym_jax.report.analysis import analyze, write_parquet, write_results
from kernsym_jax.report.layer_table import COLUMNS
from kernsym_jax.report.sources import (
    Options,
    compare,
    find_sources,
    read_table,
    table,
    trajectory,
)
from kernsym_jax.report.summary import advice, in_words, strided_deficits, summarize, verdict
from kernsym_jax.report.tables import Comparison, NetworkTable, Trajectory, network_table

__all__ = [
    "COLUMNS",
    "Comparison",
    "NetworkTable",
    "Options",
    "Trajectory",
    "advice",
    "analyze",
    "compare",
    "find_sources",
    "in_words",
    "network_table",
    "read_table",
    "strided_deficits",
    "summarize",
    "table",
    "trajectory",
    "verdict",
    "write_parquet",
    "write_results",
]
