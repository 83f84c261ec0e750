"""Confusion matrices of masks, and the accuracy and intersection over union that follow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(answers: jax.Array, masks: jax.Array, classes: int) -> jax.Array:
    """Counts the pixels of each true class by the class of the answer.

    Args:
      answers: (batch, height, width) integers, classes.
      masks: (batch, height, width) uint8, true classes; ``data.VOID`` for pixels without a label.
      classes: number of classes, at most 255.

    Returns:
      (batch, classes, classes) int32, true classes in rows.
    """
    count = answers.shape[0]
    # The one-hot row of a label beyond the classes, such as void, is 0, so it is not counted.
    true, answered = (
        jax.nn.one_hot(labels.reshape(count, -1), classes, dtype=jnp.float32)
        for labels in (masks, answers)
    )
    return jnp.einsum("npi,npj->nij", true, answered).astype(jnp.int32)


def margins(confusion: Any) -> np.ndarray:
    """Reduces confusion matrices to the counts that accuracy and intersection over union need.

    Args:
      confusion: (…, classes, classes), true classes in rows.

    Returns:
      (…, 3, classes): for each class the correct pixels, the pixels in the masks, and the pixels in
      the answers.
    """
    matrix = np.asarray(confusion)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.stack([hits, matrix.sum(-1), matrix.sum(-2)], axis=-2)


def pixel_accuracy(counts: Any) -> np.ndarray:
    """Computes the share of correct pixels.

    Args:
      counts: (…, 3, classes) from `margins`.

    Returns:
      (…) float64; NaN without pixels.
    """
    hits, true, _ = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return hits.sum(-1) / true.sum(-1)


def class_iou(counts: Any) -> np.ndarray:
    """Computes the intersection over union of each class.

    Args:
      counts: (…, 3, classes) from `margins`.

    Returns:
      (…, classes) float64; NaN for a class that appears neither in masks nor in answers.

    Reference: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective",
    IJCV 2015, section 4.3.
    """
    hits, true, answered = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return hits / (true + answered - hits)


def mean_class_iou(counts: Any) -> np.ndarray:
    """Averages `class_iou` over the classes that appear in masks or answers.

    Args:
      counts: (…, 3, classes) from `margins`.

    Returns:
      (…) float64; NaN without pixels.

    >>> print(mean_class_iou(margins([[3, 1, 0], [0, 4, 0], [0, 0, 0]])))
    0.775
    """
    shares = class_iou(counts)
    known = ~np.isnan(shares)
    with np.errstate(invalid="ignore"):
        return np.where(known, shares, 0).sum(-1) / known.sum(-1)
