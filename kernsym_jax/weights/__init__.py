"""Readers of trained weights from any framework, without the framework.

`read` returns the convolution kernels of a file or directory, each as (kh, kw, in, out) with the
stride, padding and groups that the file states. `load_into` returns the variables of one of our
models. The readers treat a file as data: they run nothing in it, check its sizes before they
allocate memory, and report any damage as one `ValueError` that names the file.
"""

from kernsym_jax.weights.layout import LAYOUTS, ConvKernel, Weights
from kernsym_jax.weights.load_into import flax_layer, load_into
from kernsym_jax.weights.read import begin_reading, read, read_arrays

__all__ = [
    "LAYOUTS",
    "ConvKernel",
    "Weights",
    "begin_reading",
    "flax_layer",
    "load_into",
    "read",
    "read_arrays",
]
