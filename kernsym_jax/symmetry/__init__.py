"""The measure: how symmetric the mean kernels of a network's convolutions are.

Pure functions on arrays and pytrees, safe under jit, vmap, grad and sharding. Arithmetic is float32
whatever the weights' dtype. A kernel that is zero has no symmetry to speak of: its figures are NaN.
"""

from kernsym_jax.symmetry.asymmetry import asymmetry
from kernsym_jax.symmetry.group import D4, RECTANGLE, elements, generated, transform
from kernsym_jax.symmetry.irreps import IRREPS, irrep_energies
from kernsym_jax.symmetry.mean_kernel import dc_share, mean_kernel, skew
from kernsym_jax.symmetry.measure import (
    FIELDS,
    KernelSymmetry,
    conv_kernels,
    kernel_symmetry,
    measure,
)
from kernsym_jax.symmetry.null import null_scores, p_value, permutation_null, z_value
from kernsym_jax.symmetry.projection import invariant_part, project_mean_kernel
from kernsym_jax.symmetry.score import (
    neuron_score,
    single_score,
    symmetry_score,
    transform_distances,
)

__all__ = [
    "D4",
    "FIELDS",
    "IRREPS",
    "RECTANGLE",
    "KernelSymmetry",
    "asymmetry",
    "conv_kernels",
    "dc_share",
    "elements",
    "generated",
    "invariant_part",
    "irrep_energies",
    "kernel_symmetry",
    "mean_kernel",
    "measure",
    "neuron_score",
    "null_scores",
    "p_value",
    "permutation_null",
    "project_mean_kernel",
    "single_score",
    "skew",
    "symmetry_score",
    "transform",
    "transform_distances",
    "z_value",
]
