"""Every symmetry figure of every convolution in a weight pytree, as one small computation."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import dc_share, energy, scaled_cells, skew
from kernsym_jax.symmetry.score import IRREPS, energies_of, root, squared_distances
from kernsym_jax.symmetry.signature import signature_figures, signature_sd

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
    "sig_x",
    "sig_y",
    "sig_p",
    "odd_z_x",
    "odd_z_y",
)
"""The figures of a layer, in the order of `KernelSymmetry.row`: first those of its mean kernel,
then those that need the size of its weights too."""

_OF_SIZES = 5  # how many fields, the last ones, need the size of the weights

NULL_DRAWS = 20_000
"""Random kernels that make up a null."""

# Kernels of 20×20 cells have a full null. Larger ones would take seconds and gigabytes each.
_NULL_CELLS = NULL_DRAWS * 20 * 20
_FEWEST_DRAWS = 20
_NULL_SEED = 0
# A compiled program measures kernels in pieces of this many cells, which fit the processor's cache,
# or up to 64 of larger kernels.
_BATCH_CELLS = 36_864
_LARGEST_BATCH = 1 << 20


def _figure(name: str, doc: str) -> property:
    index = FIELDS.index(name)
    return property(lambda self: self.row[..., index], doc=doc)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KernelSymmetry:
    """The figures of one layer, each a float32 scalar (or an array over vmapped axes).

    As a pytree it is one array. A program then has one output per layer, not one per figure; it
    compiles several times faster and the figures reach the host in one copy.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> figures = symmetry.kernel_symmetry(jnp.ones((3, 3)))
    >>> float(figures.score), float(figures.dc_share)
    (1.0, 1.0)
    """

    row: jax.Array
    """(..., len(FIELDS)) float32."""

    score = _figure("score", "`symmetry_score` with the identity counted.")
    score_no_identity = _figure("score_no_identity", "`symmetry_score` without the identity.")
    score_centered = _figure("score_centered", "`symmetry_score` of K − mean(K).")
    dc_share = _figure("dc_share", "The share of ‖K‖² in a constant offset.")
    d_r90 = _figure("d_r90", "Distance to K rotated by 90°, either way.")
    d_r180 = _figure("d_r180", "Distance to K rotated by 180°.")
    d_fliplr = _figure("d_fliplr", "Distance to K with left and right exchanged.")
    d_flipud = _figure("d_flipud", "Distance to K with up and down exchanged.")
    d_transpose = _figure("d_transpose", "Distance to K mirrored about its main diagonal.")
    d_antitranspose = _figure("d_antitranspose", "Distance to K mirrored about the other diagonal.")
    A1 = _figure("A1", "Energy share of the invariant part.")
    A2 = _figure("A2", "Energy share of the chiral part.")
    B1 = _figure("B1", "Energy share of the contrast between the axes (weight banding).")
    B2 = _figure("B2", "Energy share of the contrast between the diagonals.")
    E = _figure("E", "Energy share of the odd part: gradients and padding skew.")
    skew_x = _figure("skew_x", "First moment of the mean kernel in cells, to the right.")
    skew_y = _figure("skew_y", "First moment of the mean kernel in cells, down.")
    sig_x = _figure("sig_x", "`padding_signature` in cells, to the right.")
    sig_y = _figure("sig_y", "`padding_signature` in cells, down.")
    sig_p = _figure("sig_p", "`direction_p` of `signature_z`.")
    odd_z_x = _figure("odd_z_x", "`odd_moment_z`, to the right.")
    odd_z_y = _figure("odd_z_y", "`odd_moment_z`, down.")

    def as_dict(self) -> dict[str, jax.Array]:
        """Returns the figures by name."""
        return {name: self.row[..., index] for index, name in enumerate(FIELDS)}


def kernel_symmetry(kernel: jax.Array) -> KernelSymmetry:
    """Computes all figures of a kernel at once.

    Args:
      kernel: (..., kh, kw), a mean kernel or any other, of more than one cell.

    Returns:
      The figures, each (...). The signature and the odd moment's z need the size of the weights,
      which a kernel does not tell: they are NaN.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    >>> figures = symmetry.kernel_symmetry(sobel)
    >>> print(f"score {figures.score:.4f}, odd part {figures.E:.1f}, skew {figures.skew_x:.1f}")
    score 0.3964, odd part 1.0, skew -1.0
    """
    row = _mean_kernel_row(jnp.asarray(kernel))
    unknown = jnp.full((*row.shape[:-1], _OF_SIZES), jnp.nan, row.dtype)
    return KernelSymmetry(jnp.concatenate([row, unknown], axis=-1))


def conv_kernels(params: Any) -> dict[str, jax.Array]:
    """Finds the convolution kernels in a weight pytree.

    A convolution kernel is a leaf named ``kernel`` with the four axes (kh, kw, in, out), as
    ``flax.linen`` and ``flax.nnx`` store it. (`nn.ConvLocal` stores another kind of weight under
    the same name and with four axes; it would be counted too.)

    Args:
      params: nested dicts or FrozenDicts of parameters, variables with a ``params`` collection, a
        TrainState or anything else with ``params``, an NNX state or module. Leaves may be
        arrays, tracers or `jax.ShapeDtypeStruct`.

    Returns:
      ``{"block/conv/kernel": weight}`` in the order of the tree; a ``params`` collection is not
      part of the path.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "head": {"kernel": jnp.ones((8, 10))}}
    >>> {path: weight.shape for path, weight in symmetry.conv_kernels(params).items()}
    {'conv/kernel': (3, 3, 1, 8)}
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
    """Measures every spatial convolution in a weight pytree.

    Pure, and made for use inside a jitted training step: it sums the weights and their squares per
    tap, then computes the figures of all kernels of one shape together, so that the compiled
    program hardly grows with depth. Kernels have four axes; ``jax.vmap(measure)`` measures a
    population whose parameters have one more leading axis.

    Args:
      params: as in `conv_kernels`.

    Returns:
      ``{"block/conv/kernel": KernelSymmetry}`` for every kernel with kh·kw > 1. The signature is
      NaN where squares of the weights under- or overflow float32.

    Raises:
      ValueError: if there is no such kernel.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import symmetry
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}, "head": {"kernel": jnp.ones((8, 10))}}
    >>> figures = jax.jit(symmetry.measure)(params)
    >>> {path: round(float(layer.score), 3) for path, layer in figures.items()}
    {'conv/kernel': 1.0}
    """
    kernels = conv_kernels(params)
    spatial = {path: w for path, w in kernels.items() if w.shape[0] * w.shape[1] > 1}
    if not spatial:
        others = f"; found {', '.join(kernels)}, all 1×1" if kernels else ""
        raise ValueError(
            "no convolution kernel to measure: a kernel is a leaf named 'kernel' with the axes "
            f"(kh, kw, in, out) and kh·kw > 1{others}"
        )
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for path, weight in spatial.items():
        by_shape.setdefault(weight.shape[:2], []).append(path)
    rows: dict[str, jax.Array] = {}
    for paths in by_shape.values():
        together = _measure_alike([spatial[path] for path in paths])
        rows.update(zip(paths, together, strict=True))
    return {path: KernelSymmetry(rows[path]) for path in spatial}


def _measure_alike(weights: list[jax.Array]) -> jax.Array:
    """Returns the rows (layers, len(FIELDS)) of weights with one kernel shape."""
    kh, kw = weights[0].shape[:2]
    slices = [weight.shape[2] * weight.shape[3] for weight in weights]
    # Sums, not means: the figures are free of scale, and a division per layer would be one more
    # program to compile for each.
    sums = jnp.stack([jnp.sum(w, axis=(2, 3), dtype=jnp.float32) for w in weights])
    squares = [jnp.sum(jnp.square(w.astype(jnp.float32)), axis=(2, 3)) for w in weights]
    of_sizes = signature_figures(
        sums,
        jnp.stack(squares),
        np.array(slices, np.float32),
        np.array([signature_sd(kh, kw, count) for count in slices], np.float32),
    )
    return jnp.concatenate([_mean_kernel_row(sums), of_sizes], axis=-1)


def _mean_kernel_row(kernel: jax.Array) -> jax.Array:
    """Returns the fields of a mean kernel, (..., len(FIELDS) - _OF_SIZES)."""
    cells, kh, kw = scaled_cells(kernel)
    squares = squared_distances(kernel)
    distances, names = root(squares), group.elements(kh, kw)
    mean_distance = jnp.mean(distances, axis=-1)
    missing = jnp.full(mean_distance.shape, jnp.nan, mean_distance.dtype)
    ratio = energy(cells) / energy(cells, centered=True)
    figures = {
        "score": 1 - mean_distance,
        "score_no_identity": 1 - mean_distance * len(names) / (len(names) - 1),
        "score_centered": 1 - mean_distance * jnp.sqrt(ratio),
        "dc_share": dc_share(kernel),
    }
    for name in group.D4:
        known = name in names
        figures[f"d_{name}"] = distances[..., names.index(name)] if known else missing
    energies, moment = energies_of(squares, kh, kw), skew(kernel)
    figures |= {name: energies[..., index] for index, name in enumerate(IRREPS)}
    figures |= {"skew_x": moment[..., 0], "skew_y": moment[..., 1]}
    return jnp.stack([figures[name] for name in FIELDS[:-_OF_SIZES]], axis=-1)


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def null_draws(kh: int, kw: int) -> int:
    """Returns how many random kernels of kh rows and kw columns make up a null."""
    return max(_FEWEST_DRAWS, min(NULL_DRAWS, _NULL_CELLS // (kh * kw)))


def few_draws(kh: int, kw: int) -> str:
    """Returns a note on the null of a kernel so large that the null is small; else nothing."""
    draws = null_draws(kh, kw)
    return f"chance is that of {draws} random kernels only" if draws < NULL_DRAWS else ""


@functools.lru_cache(maxsize=64)
def chance_scores(kh: int, kw: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scores of `null_draws` random kernels, plain and centred; always the same ones.

    Args:
      kh: rows.
      kw: columns.

    Returns:
      Two sorted float32 arrays.
    """
    kernels = np.random.default_rng(_NULL_SEED).normal(size=(null_draws(kh, kw), kh, kw))
    block = kernels.astype(np.float32), len(FIELDS)
    (figures,) = measure_blocks([block], kh, kw)
    names = ("score", "score_centered")
    plain, centred = (np.sort(figures[:, FIELDS.index(name)]) for name in names)
    return plain, centred


class ChanceLevels(NamedTuple):
    """Levels of the scores of random kernels.

    Attributes:
      mean: mean score.
      q95: 95 % point of the score.
      centred_q95: 95 % point of the centred score.
    """

    mean: float
    q95: float
    centred_q95: float


@functools.lru_cache(maxsize=64)
def chance_levels(kh: int, kw: int) -> ChanceLevels:
    """Returns the levels of `chance_scores` for kernels of kh rows and kw columns."""
    plain, centred = chance_scores(kh, kw)
    quantiles = (float(np.quantile(scores, 0.95)) for scores in (plain, centred))
    return ChanceLevels(float(plain.mean()), *quantiles)


def beside_chance(score: float | None, kh: int, kw: int) -> dict[str, float | None]:
    """Describes the null of a kernel shape, and computes the p-value of a score under it.

    Args:
      score: score of a mean kernel; None if undefined.
      kh: rows.
      kw: columns.

    Returns:
      ``null_mean``, ``null_q95`` and ``p_value``.
    """
    (null, _), levels = chance_scores(kh, kw), chance_levels(kh, kw)
    # The draws are sorted, so a search counts those below the score.
    below = None if score is None else int(np.searchsorted(null, np.float32(score)))
    return {
        "null_mean": levels.mean,
        "null_q95": levels.q95,
        "p_value": None if below is None else (1 + len(null) - below) / (1 + len(null)),
    }


def measure_blocks(
    blocks: Iterable[tuple[np.ndarray, int]], kh: int, kw: int
) -> Iterator[np.ndarray]:
    """Measures kernels of one shape with one compiled program.

    Args:
      blocks: kernels (n, kh, kw) float32, each with the number of leading `FIELDS` that
        are wanted; it is fastest to have those of which more than the score is wanted first.
      kh: rows.
      kw: columns.

    Yields:
      The figures of each block, (n, wanted) float32.
    """
    size = max(1, _BATCH_CELLS // (kh * kw), min(64, _LARGEST_BATCH // (kh * kw)))
    batch, filled = np.zeros((size, kh, kw), np.float32), 0
    # Unfinished blocks: number of missing rows, wanted fields, and the rows so far.
    waiting: collections.deque[list[Any]] = collections.deque()

    def measure_batch() -> Iterator[np.ndarray]:
        # Most kernels are single ones, of which only the score is wanted: a third of the work.
        only_scores = all(wanted == 1 for _, wanted, _ in waiting)
        rows, start = np.asarray((_scores if only_scores else _figure_rows)(batch)), 0
        while waiting and start < filled:
            missing, wanted, parts = waiting[0]
            taken = min(missing, filled - start)
            parts.append(rows[start : start + taken, :wanted].copy())
            start, waiting[0][0] = start + taken, missing - taken
            if taken == missing:
                yield np.concatenate(waiting.popleft()[2])

    for block, wanted in blocks:
        waiting.append([len(block), wanted, []])
        while len(block):
            taken = min(size - filled, len(block))
            batch[filled : filled + taken] = block[:taken]
            filled, block = filled + taken, block[taken:]
            if filled == size:
                yield from measure_batch()
                filled = 0
    if filled:
        yield from measure_batch()


@jax.jit
def _figure_rows(kernels: jax.Array) -> jax.Array:
    return kernel_symmetry(kernels).row


@jax.jit
def _scores(kernels: jax.Array) -> jax.Array:
    return kernel_symmetry(kernels).row[..., :1]
