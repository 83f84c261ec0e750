"""Readers of trained weights from any framework, without the framework.

``read`` gives the convolution kernels of a file or directory, each as (kh, kw, in, out) with what
the file says of its stride, padding and groups; ``load_into`` gives the variables of one of our
models. A file is data: nothing in it is run, its sizes are checked before anything is allocated,
and what is wrong with it is one `ValueError` that names it.
"""

from kernsym_jax.weights.conv_kernel import ConvKernel, Weights
from kernsym_jax.weights.layout import LAYOUTS
from kernsym_jax.weights.load_into import load_into
from kernsym_jax.weights.read import read, read_arrays

__all__ = ["LAYOUTS", "ConvKernel", "Weights", "load_into", "read", "read_arrays"]
