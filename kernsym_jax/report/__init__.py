"""Reports on trained weights: the layer table, figures, and one HTML page."""

from kernsym_jax.report.analysis import analyze, read_table, write_results
from kernsym_jax.report.layer_table import COLUMNS, NetworkTable, network_table
from kernsym_jax.report.summary import in_words, summarize

__all__ = [
    "COLUMNS",
    "NetworkTable",
    "analyze",
    "in_words",
    "network_table",
    "read_table",
    "summarize",
    "write_results",
]
