"""Every symmetry figure of every convolution in a weight pytree, as one small computation."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import (
    conv_kernels,
    dc_share_of,
    energy,
    module_of,
    root,
    scaled_cells,
    skew_of,
)
from kernsym_jax.symmetry.score import IRREPS, energies_of, squared_distances_of
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
# The pairs of the cells of larger kernels would need much memory.
_MOST_PAIRED_CELLS = 1024
# Kernels are measured in pieces of this many cells, which fit the processor's cache.
_BATCH_CELLS = 73_728


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
    E = _figure("E", "Energy share of the odd part: gradients, and the trace of uneven padding.")
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
    row = _mean_kernel_row(*scaled_cells(kernel))
    unknown = jnp.full((*row.shape[:-1], _OF_SIZES), jnp.nan, row.dtype)
    return KernelSymmetry(jnp.concatenate([row, unknown], axis=-1))


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
    of_mean = _mean_kernel_row(*scaled_cells(sums))
    return jnp.concatenate([of_mean, of_sizes], axis=-1)


def _mean_kernel_row(cells: jax.Array, kh: int, kw: int) -> jax.Array:
    """Returns the fields of a mean kernel, (..., len(FIELDS) - _OF_SIZES), from scaled cells."""
    xp = module_of(cells)
    squares = squared_distances_of(cells, kh, kw)
    distances, names = root(squares), group.elements(kh, kw)
    mean_distance = xp.mean(distances, axis=-1)
    missing = xp.full(mean_distance.shape, np.nan, mean_distance.dtype)
    ratio = energy(cells) / energy(cells, centered=True)
    figures = {
        "score": 1 - mean_distance,
        "score_no_identity": 1 - mean_distance * len(names) / (len(names) - 1),
        "score_centered": 1 - mean_distance * xp.sqrt(ratio),
        "dc_share": dc_share_of(cells),
    }
    for name in group.D4:
        known = name in names
        figures[f"d_{name}"] = distances[..., names.index(name)] if known else missing
    energies, moment = energies_of(squares, kh, kw), skew_of(cells, kh, kw)
    figures |= {name: energies[..., index] for index, name in enumerate(IRREPS)}
    figures |= {"skew_x": moment[..., 0], "skew_y": moment[..., 1]}
    return xp.stack([figures[name] for name in FIELDS[:-_OF_SIZES]], axis=-1)


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
    draws = null_draws(kh, kw)
    kernels = np.random.default_rng(_NULL_SEED).normal(size=(draws, kh * kw)).astype(np.float32)
    step = max(1, _BATCH_CELLS // (kh * kw))
    with np.errstate(all="ignore"):
        parts = [
            _scores(np.ascontiguousarray(kernels[start : start + step].T), kh, kw, (False, True))
            for start in range(0, draws, step)
        ]
    plain, centred = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
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


@dataclasses.dataclass(frozen=True)
class HostFigures:
    """The figures of one weight in host memory.

    Attributes:
      mean_kernel: (kh, kw) float32.
      row: (len(FIELDS),) float32, as `KernelSymmetry.row`.
      neuron_score: mean score of the kernels of the output channels; NaN if all are zero.
      single_score: mean score of the single kernels; NaN if all are zero.
      square_sums: (kh, kw) float64, sums of squares over the slices, up to a common factor.
      finite: whether all weights are finite.
    """

    mean_kernel: np.ndarray
    row: np.ndarray
    neuron_score: float
    single_score: float
    square_sums: np.ndarray
    finite: bool


def measure_on_host(weights: Sequence[np.ndarray]) -> list[HostFigures]:
    """Measures weights in host memory by NumPy, in one pass and without compiling a program.

    The figures equal those of `measure`, `neuron_score` and `single_score` to rounding; sums over
    slices are taken in float64.

    Args:
      weights: each (kh, kw, in, out) float32.

    Returns:
      The figures of each.
    """
    reduced = [_reduced(weight) for weight in weights]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, weight in enumerate(weights):
        by_shape.setdefault(weight.shape[:2], []).append(place)
    rows: dict[int, np.ndarray] = {}
    for places in by_shape.values():
        together = _host_rows(
            np.stack([reduced[place][0] for place in places]),
            np.stack([reduced[place][1]["square_sums"] for place in places]),
            [weights[place].shape[2] * weights[place].shape[3] for place in places],
        )
        rows.update(zip(places, together, strict=True))
    return [HostFigures(row=rows[place], **facts) for place, (_, facts) in enumerate(reduced)]


@np.errstate(all="ignore")
def _reduced(weight: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the sums over slices, (kh, kw), times a power of two; and the other figures."""
    kh, kw, channels_in, channels_out = weight.shape
    slices, cells = channels_in * channels_out, kh * kw
    neuron_sums, square_sums = np.zeros((cells, channels_out)), np.zeros(cells)
    score_sum, scored = 0.0, 0
    largest = max(float(weight.max()), -float(weight.min()))
    finite = math.isfinite(largest)
    # A power of two rounds nothing, and squares neither overflow nor vanish.
    scale = np.float32(2.0 ** -math.frexp(largest)[1] if finite and largest else 1)
    for channels, inputs in _pieces(weight.shape):
        piece = weight[:, :, inputs, channels].swapaxes(2, 3)
        part = np.multiply(piece, scale, order="C", dtype=np.float32).reshape(cells, -1)
        of_channels = part.reshape(cells, piece.shape[2], -1)
        neuron_sums[:, channels] += of_channels.sum(axis=2, dtype=np.float64)
        square_sums += np.square(part).sum(axis=1, dtype=np.float64)
        (scores,) = _scores(part, kh, kw)
        defined = ~np.isnan(scores)
        score_sum += float(scores.sum(dtype=np.float64, where=defined))
        scored += int(defined.sum())
    sums = neuron_sums.sum(axis=1).reshape(kh, kw)
    neurons = (neuron_sums / channels_in).astype(np.float32)
    neuron_scores = _scores(neurons, kh, kw)[0].astype(np.float64)
    counted = neuron_scores[~np.isnan(neuron_scores)]
    return sums, {
        "mean_kernel": (sums / slices / float(scale)).astype(np.float32),
        "neuron_score": float(counted.mean()) if counted.size else math.nan,
        "single_score": score_sum / scored if scored else math.nan,
        "square_sums": square_sums.reshape(kh, kw),
        "finite": finite,
    }


def _pieces(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yields output and input channels of pieces that fit the processor's cache."""
    kh, kw, channels_in, channels_out = shape
    most = max(1, _BATCH_CELLS // (kh * kw))
    step, inputs = max(1, most // channels_in), min(most, channels_in)
    for first in range(0, channels_out, step):
        for start in range(0, channels_in, inputs):
            yield slice(first, first + step), slice(start, start + inputs)


@np.errstate(all="ignore")
def _host_rows(sums: Any, square_sums: Any, slices: Sequence[int]) -> np.ndarray:
    """Returns the rows (layers, len(FIELDS)) of weights with one kernel shape, from their sums."""
    kh, kw = sums.shape[1:]
    of_sizes = signature_figures(
        sums.astype(np.float32),
        square_sums.astype(np.float32),
        np.array(slices, np.float32),
        np.array([signature_sd(kh, kw, count) for count in slices], np.float32),
    )
    means = (sums.reshape(len(sums), -1).T / np.array(slices)).astype(np.float32)
    of_mean = _mean_kernel_row(_scaled_on_host(means).T, kh, kw)
    return np.concatenate([of_mean, of_sizes], axis=-1)


def _scaled_on_host(cells: np.ndarray) -> Any:
    """Returns `scaled_cells` of kernels (kh * kw, n); NaN for those that are zero."""
    return cells / np.abs(cells).max(axis=0)


def _scores(
    cells: np.ndarray, kh: int, kw: int, centred: Sequence[bool] = (False,)
) -> list[np.ndarray]:
    """Returns the scores of kernels (kh * kw, n): an array (n,) for each kind, plain or centred."""
    scaled, names = _scaled_on_host(cells), group.elements(kh, kw)
    if kh * kw <= _MOST_PAIRED_CELLS:
        first, second, weights, times = group.exchanged_pairs(kh, kw)
        differences = scaled[first]
        differences -= scaled[second]
        np.square(differences, out=differences)
        # By einsum: threads of a matrix product this small cost many times the product.
        squares = np.einsum("pe,pn->en", weights, differences)
        summed = np.einsum("e,en->n", times, np.sqrt(squares))
    else:
        orders = group.cell_permutations(kh, kw)[1:]
        moved = (np.square(scaled[order] - scaled).sum(axis=0) for order in orders)
        summed = sum(np.sqrt(squares) for squares in moved)
    distances = summed / len(names)
    return [1 - distances * (0.5 / np.sqrt(energy(scaled.T, centered=each))) for each in centred]
