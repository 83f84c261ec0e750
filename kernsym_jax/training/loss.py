"""The loss of a run: cross-entropy of class labels or masks, and the symmetry term."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from kernsym_jax import symmetry
from kernsym_jax.data import VOID

_EPS = float(jnp.finfo(jnp.float32).eps)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy of every label.

    Args:
      logits: (…, classes) float32.
      labels: (…) integers. A label beyond the classes, such as void, gets a finite loss; the caller
        gives it no weight.
      smoothing: share of the target that is spread over all classes, 0 to 1.

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
    """Returns which labels count: every class label, and every pixel of a mask that is not void.

    Args:
      labels: (batch,) integers, or masks (batch, height, width).

    Returns:
      bool, of the labels' shape.
    """
    if labels.ndim == 1:
        return jnp.ones(labels.shape, bool)
    return labels != VOID


def label_weights(labels: jax.Array, class_weights: tuple[float, ...] = ()) -> jax.Array:
    """Returns the weight of every label in the mean loss.

    Args:
      labels: (batch,) integers, or masks (batch, height, width).
      class_weights: one weight per class; () for equal weights.

    Returns:
      float32 of the labels' shape; 0 where a mask is void.
    """
    weights = counted(labels).astype(jnp.float32)
    if not class_weights:
        return weights
    known = jnp.minimum(labels.astype(jnp.int32), len(class_weights) - 1)
    return weights * jnp.asarray(class_weights, jnp.float32)[known]


def median_frequency_weights(masks: np.ndarray, classes: int) -> tuple[float, ...]:
    """Returns class weights that give rare classes as much influence as frequent ones.

    Args:
      masks: (n, height, width) uint8, with ``data.VOID`` for pixels without a class.
      classes: number of classes.

    Returns:
      For each class the median of all frequencies over its own. The frequency of a class is its
      share of the labelled pixels of those masks in which it occurs. A class that never occurs
      weighs 1.

    Reference: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a
    Common Multi-Scale Convolutional Architecture", ICCV 2015, section 6.3.2.

    >>> masks = np.array([[[0, 0, 0, 1]], [[0, 0, 255, 255]]], np.uint8)
    >>> median_frequency_weights(masks, 3)
    (0.65, 2.166667, 1.0)
    """
    pixels = np.stack([np.bincount(mask.ravel(), minlength=VOID + 1)[:classes] for mask in masks])
    present = pixels > 0
    seen = np.where(present, pixels.sum(axis=1, keepdims=True), 0).sum(axis=0)
    frequency = pixels.sum(axis=0) / np.maximum(seen, 1)
    found = frequency > 0
    median = np.median(frequency[found]) if found.any() else 1.0
    weights = np.divide(median, frequency, out=np.ones(classes), where=found)
    return tuple(round(float(weight), 6) for weight in weights)


TIES: dict[str, tuple[str, ...]] = {"fliplr": ("fliplr",), "d4": ()}
"""Values of ``config.symmetry.tie`` -> elements that generate the group."""


@dataclasses.dataclass(frozen=True)
class SymmetryLever:
    """Makes mean kernels more symmetric than the task alone does; the default does nothing.

    Attributes:
      loss_weight: λ of the loss term λ·(1 − mean score over the chosen layers); 0 for no term.
      project: whether the mean kernels of the chosen layers are made invariant after every update.
      elements: elements of D4 that generate the group of the score and of the projection; () for
        D4.
      layers: patterns of the chosen layers' paths; () for all spatial convolutions.
      tie: ``fliplr`` or ``d4`` keeps every (in, out) slice of the chosen layers invariant under the
        flip or under all of D4, exactly; ``none`` for free slices.
    """

    loss_weight: float = 0.0
    project: bool = False
    elements: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    tie: str = "none"

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "SymmetryLever":
        """Returns the lever that the keys under ``config.symmetry`` describe."""
        return cls(**config.to_dict())

    @property
    def active(self) -> bool:
        """Whether it changes the training at all."""
        return self.constrains or self.loss_weight > 0

    @property
    def constrains(self) -> bool:
        """Whether it changes the weights after every update."""
        return self.project or self.tie != "none"

    @property
    def _generators(self) -> tuple[str, ...]:
        """Elements that generate the group: those of ``tie``, or else ``elements``."""
        return TIES.get(self.tie, self.elements)

    def chosen(self, params: Any) -> dict[str, jax.Array]:
        """Returns the spatial kernels that match the patterns and that the group can change.

        Args:
          params: the model's parameters.

        Returns:
          ``{"block/conv": weight}``, never empty.

        Raises:
          ValueError: if a pattern matches no spatial convolution, or no element of the group
            applies to a chosen kernel.
        """
        spatial = {
            path.removesuffix("/kernel"): weight
            for path, weight in symmetry.conv_kernels(params).items()
            if weight.shape[0] * weight.shape[1] > 1
        }
        matched = set() if self.layers else set(spatial)
        for pattern in self.layers:
            found = {name for name in spatial if _matches(name, pattern)}
            if not found:
                raise ValueError(
                    f"config.symmetry.layers: {pattern!r} matches no spatial convolution; there "
                    f"are {', '.join(spatial) or 'none'}"
                )
            matched |= found
        group = set(symmetry.generated(self._generators)) - {"e"}
        chosen = {
            name: weight
            for name, weight in spatial.items()
            if name in matched and group & set(symmetry.elements(*weight.shape[:2]))
        }
        if not chosen:
            names = [name for name in spatial if name in matched]
            key = "tie" if self.tie in TIES else "elements"
            raise ValueError(
                f"config.symmetry.{key}: {', '.join(self._generators) or 'D4'} applies to none of "
                f"the chosen spatial convolutions: {', '.join(names) or 'there are none'}"
            )
        return chosen

    def projected(self, params: Any) -> Any:
        """Returns the parameters with invariant slices or mean kernels in the chosen layers.

        For plain SGD with momentum and weight decay, applying it after every update equals training
        the free parameters of the constrained kernels.
        """
        kernels = {f"{name}/kernel" for name in self.chosen(params)}

        def move(path: tuple, leaf: jax.Array) -> jax.Array:
            name = "/".join(str(key.key) for key in path)
            if name not in kernels:
                return leaf
            if self.tie in TIES:
                return symmetry.invariant_slices(leaf, self._generators)
            return symmetry.project_mean_kernel(leaf, self.elements)

        return jax.tree_util.tree_map_with_path(move, params)

    def loss(self, params: Any) -> jax.Array:
        """Returns λ·(1 − mean score over the chosen layers); the score includes the identity.

        Args:
          params: the model's parameters.

        Returns:
          () float32, with a gradient that is finite everywhere. A layer has no score if its mean
          kernel is no larger than the rounding of its weights; such layers do not count.
        """
        by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
        for weight in self.chosen(params).values():
            by_shape.setdefault(weight.shape[:2], []).append(weight)
        losses, counts = [], []
        for weights in by_shape.values():
            kernels = jnp.stack([symmetry.mean_kernel(weight) for weight in weights])
            largest = jnp.stack([jnp.max(jnp.abs(weight)) for weight in weights])
            negligible = jax.lax.stop_gradient(_EPS * largest)
            losses.append(jnp.sum(symmetry.asymmetry(kernels, self.elements, negligible)))
            counts.append(jnp.sum(jnp.max(jnp.abs(kernels), axis=(1, 2)) > negligible))
        count = functools.reduce(jnp.add, counts).astype(jnp.float32)
        total = functools.reduce(jnp.add, losses)
        return self.loss_weight * total / jnp.where(count > 0, count, 1.0)


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a path ends in the pattern, or after a leading slash equals it."""
    return bool(pattern) and pathlib.PurePosixPath("/" + name).match(pattern)
