"""Answers that are one class for an image, and how two of them are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.evaluation.shift import Shifts

Answer = Mapping[str, jax.Array]


class Flips(NamedTuple):
    """How answers survive one element of D4, per image.

    Attributes:
      agrees: (n,) bool, whether the class is the same.
      similarity: (n,) float32, 1 − the total variation between the softmaxes.
    """

    agrees: Any
    similarity: Any


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a pass over n images has found.

    Attributes:
      labels: (n,) int32, the true classes.
      correct: (n,) bool, whether the image at rest is classified correctly.
      shifts: which were compared; ``None`` for none.
      shift_agreement: (n,) float64, share of offsets, or of drawn pairs, with the same class; empty
        without shifts.
      map_agreeing: int64 (k, k) over the differences dy and dx of `Shifts.differences`: comparisons
        with the same class.
      map_compared: int64 (k, k), all comparisons.
      flips: by element of D4; empty if none were asked for.
      rolled: the same with the one-pixel roll, of the elements for which it matters.
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
        """How many there are."""
        return len(self.labels)

    def of_class(self, label: int) -> "Answers":
        """The answers to the images of one class; the map stays that of all."""
        chosen = np.flatnonzero(self.labels == label)
        names = ("labels", "correct", "flips", "rolled") + ("shift_agreement",) * bool(self.shifts)
        columns = {name: getattr(self, name) for name in names}
        return dataclasses.replace(self, **jax.tree.map(lambda column: column[chosen], columns))


def require_fit(truth: np.ndarray, rest: Answer, shifts: Shifts | None) -> None:
    """Raises `ValueError` if a label of those that count, (n,) int32, is beyond the logits."""
    del shifts
    classes = rest["logits"].shape[-1]
    if len(truth) and not 0 <= truth.min() <= truth.max() < classes:
        raise ValueError(
            f"labels from {truth.min()} to {truth.max()} do not fit a network of {classes} classes"
        )


@jax.jit
def at_rest(rest: Answer, truth: jax.Array) -> dict[str, jax.Array]:
    """What is kept of the answers to a batch as it is.

    Args:
      rest: the answers, ``class`` (batch,) and ``logits`` (batch, classes).
      truth: (batch,) int32.

    Returns:
      Arrays with a leading axis of images.
    """
    return {"label": truth, "correct": rest["class"] == truth}


def moved(
    one: Answer,
    other: Answer,
    truth: jax.Array,
    first: jax.Array,
    difference: jax.Array,
    mode: str,
    view: tuple[int, int],
) -> dict[str, jax.Array]:
    """Compares the answers to two shifts of a batch; a class does not move with its image.

    Returns:
      ``share`` (batch,) float32, of each answer that is the same: all or nothing.
    """
    del truth, first, difference, mode, view
    return _same(one, other)


@jax.jit
def _same(one: Answer, other: Answer) -> dict[str, jax.Array]:
    return {"share": (one["class"] == other["class"]).astype(jnp.float32)}


def turned(rest: Answer, other: Answer, truth: jax.Array, name: str, rolled: bool) -> Flips:
    """Compares the answers to a batch as it is with those under an element of D4."""
    del truth, name, rolled
    return _compare(rest, other)


@jax.jit
def _compare(one: Answer, other: Answer) -> Flips:
    return Flips(one["class"] == other["class"], similarity(one["logits"], other["logits"]))


def similarity(one: jax.Array, other: jax.Array) -> jax.Array:
    """1 − the total variation between the softmaxes of logits (…, classes): (…) float32."""
    p, q = (jax.nn.softmax(logits.astype(jnp.float32)) for logits in (one, other))
    return jnp.clip(1 - jnp.sum(jnp.abs(p - q), axis=-1) / 2, 0, 1)


def collected(every: Mapping[str, Any], cells: np.ndarray, shifts: Shifts | None) -> Answers:
    """The answers of a whole pass.

    Args:
      every: what `at_rest`, `moved` and `turned` have kept, of all images.
      cells: (3, k, k) float64, over differences: sums of shares, of their squares, comparisons.
      shifts: which were compared.

    Returns:
      The answers, on the host.
    """
    shares = every.get("shift", {"share": np.zeros(0)})["share"]
    return Answers(
        labels=every["label"].astype(np.int32),
        correct=every["correct"],
        shifts=shifts,
        shift_agreement=shares / (shifts.comparisons if shifts else 1),
        map_agreeing=cells[0].astype(np.int64),
        map_compared=cells[2].astype(np.int64),
        flips=every.get("flips", {}),
        rolled=every.get("rolled", {}),
    )
