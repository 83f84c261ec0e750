"""The measure: how symmetric the kernels of a network's convolutions are, and which way they lean.

Pure functions on arrays and pytrees, safe under jit, vmap, grad and sharding. They compute in
float32 whatever the dtype of the weights. A zero kernel has no symmetry: its figures are NaN.
"""

from kernsym_jax.symmetry.group import D4, RECTANGLE, elements, generated, transform
from kernsym_jax.symmetry.mean_kernel import (
    conv_kernels,
    dc_share,
    invariant_part,
    invariant_slices,
    mean_kernel,
    project_mean_kernel,
    skew,
)
from kernsym_jax.symmetry.measure import (
    FIELDS,
    KernelSymmetry,
    kernel_symmetry,
    measure,
)
from kernsym_jax.symmetry.score import (
    IRREPS,
    asymmetry,
    direction_p,
    irrep_energies,
    neuron_score,
    null_scores,
    p_value,
    permutation_null,
    single_score,
    symmetry_score,
    transform_distances,
    two_sided_p,
    z_value,
)
from kernsym_jax.symmetry.signature import (
    moment_distances,
    moment_null,
    odd_moment_z,
    padding_signature,
    rms_kernel,
    shuffled_sd,
    signature_sd,
    signature_z,
    slice_moments,
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
    "direction_p",
    "elements",
    "generated",
    "invariant_part",
    "invariant_slices",
    "irrep_energies",
    "kernel_symmetry",
    "mean_kernel",
    "measure",
    "moment_distances",
    "moment_null",
    "neuron_score",
    "null_scores",
    "odd_moment_z",
    "p_value",
    "padding_signature",
    "permutation_null",
    "project_mean_kernel",
    "rms_kernel",
    "shuffled_sd",
    "signature_sd",
    "signature_z",
    "single_score",
    "skew",
    "slice_moments",
    "symmetry_score",
    "transform",
    "transform_distances",
    "two_sided_p",
    "z_value",
]
