"""Readers of file formats: the bytes of a file become named arrays or a graph.

No reader needs the framework that wrote the file, runs anything in it, or allocates memory before
it has checked the sizes that the file claims. A damaged file ends in a `ValueError`, or in one of
Python's own errors for malformed data, which `kernsym_jax.weights.read` turns into one.
"""
