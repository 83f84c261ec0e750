"""Answers that are a class for every pixel, and how two of them are compared.

Two answers are compared where both networks have seen the same place of the image: the shift or the
element of D4 is undone first, and what has entered from outside does not count. All these pixels
count for consistency, void ones too, since no mask is needed to see whether an answer stays; by
class, those of the class in the mask. For accuracy and intersection over union void pixels are left
out.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.data import VOID
from kernsym_jax.evaluation.classes import Answer, similarity
from kernsym_jax.evaluation.confusion import confusion_matrix
from kernsym_jax.evaluation.flip import unflip
from kernsym_jax.evaluation.shift import Shifts, shift


class MaskFlips(NamedTuple):
    """How answers survive one element of D4, undone, per image.

    Attributes:
      agrees: (n,) float32, share of pixels whose class is the same.
      similarity: (n,) float32, mean over pixels of 1 − the total variation between the softmaxes.
      agrees_by_class: (n, classes) float32, pixels of each class in the mask whose class is the
        same.
      similarity_by_class: (n, classes) float32, sum of the similarities of these pixels.
    """

    agrees: Any
    similarity: Any
    agrees_by_class: Any
    similarity_by_class: Any


@dataclasses.dataclass(frozen=True)
class MaskAnswers:
    """What a pass over n images with masks has found.

    Attributes:
      confusion: (n, classes, classes) int32, pixels of each true class in rows that are answered as
        each class, of the images at rest.
      shifts: which were compared; ``None`` for none.
      shift_agreement: (n,) float64, mean over offsets, or over drawn pairs, of the share of pixels
        with the same class; empty without shifts.
      shift_by_class: (n, 2, classes) float64, over all comparisons: the pixels of each class in the
        mask with the same class, and all of them; empty without shifts.
      map_agreeing: float64 (k, k) over the differences dy and dx of `Shifts.differences`: sums over
        comparisons of the share of pixels with the same class.
      map_squares: float64 (k, k), sums of the squares of these shares.
      map_compared: int64 (k, k), all comparisons.
      flips: by element of D4; empty if none were asked for.
      rolled: the same with the one-pixel roll, of the elements for which it matters.
    """

    confusion: np.ndarray
    shifts: Shifts | None
    shift_agreement: np.ndarray
    shift_by_class: np.ndarray
    map_agreeing: np.ndarray
    map_squares: np.ndarray
    map_compared: np.ndarray
    flips: dict[str, MaskFlips]
    rolled: dict[str, MaskFlips]

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.confusion)


@functools.partial(jax.jit, static_argnames=("mode", "view"))
def move(
    maps: jax.Array, offset: jax.Array, mode: str, view: tuple[int, int] | None = None
) -> jax.Array:
    """Does to maps (batch, height, width) what `shift` does to images."""
    return shift(maps[..., None], offset, mode, view)[..., 0]


def require_fit(truth: np.ndarray, rest: Answer, shifts: Shifts | None) -> None:
    """Raises `ValueError` if labels and logits do not fit, or two shifts share no pixel."""
    classes = rest["logits"].shape[-1]
    if classes > VOID:
        raise ValueError(f"masks have at most {VOID} classes, got a network of {classes}")
    labels = truth[truth != VOID]
    if len(labels) and labels.max() >= classes:
        raise ValueError(
            f"masks with labels from {labels.min()} to {labels.max()} do not fit a network of "
            f"{classes} classes"
        )
    if shifts is None or shifts.mode == "circular":
        return
    apart = max(shifts.high, 0) - min(shifts.low, 0) if shifts.draws else shifts.reach
    height, width = rest["class"].shape[1:]
    if apart >= min(height, width):
        raise ValueError(
            f"answers of {height}×{width} pixels whose shifts differ by up to {apart} may have no "
            "pixel in common"
        )


@jax.jit
def at_rest(rest: Answer, truth: jax.Array) -> dict[str, jax.Array]:
    """What is kept of the answers to a batch as it is.

    Args:
      rest: the answers, ``class`` (batch, height, width) and ``logits`` of another axis of classes.
      truth: (batch, height, width) uint8.

    Returns:
      Arrays with a leading axis of images.
    """
    return {"confusion": confusion_matrix(rest["class"], truth, rest["logits"].shape[-1])}


@functools.partial(jax.jit, static_argnames=("mode", "view"))
def moved(
    one: Answer,
    other: Answer,
    truth: jax.Array,
    first: jax.Array,
    difference: jax.Array,
    mode: str,
    view: tuple[int, int],
) -> dict[str, jax.Array]:
    """Compares the answers to two shifts of a batch where both see the same place.

    Args:
      one: the answers to the first shift.
      other: those to the second.
      truth: (batch, height, width) uint8, the masks at rest, as large as the images before a crop.
      first: int32 (2,) or (batch, 2), the first shift.
      difference: of the same shape, the second minus the first.
      mode: of the shifts.
      view: what the network sees of the images.

    Returns:
      ``share`` (batch,) float32, of the pixels that both see whose class is the same, and
      ``by_class`` (batch, 2, classes) float32, how many these are of each class in the mask, and
      how many both see.

    Reference: mASSC of Rojas-Gomez et al., "Learnable Polyphase Sampling for Shift Invariant and
    Equivariant Convolutional Networks", NeurIPS 2022.
    """
    # Numbered from 1: 0 is what a shift has brought in from outside, and void in a mask.
    back = "circular" if mode == "circular" else "zero"
    returned = move(other["class"] + 1, -difference, back)
    inside = move(jnp.ones(truth.shape, jnp.int32), first, mode, view)
    seen = (returned > 0) & (inside > 0)
    same = seen & (returned == one["class"] + 1)
    labels = move(_from_one(truth), first, mode, view)
    classes = one["logits"].shape[-1]
    by_class = [_by_class(pixels.astype(jnp.float32), labels, classes) for pixels in (same, seen)]
    return {
        "share": jnp.sum(same, (1, 2)) / jnp.sum(seen, (1, 2)),
        "by_class": jnp.stack(by_class, axis=1),
    }


@functools.partial(jax.jit, static_argnames=("name", "rolled"))
def turned(rest: Answer, other: Answer, truth: jax.Array, name: str, rolled: bool) -> MaskFlips:
    """Compares the answers to a batch as it is with those under an element of D4, undone.

    Args:
      rest: the answers to the images as they are.
      other: those to ``flip(images, name, rolled)``.
      truth: (batch, height, width) uint8.
      name: of the element.
      rolled: whether it came with the one-pixel roll.

    Returns:
      The shares of all pixels and the sums over those of each class, per image.
    """
    same = unflip(other["class"][..., None], name, rolled)[..., 0] == rest["class"]
    alike = similarity(rest["logits"], unflip(other["logits"], name, rolled))
    labels, classes = _from_one(truth), rest["logits"].shape[-1]
    pixels = same.astype(jnp.float32), alike
    return MaskFlips(
        *(jnp.mean(values, (1, 2)) for values in pixels),
        *(_by_class(values, labels, classes) for values in pixels),
    )


def collected(every: Mapping[str, Any], cells: np.ndarray, shifts: Shifts | None) -> MaskAnswers:
    """The answers of a whole pass.

    Args:
      every: what `at_rest`, `moved` and `turned` have kept, of all images.
      cells: (3, k, k) float64, over differences: sums of shares, of their squares, comparisons.
      shifts: which were compared.

    Returns:
      The answers, on the host.

    Raises:
      ValueError: if every pixel of the masks is void.
    """
    if not every["confusion"].any():
        raise ValueError("no pixels to evaluate on: all of the masks are void")
    kept = every.get("shift", {"share": np.zeros(0), "by_class": np.zeros(0)})
    return MaskAnswers(
        confusion=every["confusion"],
        shifts=shifts,
        shift_agreement=kept["share"] / (shifts.comparisons if shifts else 1),
        shift_by_class=kept["by_class"],
        map_agreeing=cells[0],
        map_squares=cells[1],
        map_compared=cells[2].astype(np.int64),
        flips=every.get("flips", {}),
        rolled=every.get("rolled", {}),
    )


def _from_one(masks: jax.Array) -> jax.Array:
    return jnp.where(masks == VOID, 0, masks.astype(jnp.int32) + 1)


def _by_class(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Sums of values (batch, height, width) over the pixels of each label from 1 on."""
    of_class = labels[..., None] == jnp.arange(1, classes + 1).reshape(1, 1, 1, -1)
    return jnp.sum(jnp.where(of_class, values[..., None], 0), (1, 2))
