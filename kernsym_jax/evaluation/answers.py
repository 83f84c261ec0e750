"""A network's answers to a batch of images, and the comparison of two of them.

An answer is one class for each image, or one class for each pixel of an image with a mask. Answers
for pixels are compared where both networks see the same place of the image: the shift or the flip
is undone first, and places that entered from outside are left out. Consistency counts all other
pixels, void ones too, because it needs no mask; figures by class count the pixels of the class in
the mask. Accuracy and intersection over union leave void pixels out.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from kernsym_jax.data import VOID
from kernsym_jax.evaluation.transforms import Shifts, Turn, shift_maps, unflip_by

Answer = Mapping[str, jax.Array]


class Flips(NamedTuple):
    """The agreement of answers under one element of D4, per image.

    Attributes:
      agrees: (n,) bool, whether the class is the same.
      similarity: (n,) float32, 1 − the total variation between the softmaxes.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> answers.flips["fliplr"].agrees
    array([ True,  True,  True,  True])
    """

    agrees: Any
    similarity: Any


class MaskFlips(NamedTuple):
    """The agreement of answers for pixels under one element of D4, undone, per image.

    Attributes:
      agrees: (n,) float32, share of pixels with the same class.
      similarity: (n,) float32, mean over pixels of 1 − the total variation between the softmaxes.
      agrees_by_class: (n, classes) float32, number of pixels of each class in the mask whose answer
        is the same.
      similarity_by_class: (n, classes) float32, sum of the similarities of these pixels.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> def bright_pixels(images):
    ...     return np.concatenate([0.5 - images, images], axis=-1)
    ...
    >>> images = np.eye(4, dtype=np.float32)[None, :, :, None]
    >>> batch = {"image": images, "label": np.eye(4, dtype=np.uint8)[None]}
    >>> answers = evaluation.measure(evaluation.HostFunction(bright_pixels), [batch])
    >>> answers.flips["transpose"].agrees
    array([1.], dtype=float32)
    """

    agrees: Any
    similarity: Any
    agrees_by_class: Any
    similarity_by_class: Any


@dataclasses.dataclass(frozen=True)
class Answers:
    """The results of a pass over n images with class labels.

    Attributes:
      labels: (n,) int32, the true classes.
      correct: (n,) bool, whether the image at rest is classified correctly.
      shifts: the shifts that were compared; None for none.
      shift_agreement: (n,) float64, share of offsets, or of drawn pairs, with the same class; empty
        without shifts.
      map_agreeing: int64 (k, k) over the differences dy and dx of `Shifts.differences`: number of
        comparisons with the same class.
      map_compared: int64 (k, k), number of comparisons.
      flips: element of D4 -> agreement; empty if flips were not compared.
      rolled: the same with the one-pixel roll, for the elements with a roll.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> constant = evaluation.HostFunction(lambda images: np.eye(2)[len(images) * [0]])
    >>> batch = {"image": np.zeros((4, 8, 8, 1), np.float32), "label": np.array([0, 0, 0, 1])}
    >>> answers = evaluation.measure(constant, [batch], evaluation.Shifts("circular", 0, 1))
    >>> answers.correct
    array([ True,  True,  True, False])
    >>> answers.shift_agreement
    array([1., 1., 1., 1.])
    """

    labels: np.ndarray
    correct: np.ndarray
    shifts: Shifts | None
    shift_agreement: np.ndarray
    map_agreeing: np.ndarray
    map_compared: np.ndarray
    flips: dict[str, Flips]
    rolled: dict[str, Flips]

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.labels)

    def of_class(self, label: int) -> "Answers":
        """Returns the answers to the images of one class; the map stays that of all images."""
        chosen = np.flatnonzero(self.labels == label)
        names = ["labels", "correct", "flips", "rolled"]
        if self.shifts is not None:
            names.append("shift_agreement")
        columns = {name: getattr(self, name) for name in names}
        return dataclasses.replace(self, **jax.tree.map(lambda column: column[chosen], columns))


@dataclasses.dataclass(frozen=True)
class MaskAnswers:
    """The results of a pass over n images with masks.

    Attributes:
      confusion: (n, classes, classes) int32, pixels by true class (rows) and answered class, of the
        images at rest.
      shifts: the shifts that were compared; None for none.
      shift_agreement: (n,) float64, mean over offsets, or over drawn pairs, of the share of pixels
        with the same class; empty without shifts.
      shift_by_class: (n, 2, classes) float64, over all comparisons and for each class in the mask:
        pixels with the same answer, and pixels compared; empty without shifts.
      map_agreeing: float64 (k, k) over the differences dy and dx of `Shifts.differences`: sums over
        comparisons of the share of pixels with the same class.
      map_squares: float64 (k, k), sums of the squares of these shares.
      map_compared: int64 (k, k), number of comparisons.
      flips: element of D4 -> agreement; empty if flips were not compared.
      rolled: the same with the one-pixel roll, for the elements with a roll.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> def bright_pixels(images):
    ...     return np.concatenate([0.5 - images, images], axis=-1)
    ...
    >>> images = np.eye(4, dtype=np.float32)[None, :, :, None]
    >>> batch = {"image": images, "label": np.eye(4, dtype=np.uint8)[None]}
    >>> answers = evaluation.measure(evaluation.HostFunction(bright_pixels), [batch])
    >>> answers.confusion[0]
    array([[12,  0],
           [ 0,  4]], dtype=int32)
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
        """The number of images."""
        return len(self.confusion)


@functools.partial(jax.jit, static_argnames="per_pixel")
def answer(predict: Partial, images: jax.Array, *, per_pixel: bool) -> dict[str, jax.Array]:
    """Runs a network on a batch.

    Args:
      predict: maps images to logits.
      images: (batch, height, width, channels) float32.
      per_pixel: whether logits (batch, height, width, classes) are wanted, or (batch, classes).

    Returns:
      As `answer_of` does.

    Raises:
      ValueError: if the logits have another shape.
    """
    return answer_of(predict(images), images.shape, per_pixel=per_pixel)


@functools.partial(jax.jit, static_argnames=("shape", "per_pixel"))
def answer_of(
    logits: jax.Array, shape: tuple[int, ...], *, per_pixel: bool
) -> dict[str, jax.Array]:
    """Reads the answer from a network's logits.

    Args:
      logits: the network's output.
      shape: that of the images, (batch, height, width, channels).
      per_pixel: whether logits (batch, height, width, classes) are wanted, or (batch, classes).

    Returns:
      ``class`` int32 and ``logits``, and ``finite`` (batch,) bool.

    Raises:
      ValueError: if the logits have another shape.
    """
    if logits.shape[:-1] != shape[: 3 if per_pixel else 1]:
        wanted = "(batch, height, width, classes)" if per_pixel else "(batch, classes)"
        raise ValueError(
            f"logits are {wanted} for images with {'masks' if per_pixel else 'class labels'}, got "
            f"{logits.shape} for {shape}"
        )
    return {
        "class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
        "logits": logits,
        "finite": jnp.all(jnp.isfinite(logits), axis=tuple(range(1, logits.ndim))),
    }


def require_fit(truth: np.ndarray, rest: Answer, shifts: Shifts | None) -> None:
    """Checks that labels fit the logits, and that two shifted masks overlap.

    Args:
      truth: (n,) int32 labels or (n, height, width) uint8 masks of the images that count.
      rest: the answers at rest.
      shifts: the shifts to compare.

    Raises:
      ValueError: if they do not.
    """
    classes = rest["logits"].shape[-1]
    if truth.ndim == 1:
        if len(truth) and not 0 <= truth.min() <= truth.max() < classes:
            raise ValueError(
                f"labels from {truth.min()} to {truth.max()} do not fit a network of {classes} "
                "classes"
            )
        return
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
def judge(rest: Answer, truth: jax.Array) -> dict[str, jax.Array]:
    """Compares the answers at rest with the labels or masks.

    Args:
      rest: the answers at rest.
      truth: (batch,) int32 labels or (batch, height, width) uint8 masks.

    Returns:
      ``label`` and ``correct``, or ``confusion``, with a leading axis of images.
    """
    if truth.ndim == 1:
        return {"label": truth, "correct": rest["class"] == truth}
    return {"confusion": confusion_matrix(rest["class"], truth, rest["logits"].shape[-1])}


@functools.partial(jax.jit, static_argnames=("mode", "view"))
def compare_shifted(
    one: Answer,
    other: Answer,
    truth: jax.Array,
    first: jax.Array,
    difference: jax.Array,
    *,
    mode: str,
    view: tuple[int, int],
) -> dict[str, jax.Array]:
    """Compares the answers to two shifts of a batch.

    Args:
      one: the answers to the first shift.
      other: the answers to the second shift.
      truth: (batch,) int32 labels, or (batch, height, width) uint8 masks at rest, as large as the
        images before a crop.
      first: int32 (2,) or (batch, 2), the first shift.
      difference: of the same shape, the second shift minus the first.
      mode: mode of the shifts.
      view: height and width of the network's input.

    Returns:
      ``share`` (batch,) float32: 1 or 0 for equal or different classes of the image, or the share
      of equal pixels among those that both show. For masks also ``by_class`` (batch, 2, classes)
      float32: for each class in the mask the equal pixels, and the pixels that both show.

    Reference: mASSC of Rojas-Gomez et al., "Learnable Polyphase Sampling for Shift Invariant and
    Equivariant Convolutional Networks", NeurIPS 2022.
    """
    if truth.ndim == 1:
        return {"share": (one["class"] == other["class"]).astype(jnp.float32)}
    # Classes count from 1 here: 0 marks places that a shift moved in, and void pixels of a mask.
    back = "circular" if mode == "circular" else "zero"
    returned = shift_maps(other["class"] + 1, -difference, back)
    inside = shift_maps(jnp.ones(truth.shape, jnp.int32), first, mode, view)
    seen = (returned > 0) & (inside > 0)
    same = seen & (returned == one["class"] + 1)
    labels = shift_maps(_from_one(truth), first, mode, view)
    classes = one["logits"].shape[-1]
    by_class = [_by_class(pixels.astype(jnp.float32), labels, classes) for pixels in (same, seen)]
    return {
        "share": jnp.sum(same, (1, 2)) / jnp.sum(seen, (1, 2)),
        "by_class": jnp.stack(by_class, axis=1),
    }


@jax.jit
def compare_flipped(
    rest: Answer, other: Answer, truth: jax.Array, element: Turn
) -> Flips | MaskFlips:
    """Compares the answers at rest with the answers to flipped images.

    Args:
      rest: the answers at rest.
      other: the answers to ``flip_by(images, element)``.
      truth: (batch,) int32 labels or (batch, height, width) uint8 masks.
      element: the element of D4.

    Returns:
      The agreement per image.
    """
    if truth.ndim == 1:
        return Flips(rest["class"] == other["class"], _similarity(rest["logits"], other["logits"]))
    same = unflip_by(other["class"][..., None], element)[..., 0] == rest["class"]
    similar = _similarity(rest["logits"], unflip_by(other["logits"], element))
    labels, classes = _from_one(truth), rest["logits"].shape[-1]
    pixels = same.astype(jnp.float32), similar
    return MaskFlips(
        *(jnp.mean(values, (1, 2)) for values in pixels),
        *(_by_class(values, labels, classes) for values in pixels),
    )


def collect(
    found: Mapping[str, Any], cells: np.ndarray, shifts: Shifts | None
) -> Answers | MaskAnswers:
    """Puts the results of all batches together.

    Args:
      found: the results for all images: those of `judge`; under ``shift`` the sums of those of
        `compare_shifted`; under ``flips`` and ``rolled`` those of `compare_flipped`.
      cells: (3, k, k) float64, over differences: sums of shares, of their squares, comparisons.
      shifts: the shifts that were compared.

    Returns:
      The results, on the host.

    Raises:
      ValueError: if every pixel of the masks is void.
    """
    empty = {"share": np.zeros(0), "by_class": np.zeros(0)}
    sums = {name: np.asarray(s, np.float64) for name, s in found.get("shift", empty).items()}
    common: dict[str, Any] = {
        "shifts": shifts,
        "shift_agreement": sums["share"] / (shifts.comparisons if shifts else 1),
        "map_compared": cells[2].astype(np.int64),
        "flips": found.get("flips", {}),
        "rolled": found.get("rolled", {}),
    }
    if "label" in found:
        return Answers(
            labels=found["label"].astype(np.int32),
            correct=found["correct"],
            map_agreeing=cells[0].astype(np.int64),
            **common,
        )
    if not found["confusion"].any():
        raise ValueError("no pixels to evaluate on: all of the masks are void")
    return MaskAnswers(
        confusion=found["confusion"],
        shift_by_class=sums["by_class"],
        map_agreeing=cells[0],
        map_squares=cells[1],
        **common,
    )


def _similarity(one: jax.Array, other: jax.Array) -> jax.Array:
    """1 − the total variation between the softmaxes of logits (…, classes): (…) float32."""
    p, q = (jax.nn.softmax(logits.astype(jnp.float32)) for logits in (one, other))
    return jnp.clip(1 - jnp.sum(jnp.abs(p - q), axis=-1) / 2, 0, 1)


def _from_one(masks: jax.Array) -> jax.Array:
    return jnp.where(masks == VOID, 0, masks.astype(jnp.int32) + 1)


def _by_class(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Returns sums of values (batch, height, width) over the pixels of each label from 1 on."""
    of_class = labels[..., None] == jnp.arange(1, classes + 1).reshape(1, 1, 1, -1)
    return jnp.sum(jnp.where(of_class, values[..., None], 0), (1, 2))


def confusion_matrix(answers: jax.Array, masks: jax.Array, classes: int) -> jax.Array:
    """Counts the pixels of each true class by the class of the answer.

    Args:
      answers: (batch, height, width) integers, classes.
      masks: (batch, height, width) uint8, true classes; ``data.VOID`` for pixels without a label.
      classes: number of classes, at most 255.

    Returns:
      (batch, classes, classes) int32, true classes in rows.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import evaluation
    >>> answers, masks = jnp.array([[[0, 1, 1]]]), jnp.array([[[0, 0, 1]]], jnp.uint8)
    >>> print(evaluation.confusion_matrix(answers, masks, 2)[0])
    [[1 1]
     [0 1]]
    """
    count = answers.shape[0]
    # A label beyond the classes, such as void, has a one-hot row of zeros, so it does not count.
    true, answered = (
        jax.nn.one_hot(labels.reshape(count, -1), classes, dtype=jnp.float32)
        for labels in (masks, answers)
    )
    return jnp.einsum("npi,npj->nij", true, answered).astype(jnp.int32)
