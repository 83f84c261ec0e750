"""The figures of answers to masks, over all pixels and over those of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernsym_jax.evaluation import confusion
from kernsym_jax.evaluation.interval import Estimate, bootstrap
from kernsym_jax.evaluation.masks import MaskAnswers, MaskFlips


def pixel_accuracy(answers: MaskAnswers) -> Estimate:
    """The share of all pixels that count that are classified correctly, bootstrap over images."""
    return _of_margins(answers, lambda counts: confusion.pixel_accuracy(counts)[:, None])[0]


def mean_iou(answers: MaskAnswers) -> Estimate:
    """The mean intersection over union, with the bootstrap's interval over images.

    Args:
      answers: from `measure`, of masks.

    Returns:
      Of the pixels of all images together, averaged over the classes that masks or answers have.
    """
    return _of_margins(answers, lambda counts: confusion.mean_iou(counts)[:, None])[0]


def by_class(answers: MaskAnswers, classes: Sequence[str]) -> dict[str, Any]:
    """The figures of the pixels of each class that the masks have.

    Args:
      answers: from `measure`, of masks.
      classes: names of the classes.

    Returns:
      For each name ``images`` (how many have the class), ``pixels``, ``iou``, ``accuracy`` (the
      share of its pixels that are answered as it), ``shift_consistency`` and ``flip_consistency``:
      shares of the pixels of all images together, with the bootstrap's interval over images.
    """
    of_each = confusion.margins(answers.confusion)[:, 1]
    present = np.flatnonzero(of_each.any(axis=0)).tolist()
    estimates: dict[tuple[str, ...], list[Estimate]] = {
        ("iou",): _of_margins(answers, confusion.class_iou),
        ("accuracy",): _shares(confusion.margins(answers.confusion)[:, 0], of_each),
    }
    if answers.shifts is not None:
        agreeing, compared = np.moveaxis(answers.shift_by_class, 1, 0)
        estimates["shift_consistency",] = _shares(agreeing, compared)
    rolled: dict[str, MaskFlips] = {**answers.flips, **answers.rolled}
    for prefix, flips in (("", answers.flips), ("rolled_", rolled)):
        for name, flip in flips.items():
            path = "flip_consistency", name
            estimates[*path, f"{prefix}hard"] = _shares(flip.agrees_by_class, of_each)
            estimates[*path, f"{prefix}soft"] = _shares(flip.similarity_by_class, of_each)
    found: dict[str, Any] = {}
    for label in present:
        name = classes[label]
        images, pixels = int(np.count_nonzero(of_each[:, label])), int(of_each[:, label].sum())
        found[name] = {"images": images, "pixels": pixels}
        for (*parents, last), columns in estimates.items():
            node = found[name]
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = columns[label].as_dict()
    return found


def _of_margins(answers: MaskAnswers, of: Any) -> list[Estimate]:
    counts = confusion.margins(answers.confusion)
    shape = counts.shape[1:]
    return bootstrap(
        counts.reshape(len(counts), -1), of=lambda means: of(means.reshape(-1, *shape))
    )


def _shares(some: np.ndarray, every: np.ndarray) -> list[Estimate]:
    """The share of each column's sum, with the bootstrap's interval over images."""
    classes = every.shape[1]

    def ratio(means: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return means[:, :classes] / means[:, classes:]

    return bootstrap(np.concatenate([some, every], axis=1), of=ratio)
