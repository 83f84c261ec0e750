"""The figures that a pass has come to, each with its confidence interval."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.evaluation.interval import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap,
    share,
    wilson,
)
from kernsym_jax.evaluation.measure import Answers, Flips


def accuracy(answers: Answers) -> Estimate:
    """The share of images at rest that are classified correctly, with Wilson's interval."""
    return share(answers.correct)


def shift_consistency(answers: Answers) -> Estimate:
    """The mean agreement over shifts, with the bootstrap's interval over images.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      Over the full grid, how often an image shifted by any of its offsets, 0 among them, has the
      class of the image at rest; over drawn pairs, how often both have the same.
    """
    return bootstrap(answers.shift_agreement[:, None])[0]


def flip_consistency(answers: Answers) -> dict[str, dict[str, Estimate]]:
    """The agreement of images with their flipped selves, per element of D4.

    Args:
      answers: from `measure`, with flips.

    Returns:
      For each element ``hard``, the share of images whose class stays (Wilson's interval), and
      ``soft``, the mean of 1 − the total variation between the softmaxes (bootstrap); the same
      after the one-pixel roll as ``rolled_hard`` and ``rolled_soft``. Where the roll changes
      nothing these equal the plain ones.
    """
    rolled = {**answers.flips, **answers.rolled}
    found: dict[str, dict[str, Estimate]] = {name: {} for name in answers.flips}
    for prefix, flips in (("", answers.flips), ("rolled_", rolled)):
        for name, soft in zip(flips, _soft(flips), strict=True):
            found[name] |= {
                f"{prefix}hard": share(np.asarray(flips[name].agrees)),
                f"{prefix}soft": soft,
            }
    return found


def agreement_map(answers: Answers) -> dict[str, Any]:
    """The agreement for each difference between the two images that are compared.

    Args:
      answers: from `measure`, with shifts.

    Returns:
      ``dy`` and ``dx``, pixels, of the rows and columns of ``agreement``, its Wilson interval
      ``low`` and ``high`` and the number of comparisons ``compared``; NaN where there were none.
    """
    assert answers.shifts is not None, "a map is of shifts"
    agreeing, compared = answers.map_agreeing, answers.map_compared
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


def summarize(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """All figures of a pass, as ``consistency.json`` holds them.

    Args:
      answers: from `measure`.
      classes: names of the classes that labels count.

    Returns:
      JSON types; shares are of 1. ``images``, ``accuracy``, ``shift_consistency`` with its
      settings and ``map``, ``flip_consistency`` per element, and ``classes``, the same figures for
      the images of each class that has any. What was not asked for is absent.
    """
    found = _figures(answers)
    if answers.shifts is not None:
        found["shift_consistency"] |= {
            "settings": dataclasses.asdict(answers.shifts),
            "map": agreement_map(answers),
        }
    present = np.unique(answers.labels).tolist()
    return {
        **found,
        "classes": {classes[label]: _figures(answers.of_class(label)) for label in present},
        "intervals": {"confidence": CONFIDENCE, "resamples": RESAMPLES},
    }


def _figures(answers: Answers) -> dict[str, Any]:
    found: dict[str, Any] = {
        "images": len(answers.labels),
        "accuracy": accuracy(answers).as_dict(),
    }
    if answers.shifts is not None:
        found["shift_consistency"] = shift_consistency(answers).as_dict()
    if answers.flips:
        found["flip_consistency"] = {
            name: {kind: estimate.as_dict() for kind, estimate in kinds.items()}
            for name, kinds in flip_consistency(answers).items()
        }
    return found


def _soft(flips: dict[str, Flips]) -> list[Estimate]:
    if not flips:
        return []
    return bootstrap(np.stack([flip.similarity for flip in flips.values()], axis=1))
