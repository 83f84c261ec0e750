"""The figures of a pass over images, each with its confidence interval."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.evaluation.answers import Answers, Flips, MaskAnswers, MaskFlips
from kernsym_jax.evaluation.measure import class_iou, margins, mean_class_iou, pixel_accuracy

CONFIDENCE = 0.95
RESAMPLES = 1000
# Cells of the matrix of resample counts that one chunk of the bootstrap may take.
_CELLS = 2**22


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
      value: the mean; NaN without data.
      low: lower end of the interval.
      high: upper end of the interval.

    >>> from kernsym_jax import evaluation
    >>> evaluation.Estimate(0.9, 0.85, 0.93).as_dict()
    {'value': 0.9, 'low': 0.85, 'high': 0.93}
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Returns the three numbers by name, for JSON."""
        return dataclasses.asdict(self)


def wilson(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
    """Computes Wilson's score interval of a share.

    Args:
      successes: counts, any shape.
      trials: counts, same shape; the result is NaN where a count is 0.

    Returns:
      The lower and the upper ends, float64, of the same shape.

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22, 1927.

    >>> low, high = wilson(8, 10)
    >>> print(f"{low:.4f} {high:.4f}")
    0.4902 0.9433
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    k, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + z**2 / 2) / (n + z**2)
        half = z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    # In exact arithmetic the interval of no success starts at 0, and of no failure ends at 1.
    low, high = np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def normal(sums: Any, squares: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Computes the normal interval of a mean of shares, clipped to [0, 1].

    Args:
      sums: sums of the shares, any shape.
      squares: sums of the squared shares, same shape.
      counts: numbers of shares, same shape; the result is NaN where a count is 0.

    Returns:
      The lower and the upper ends, float64, of the same shape.

    >>> low, high = normal(4.5, 4.25, 5)
    >>> print(f"{low:.4f} {high:.4f}")
    0.7247 1.0000
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    n = np.asarray(counts, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.asarray(sums, np.float64) / n
        variance = np.maximum(np.asarray(squares, np.float64) / n - mean**2, 0)
        half = z * np.sqrt(variance / n)
    return np.maximum(mean - half, 0), np.minimum(mean + half, 1)


def share(successes: np.ndarray) -> Estimate:
    """Estimates a share of images, with Wilson's interval.

    Args:
      successes: (n,) bool, one per image.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> evaluation.share(np.array([True, True, True, False])).value
    0.75
    """
    count, total = int(np.sum(successes)), len(successes)
    low, high = wilson(count, total)
    return Estimate(count / total if total else float("nan"), float(low), float(high))


def bootstrap(
    values: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
    confidence: float = CONFIDENCE,
) -> list[Estimate]:
    """Estimates means over rows, with percentile intervals of the bootstrap over rows.

    All columns share their resamples. A column of equal values has an interval of width 0, since
    resampling never produces a value that the sample does not contain.

    Args:
      values: (n, k) floats, a row per image (or per seed).
      resamples: number of resamples.
      seed: seed of the resamples.
      of: a function of the means to estimate instead of the means, from (r, k) to (r, m).
        Resamples for which it is NaN are left out.
      confidence: coverage of the intervals.

    Returns:
      k estimates, or m.

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> (mean,) = evaluation.bootstrap(np.array([[0.1], [0.2], [0.3], [0.2]]))
    >>> print(f"{mean.value:.2f} from {mean.low:.2f} to {mean.high:.2f}")
    0.20 from 0.12 to 0.25
    """
    values = np.asarray(values, np.float64)
    total, columns = values.shape
    if not total:
        wanted = columns if of is None else of(np.full((1, columns), np.nan)).shape[1]
        return [Estimate(*[float("nan")] * 3)] * wanted
    random, even = np.random.default_rng(seed), np.full(total, 1 / total)
    means: list[np.ndarray] = []
    at_once = max(1, _CELLS // total)
    for start in range(0, resamples, at_once):
        counts = random.multinomial(total, even, min(at_once, resamples - start))
        means.append(counts @ values / total)
    resampled, middle = np.concatenate(means), values.mean(axis=0)
    if of is not None:
        resampled, middle = of(resampled), of(middle[None])[0]
    tail = (1 - confidence) / 2
    low, high = np.full((2, *middle.shape), np.nan)
    known = np.isfinite(middle) & np.isfinite(resampled).any(axis=0)
    low[known], high[known] = np.nanquantile(resampled[:, known], (tail, 1 - tail), axis=0)
    # Rounding may put the resampled means of a constant column beside its mean.
    low, high = np.minimum(low, middle), np.maximum(high, middle)
    return [Estimate(*map(float, row)) for row in zip(middle, low, high, strict=True)]


def accuracy(answers: Answers | MaskAnswers) -> Estimate:
    """Estimates the share of correctly classified images at rest, or of their labelled pixels.

    Returns:
      The share of images with Wilson's interval; the share of pixels with the bootstrap's interval
      over images, because pixels of an image do not err independently.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> evaluation.accuracy(answers).value
    0.75
    """
    if isinstance(answers, MaskAnswers):
        return _from_margins(answers, lambda counts: pixel_accuracy(counts)[:, None])[0]
    return share(answers.correct)


def mean_iou(answers: MaskAnswers) -> Estimate:
    """Estimates the mean intersection over union, with the bootstrap's interval over images.

    Args:
      answers: from `measure`, for images with masks.

    Returns:
      The intersection over union of the pixels of all images together, averaged over the classes
      that appear in masks or answers.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> def bright_pixels(images):
    ...     return np.concatenate([0.5 - images, images], axis=-1)
    ...
    >>> images = np.eye(4, dtype=np.float32)[None, :, :, None]
    >>> batch = {"image": images, "label": np.eye(4, dtype=np.uint8)[None]}
    >>> answers = evaluation.measure(evaluation.HostFunction(bright_pixels), [batch])
    >>> evaluation.mean_iou(answers).value
    1.0
    """
    return _from_margins(answers, lambda counts: mean_class_iou(counts)[:, None])[0]


def shift_consistency(answers: Answers | MaskAnswers) -> Estimate:
    """Estimates the mean agreement over shifts, with the bootstrap's interval over images.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      Over the full grid, the share of offsets (0 included) whose answer is the answer at rest; over
      drawn pairs, the share of pairs with equal answers. For masks, the share of pixels with equal
      classes among the pixels that both images show (mASSC).

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> evaluation.shift_consistency(answers).value
    1.0
    """
    return bootstrap(answers.shift_agreement[:, None])[0]


def flip_consistency(answers: Answers | MaskAnswers) -> dict[str, dict[str, Estimate]]:
    """Estimates the agreement of images with their flipped versions, per element of D4.

    Args:
      answers: from `measure`, with flips.

    Returns:
      For each element ``hard``, the share of images with an unchanged class (Wilson's interval),
      and ``soft``, the mean of 1 − the total variation between the softmaxes (bootstrap); the same
      with the one-pixel roll as ``rolled_hard`` and ``rolled_soft``, which equal the plain ones
      where the roll has no effect. For masks both are means over pixels, after undoing the flip,
      with the bootstrap's interval.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> evaluation.flip_consistency(answers)["fliplr"]["hard"].value
    1.0
    """
    plain: dict[str, Any] = dict(answers.flips)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in plain}
    for prefix, flips in (("", plain), ("rolled_", {**plain, **answers.rolled})):
        for name, hard, soft in zip(flips, _hard(flips), _soft(flips), strict=True):
            found[name] |= {f"{prefix}hard": hard, f"{prefix}soft": soft}
    return found


def agreement_map(answers: Answers | MaskAnswers) -> dict[str, Any]:
    """Computes the agreement for each difference between two compared offsets.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      ``dy`` and ``dx`` in pixels, the differences of the rows and columns; ``agreement`` with its
      interval ``low`` and ``high`` (Wilson's, or the normal interval for masks); ``compared``, the
      numbers of comparisons. Cells without comparisons are NaN.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> found = evaluation.agreement_map(answers)
    >>> found["dy"], found["compared"]
    ([0, 1], [[4, 4], [4, 4]])
    """
    assert answers.shifts is not None, "a map needs answers to shifts"
    agreeing, compared = answers.map_agreeing, answers.map_compared
    if isinstance(answers, MaskAnswers):
        low, high = normal(agreeing, answers.map_squares, compared)
    else:
        low, high = wilson(agreeing, compared)
    with np.errstate(invalid="ignore"):
        shares = agreeing / compared
    return {
        "dy": list(answers.shifts.differences),
        "dx": list(answers.shifts.differences),
        "agreement": shares.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "compared": compared.tolist(),
    }


def summarize(answers: Answers | MaskAnswers, classes: Sequence[str]) -> dict[str, Any]:
    """Computes all figures of a pass, as ``consistency.json`` stores them.

    Args:
      answers: from `measure`.
      classes: names of the classes, by label.

    Returns:
      JSON types; shares lie in [0, 1]. ``images``, ``accuracy``, ``mean_iou`` (masks only),
      ``shift_consistency`` with its settings and ``map``, ``flip_consistency`` per element, and
      ``classes``: the same figures for the images, or the pixels, of each class that appears.
      Comparisons that `measure` did not make are absent.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> results = evaluation.summarize(answers, ("dark", "bright"))
    >>> results["images"], results["accuracy"]["value"]
    (4, 0.75)
    """
    found = _figures(answers)
    if answers.shifts is not None:
        found["shift_consistency"] |= {
            "settings": dataclasses.asdict(answers.shifts),
            "map": agreement_map(answers),
        }
    return {
        **found,
        "classes": _by_class(answers, classes),
        "intervals": {"confidence": CONFIDENCE, "resamples": RESAMPLES},
    }


def _figures(answers: Answers | MaskAnswers) -> dict[str, Any]:
    found: dict[str, Any] = {
        "images": answers.images,
        "accuracy": accuracy(answers).as_dict(),
    }
    if isinstance(answers, MaskAnswers):
        found["mean_iou"] = mean_iou(answers).as_dict()
    if answers.shifts is not None:
        found["shift_consistency"] = shift_consistency(answers).as_dict()
    if answers.flips:
        found["flip_consistency"] = {
            name: {kind: estimate.as_dict() for kind, estimate in kinds.items()}
            for name, kinds in flip_consistency(answers).items()
        }
    return found


def _hard(flips: Mapping[str, Flips | MaskFlips]) -> list[Estimate]:
    columns = [np.asarray(flip.agrees) for flip in flips.values()]
    if columns and columns[0].dtype != bool:
        return bootstrap(np.stack(columns, axis=1))
    return list(map(share, columns))


def _soft(flips: Mapping[str, Flips | MaskFlips]) -> list[Estimate]:
    if not flips:
        return []
    return bootstrap(np.stack([flip.similarity for flip in flips.values()], axis=1))


def _by_class(answers: Answers | MaskAnswers, classes: Sequence[str]) -> dict[str, Any]:
    if isinstance(answers, MaskAnswers):
        return _pixels_by_class(answers, classes)
    present = np.unique(answers.labels).tolist()
    return {classes[label]: _figures(answers.of_class(label)) for label in present}


def _pixels_by_class(answers: MaskAnswers, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the figures of the pixels of each class that the masks contain.

    For each name ``images`` (the number of images with the class), ``pixels``, ``iou``,
    ``accuracy``, ``shift_consistency`` and ``flip_consistency``: shares of the pixels of all images
    together, with the bootstrap's interval over images.
    """
    pixels = margins(answers.confusion)[:, 1]
    estimates: dict[tuple[str, ...], list[Estimate]] = {
        ("iou",): _from_margins(answers, class_iou),
        ("accuracy",): _ratios(margins(answers.confusion)[:, 0], pixels),
    }
    if answers.shifts is not None:
        agreeing, compared = np.moveaxis(answers.shift_by_class, 1, 0)
        estimates["shift_consistency",] = _ratios(agreeing, compared)
    rolled: dict[str, MaskFlips] = {**answers.flips, **answers.rolled}
    for prefix, flips in (("", answers.flips), ("rolled_", rolled)):
        for name, flip in flips.items():
            path = "flip_consistency", name
            estimates[*path, f"{prefix}hard"] = _ratios(flip.agrees_by_class, pixels)
            estimates[*path, f"{prefix}soft"] = _ratios(flip.similarity_by_class, pixels)
    found: dict[str, Any] = {}
    for label in np.flatnonzero(pixels.any(axis=0)).tolist():
        found[classes[label]] = figures = {
            "images": int(np.count_nonzero(pixels[:, label])),
            "pixels": int(pixels[:, label].sum()),
        }
        for (*parents, last), columns in estimates.items():
            node: dict[str, Any] = figures
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = columns[label].as_dict()
    return found


def _from_margins(answers: MaskAnswers, of: Any) -> list[Estimate]:
    counts = margins(answers.confusion)
    shape = counts.shape[1:]
    return bootstrap(
        counts.reshape(len(counts), -1), of=lambda means: of(means.reshape(-1, *shape))
    )


def _ratios(part: np.ndarray, whole: np.ndarray) -> list[Estimate]:
    """Returns ratios of column sums of two (n, classes) arrays, with bootstrap intervals."""
    classes = whole.shape[1]

    def ratio(means: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return means[:, :classes] / means[:, classes:]

    return bootstrap(np.concatenate([part, whole], axis=1), of=ratio)
