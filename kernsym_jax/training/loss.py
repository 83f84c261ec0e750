"""The cross-entropy of labels and of masks, and what each label counts in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernsym_jax.data import VOID


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The loss of every label.

    Args:
      logits: (…, classes) float32.
      labels: (…) of any integers; those beyond the classes, as void is, have some finite loss that
        is not to count.
      smoothing: share of the target that is spread over all classes.

    Returns:
      (…) float32.
    """
    classes = logits.shape[-1]
    labels = jnp.where(labels < classes, labels, 0).astype(jnp.int32)
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def counted(labels: jax.Array) -> jax.Array:
    """Which labels count: all of images, and those pixels of masks that are not void; bool."""
    if labels.ndim == 1:
        return jnp.ones(labels.shape, bool)
    return labels != VOID


def label_weights(labels: jax.Array, class_weights: tuple[float, ...] = ()) -> jax.Array:
    """What every label counts in the mean loss.

    Args:
      labels: (batch,) integers, or masks (batch, height, width).
      class_weights: of each class; empty for all alike.

    Returns:
      float32 of the labels' shape; 0 where a mask is void.
    """
    weights = counted(labels).astype(jnp.float32)
    if not class_weights:
        return weights
    known = jnp.minimum(labels.astype(jnp.int32), len(class_weights) - 1)
    return weights * jnp.asarray(class_weights, jnp.float32)[known]


def median_frequency_weights(masks: np.ndarray, classes: int) -> tuple[float, ...]:
    """Class weights under which rare classes count as much as frequent ones.

    Args:
      masks: (n, height, width) uint8, with ``data.VOID`` where pixels do not count.
      classes: how many there are.

    Returns:
      For each class the median frequency over its own: the frequency of a class is its share of
      the pixels that count in the masks that have it. A class that no mask has weighs 1.

    Reference: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a
    Common Multi-Scale Convolutional Architecture", ICCV 2015, section 6.3.2.

    >>> masks = np.array([[[0, 0, 0, 1]], [[0, 0, 255, 255]]], np.uint8)
    >>> median_frequency_weights(masks, 3)
    (0.65, 2.166667, 1.0)
    """
    pixels = np.stack([np.bincount(mask.ravel(), minlength=VOID + 1)[:classes] for mask in masks])
    present = pixels > 0
    seen = (present * pixels.sum(1, keepdims=True)).sum(0)
    frequency = pixels.sum(0) / np.maximum(seen, 1)
    found = frequency > 0
    median = np.median(frequency[found]) if found.any() else 1.0
    weights = np.divide(median, frequency, out=np.ones(classes), where=found)
    return tuple(round(float(weight), 6) for weight in weights)
