"""Every symmetry figure of every convolution in a weight pytree, as one small computation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.irreps import IRREPS, energies_of
from kernsym_jax.symmetry.mean_kernel import dc_share, energy, scaled_cells, skew
from kernsym_jax.symmetry.score import root, squared_distances

FIELDS = (
    "score",
    "score_no_identity",
    "score_centered",
    "dc_share",
    "d_r90",
    "d_r180",
    "d_fliplr",
    "d_flipud",
    "d_transpose",
    "d_antitranspose",
    *IRREPS,
    "skew_x",
    "skew_y",
)
"""The figures of a kernel, in the order of `KernelSymmetry.row`."""


def _figure(name: str, doc: str) -> property:
    index = FIELDS.index(name)
    return property(lambda self: self.row[..., index], doc=doc)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KernelSymmetry:
    """The figures of one mean kernel, each a float32 scalar (or an array over vmapped axes).

    As a pytree it is one array: a program then has one output per layer instead of seventeen, which
    compiles several times faster and reaches the host in one copy.
    """

    row: jax.Array
    """(..., len(FIELDS)) float32."""

    score = _figure("score", "`symmetry_score` with the identity counted.")
    score_no_identity = _figure("score_no_identity", "`symmetry_score` without the identity.")
    score_centered = _figure("score_centered", "`symmetry_score` of K − mean(K).")
    dc_share = _figure("dc_share", "The share of ‖K‖² that a constant offset explains.")
    d_r90 = _figure("d_r90", "Distance to K turned by a quarter, either way.")
    d_r180 = _figure("d_r180", "Distance to K turned by a half.")
    d_fliplr = _figure("d_fliplr", "Distance to K with left and right exchanged.")
    d_flipud = _figure("d_flipud", "Distance to K with up and down exchanged.")
    d_transpose = _figure("d_transpose", "Distance to K mirrored about its main diagonal.")
    d_antitranspose = _figure("d_antitranspose", "Distance to K mirrored about the other diagonal.")
    A1 = _figure("A1", "Energy share of the invariant part.")
    A2 = _figure("A2", "Energy share of the chiral part.")
    B1 = _figure("B1", "Energy share of the contrast between the axes (weight banding).")
    B2 = _figure("B2", "Energy share of the contrast between the diagonals.")
    E = _figure("E", "Energy share of the odd part: gradients, and the skew of uneven padding.")
    skew_x = _figure("skew_x", "First moment in cells, to the right.")
    skew_y = _figure("skew_y", "First moment in cells, down.")

    def as_dict(self) -> dict[str, jax.Array]:
        """The figures by name."""
        return {name: self.row[..., index] for index, name in enumerate(FIELDS)}


def kernel_symmetry(kernel: jax.Array) -> KernelSymmetry:
    """All figures of a kernel at once.

    Args:
      kernel: (..., kh, kw), a mean kernel or any other, of more than one cell.

    Returns:
      The figures, each (...).
    """
    cells, kh, kw = scaled_cells(kernel)
    squares = squared_distances(kernel)
    distances, names = root(squares), group.elements(kh, kw)
    mean_distance = jnp.mean(distances, axis=-1)
    missing = jnp.full(mean_distance.shape, jnp.nan, mean_distance.dtype)
    figures = {
        "score": 1 - mean_distance,
        "score_no_identity": 1 - mean_distance * len(names) / (len(names) - 1),
        "score_centered": 1 - mean_distance * jnp.sqrt(energy(cells) / energy(cells, True)),
        "dc_share": dc_share(kernel),
    }
    for name in group.D4:
        known = name in names
        figures[f"d_{name}"] = distances[..., names.index(name)] if known else missing
    energies, lean = energies_of(squares, kh, kw), skew(kernel)
    figures |= {name: energies[..., index] for index, name in enumerate(IRREPS)}
    figures |= {"skew_x": lean[..., 0], "skew_y": lean[..., 1]}
    return KernelSymmetry(jnp.stack([figures[name] for name in FIELDS], axis=-1))


def conv_kernels(params: Any) -> dict[str, jax.Array]:
    """Finds the convolution kernels in a weight pytree.

    A convolution kernel is a leaf named ``kernel`` with the four axes (kh, kw, in, out), as
    ``flax.linen`` and ``flax.nnx`` store it. (`nn.ConvLocal` stores something else under the same
    name and shape and would be counted too.)

    Args:
      params: nested dicts or FrozenDicts of parameters, variables with a ``params`` collection, a
        TrainState or anything else with ``params``, an NNX state or module. Leaves may be
        arrays, tracers or `jax.ShapeDtypeStruct`.

    Returns:
      ``{"block/conv/kernel": weight}`` in the order of the tree; a ``params`` collection is not
      part of the path.
    """
    tree = getattr(params, "params", params)
    if isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):
        tree = tree["params"]
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [_key_name(key) for key in path]
        # Both Flax APIs may box a leaf, which adds an attribute to its path.
        if names and names[-1] in ("value", "raw_value"):
            names.pop()
        if names and names[-1] == "kernel" and len(getattr(leaf, "shape", ())) == 4:
            found["/".join(names)] = leaf
    return found


def measure(params: Any) -> dict[str, KernelSymmetry]:
    """Measures the mean kernel of every spatial convolution in a weight pytree.

    Pure, and made for use inside a jitted training step: one reduction over the weights, after
    which mean kernels of one shape are scored together, so that the compiled program hardly grows
    with depth. Kernels have four axes: ``jax.vmap(measure)`` measures a population whose
    parameters have a leading axis more, which would be passed over here.

    Args:
      params: as in `conv_kernels`.

    Returns:
      ``{"block/conv/kernel": KernelSymmetry}`` for every kernel with kh·kw > 1; empty if there is
      none.
    """
    # Sums, not means: every figure is free of scale, and a division per layer would be a program
    # of its own to compile.
    sums = {
        path: jnp.sum(weight, axis=(2, 3), dtype=jnp.float32)
        for path, weight in conv_kernels(params).items()
        if weight.shape[0] * weight.shape[1] > 1
    }
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for path, kernel in sums.items():
        by_shape.setdefault(kernel.shape, []).append(path)
    rows: dict[str, jax.Array] = {}
    for paths in by_shape.values():
        together = kernel_symmetry(jnp.stack([sums[path] for path in paths]))
        rows.update(zip(paths, together.row, strict=True))
    return {path: KernelSymmetry(rows[path]) for path in sums}


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
