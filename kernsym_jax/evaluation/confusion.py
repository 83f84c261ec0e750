"""Confusion matrices of masks, and what follows from them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(answers: jax.Array, masks: jax.Array, classes: int) -> jax.Array:
    """How many pixels of each true class have been answered as each class.

    Args:
      answers: (batch, height, width) integers, classes.
      masks: (batch, height, width) uint8, true classes; ``data.VOID`` where pixels do not count.
      classes: how many there are, at most 255.

    Returns:
      (batch, classes, classes) int32, true classes in rows.
    """
    count = answers.shape[0]
    # A label beyond the classes, as void is, has a row of zeros, which counts nowhere.
    true, answered = (
        jax.nn.one_hot(labels.reshape(count, -1), classes, dtype=jnp.float32)
        for labels in (masks, answers)
    )
    return jnp.einsum("npi,npj->nij", true, answered).astype(jnp.int32)


def margins(confusion: Any) -> np.ndarray:
    """What accuracy and intersection over union need of a confusion matrix.

    Args:
      confusion: (…, classes, classes).

    Returns:
      (…, 3, classes): pixels of each class that are answered rightly, that are of it, and that are
      answered as it.
    """
    matrix = np.asarray(confusion)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.stack([hits, matrix.sum(-1), matrix.sum(-2)], axis=-2)


def pixel_accuracy(counts: Any) -> np.ndarray:
    """The share of pixels that are answered rightly.

    Args:
      counts: (…, 3, classes) of `margins`.

    Returns:
      (…) float64; NaN without pixels.
    """
    hits, true, _ = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return hits.sum(-1) / true.sum(-1)


def class_iou(counts: Any) -> np.ndarray:
    """Intersection over union of each class.

    Args:
      counts: (…, 3, classes) of `margins`.

    Returns:
      (…, classes) float64; NaN of a class that neither masks nor answers have.

    Reference: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective",
    IJCV 2015, section 4.3.
    """
    hits, true, answered = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return hits / (true + answered - hits)


def mean_iou(counts: Any) -> np.ndarray:
    """The mean of `class_iou` over the classes that masks or answers have.

    Args:
      counts: (…, 3, classes) of `margins`.

    Returns:
      (…) float64; NaN without pixels.

    >>> print(mean_iou(margins([[3, 1, 0], [0, 4, 0], [0, 0, 0]])))
    0.775
    """
    shares = class_iou(counts)
    known = ~np.isnan(shares)
    with np.errstate(invalid="ignore"):
        return np.where(known, shares, 0).sum(-1) / known.sum(-1)
