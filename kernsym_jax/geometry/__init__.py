"""Convolution arithmetic: where a layer, or any network, applies its padding unevenly.

`uneven_padding`, `output_size` and `windows` calculate with numbers, `foveation` counts the windows
that read each pixel, `audit` and `audit_file` read the geometry of a network's layers, and
`even_input_sizes` finds the input sizes at which a network has no uneven layer.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kernsym_jax.geometry.arithmetic import (
    Windows,
    output_size,
    padding_amounts,
    skew_direction,
    uneven_padding,
    windows,
)
from kernsym_jax.geometry.foveation import (
    PADDING_MODES,
    foveation,
    network_foveation,
    window_matrix,
)
from kernsym_jax.geometry.input_size import Advice, advise, even_input_sizes, layers_at
from kernsym_jax.geometry.layer import (
    CONVOLUTIONS,
    KINDS,
    FileAudit,
    LayerGeometry,
    NoGraphError,
    audit_json,
    layer_table,
    print_audit,
    read_rows,
)

if TYPE_CHECKING:
    from kernsym_jax.geometry.file import FileAudits, audit_file, audit_onnx
    from kernsym_jax.geometry.jaxpr import audit, audit_module

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "PADDING_MODES",
    "Advice",
    "FileAudit",
    "FileAudits",
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


_LATER = {
    "FileAudits": "file",
    "audit": "jaxpr",
    "audit_file": "file",
    "audit_module": "jaxpr",
    "audit_onnx": "file",
}
"""The names whose modules are imported when they are first used."""


def __getattr__(name: str) -> Any:
    # The audit of a file does without JAX, and weights alone need no reader of graphs.
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
