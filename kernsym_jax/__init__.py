"""Symmetry of convolution kernels: measured, trained and audited in JAX.

Nothing is imported here, so that ``import kernsym_jax`` costs nothing; take the rooms one by one,
for example ``from kernsym_jax import symmetry, geometry, models, weights``.
"""

__version__ = "0.1.0"
