"""Reports on trained weights: the layer table, figures, and one HTML page."""

from kernsym_jax.report.analysis import analyze, write_parquet, write_results
from kernsym_jax.report.layer_table import COLUMNS
from kernsym_jax.report.sources import Options, find_sources, read_table
from kernsym_jax.report.summary import advice, in_words, strided_deficits, summarize
from kernsym_jax.report.tables import NetworkTable, network_table

__all__ = [
    "COLUMNS",
    "NetworkTable",
    "Options",
    "advice",
    "analyze",
    "find_sources",
    "in_words",
    "network_table",
    "read_table",
    "strided_deficits",
    "summarize",
    "write_parquet",
    "write_results",
]
