"""Convolution arithmetic: where padding falls unevenly, in a layer and in any network.

`uneven_padding` and its neighbours work on numbers, `foveation` on pixels, `audit` and `audit_onnx`
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
from kernsym_jax.geometry.foveation import (
    PADDING_MODES,
    foveation,
    network_foveation,
    window_matrix,
)
from kernsym_jax.geometry.input_size import even_input_sizes, layers_at, verdict
from kernsym_jax.geometry.jaxpr_audit import audit
from kernsym_jax.geometry.layer import CONVOLUTIONS, KINDS, LayerGeometry
from kernsym_jax.geometry.onnx_audit import audit_onnx

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "PADDING_MODES",
    "LayerGeometry",
    "Windows",
    "audit",
    "audit_onnx",
    "even_input_sizes",
    "foveation",
    "layers_at",
    "network_foveation",
    "output_size",
    "padding_amounts",
    "skew_direction",
    "uneven_padding",
    "verdict",
    "window_matrix",
    "windows",
]
