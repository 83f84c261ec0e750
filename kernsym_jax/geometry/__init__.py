"""Convolution arithmetic: where padding falls unevenly, in a layer and in any network.

`uneven_padding` and its neighbours work on numbers, `foveation` on pixels, `audit` and `audit_file`
read the numbers off a network, and `even_input_sizes` says which images would suit it better.
"""

from kernsym_jax.geometry.arithmetic import (
    Windows,
    output_size,
    padding_amounts,
    skew_direction,
    uneven_padding,
    windows,
)
from kernsym_jax.geometry.file import audit_file
from kernsym_jax.geometry.foveation import (
    PADDING_MODES,
    foveation,
    network_foveation,
    window_matrix,
)
from kernsym_jax.geometry.input_size import Advice, advise, even_input_sizes, layers_at
from kernsym_jax.geometry.jaxpr import audit, audit_module
from kernsym_jax.geometry.layer import (
    CONVOLUTIONS,
    KINDS,
    FileAudit,
    LayerGeometry,
    NoGraphError,
    read_rows,
)
from kernsym_jax.geometry.onnx import audit_onnx
from kernsym_jax.geometry.table import audit_json, layer_table, print_audit

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "PADDING_MODES",
    "Advice",
    "FileAudit",
    "LayerGeometry",
    "NoGraphError",
    "Windows",
    "advise",
    "audit",
    "audit_file",
    "audit_json",
    "audit_module",
    "audit_onnx",
    "even_input_sizes",
    "foveation",
    "layer_table",
    "layers_at",
    "network_foveation",
    "output_size",
    "padding_amounts",
    "print_audit",
    "read_rows",
    "skew_direction",
    "uneven_padding",
    "window_matrix",
    "windows",
]
