"""The figures that a pass has come to, each with its confidence interval."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernsym_jax.evaluation.classes import Answers, Flips
from kernsym_jax.evaluation.interval import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap,
    normal,
    share,
    wilson,
)
from kernsym_jax.evaluation.mask_summary import by_class, mean_iou, pixel_accuracy
from kernsym_jax.evaluation.masks import MaskAnswers, MaskFlips


def accuracy(answers: Answers | MaskAnswers) -> Estimate:
    """The share of images at rest, or of their pixels that count, that are classified correctly.

    Returns:
      With Wilson's interval; of pixels, which do not err independently, with the bootstrap's over
      images.
    """
    if isinstance(answers, MaskAnswers):
        return pixel_accuracy(answers)
    return share(answers.correct)


def shift_consistency(answers: Answers | MaskAnswers) -> Estimate:
    """The mean agreement over shifts, with the bootstrap's interval over images.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      Over the full grid, how often an image shifted by any of its offsets, 0 among them, has the
      class of the image at rest; over drawn pairs, how often both have the same. Of masks the share
      of pixels with the same class instead, among those that both see (mASSC).
    """
    return bootstrap(answers.shift_agreement[:, None])[0]


def flip_consistency(answers: Answers | MaskAnswers) -> dict[str, dict[str, Estimate]]:
    """The agreement of images with their flipped selves, per element of D4.

    Args:
      answers: from `measure`, with flips.

    Returns:
      For each element ``hard``, the share of images whose class stays (Wilson's interval), and
      ``soft``, the mean of 1 − the total variation between the softmaxes (bootstrap); the same
      after the one-pixel roll as ``rolled_hard`` and ``rolled_soft``. Where the roll changes
      nothing these equal the plain ones. Of masks, once the element is undone, ``hard`` is the
      share of pixels whose class stays and ``soft`` a mean over pixels too (both bootstrap).
    """
    plain: dict[str, Any] = dict(answers.flips)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in plain}
    for prefix, flips in (("", plain), ("rolled_", {**plain, **answers.rolled})):
        for name, hard, soft in zip(flips, _hard(flips), _soft(flips), strict=True):
            found[name] |= {f"{prefix}hard": hard, f"{prefix}soft": soft}
    return found


def agreement_map(answers: Answers | MaskAnswers) -> dict[str, Any]:
    """The agreement for each difference between the two images that are compared.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      ``dy`` and ``dx``, pixels, of the rows and columns of ``agreement``, its interval ``low`` and
      ``high`` (Wilson's; of masks the normal one) and the number of comparisons ``compared``; NaN
      where there were none.
    """
    assert answers.shifts is not None, "a map is of shifts"
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
    """All figures of a pass, as ``consistency.json`` holds them.

    Args:
      answers: from `measure`.
      classes: names of the classes that labels count.

    Returns:
      JSON types; shares are of 1. ``images``, ``accuracy``, of masks ``mean_iou``,
      ``shift_consistency`` with its settings and ``map``, ``flip_consistency`` per element, and
      ``classes``, the same figures for the images, or for the pixels, of each class that has any.
      What was not asked for is absent.
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


def _by_class(answers: Answers | MaskAnswers, classes: Sequence[str]) -> dict[str, Any]:
    if isinstance(answers, MaskAnswers):
        return by_class(answers, classes)
    present = np.unique(answers.labels).tolist()
    return {classes[label]: _figures(answers.of_class(label)) for label in present}


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
