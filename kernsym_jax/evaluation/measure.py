"""One pass over labelled images: how a network answers them, shifted and flipped."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from kernsym_jax import symmetry
from kernsym_jax.evaluation.flip import flip, roll_matters
from kernsym_jax.evaluation.placement import Placement, Predict
from kernsym_jax.evaluation.shift import Shifts, draw_pair, shift


class Flips(NamedTuple):
    """How answers survive one element of D4, per image.

    Attributes:
      agrees: (n,) bool, whether the class is the same.
      similarity: (n,) float32, 1 − the total variation between the softmaxes.
    """

    agrees: np.ndarray | jax.Array
    similarity: np.ndarray | jax.Array


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

    def of_class(self, label: int) -> "Answers":
        """The answers to the images of one class; the map stays that of all."""
        chosen = np.flatnonzero(self.labels == label)
        names = ("labels", "correct", "flips", "rolled") + ("shift_agreement",) * bool(self.shifts)
        columns = {name: getattr(self, name) for name in names}
        return dataclasses.replace(self, **jax.tree.map(lambda column: column[chosen], columns))


def measure(
    predict: Predict,
    batches: Iterable[Mapping[str, Any]],
    shifts: Shifts | None = None,
    flips: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Answers:
    """Compares a network's answers to images with those to the same images shifted and flipped.

    The network is compiled once for all offsets and elements and runs on one batch at a time: once
    at rest, once for every further offset (twice for every drawn pair), and up to 13 times for the
    flips, plain and rolled. Device memory holds a few batches, whatever the number of offsets.

    Args:
      predict: maps images (batch, height, width, channels) float32 to logits (batch, classes). The
        arrays of a `jax.tree_util.Partial`, such as ``Partial(model.apply, variables)``, stay out
        of the compiled program.
      batches: ``{"image", "label", "weight"}``: normalised float32 images, (batch,) int32 labels
        and, if some images do not count, (batch,) weights that are 0 for these.
      shifts: which to compare; those of mode ``crop`` also crop the images at rest.
      flips: whether to compare the elements of D4: eight, or four if images are not square.
      devices: over which a batch is split; by default all of this process.

    Returns:
      The answers to the images that count, in the order of the batches.

    Raises:
      ValueError: if there are no images, a shift moves them out of sight, a label is beyond the
        logits, or logits are not finite.
    """
    place, parts, first = Placement(predict, devices or jax.local_devices()), [], 0
    cells = np.zeros((2, len(shifts.differences) ** 2 if shifts else 0), np.int64)
    for batch in batches:
        labels = np.asarray(jax.device_get(batch["label"]), np.int32)
        counts = np.asarray(jax.device_get(batch.get("weight", np.ones(len(labels))))) > 0
        network = place.share(len(labels))
        images = at_rest = place.split(batch["image"])
        if shifts is not None:
            view = shifts.view_size(*images.shape[1:3])
            if shifts.mode == "crop":
                at_rest = shift(images, place.whole(np.zeros(2, np.int32)), "crop", view)
        rest = _answer(network, at_rest)
        _require_labels_fit(labels[counts], rest["softmax"].shape)
        found: dict[str, Any] = {"class": rest["class"], "finite": rest["finite"]}
        if shifts is not None:
            more, found["shift"] = _shifted(network, images, rest, counts, shifts, first, place)
            cells += jax.device_get(more)
        if flips:
            found["flips"], found["rolled"] = _flipped(network, at_rest, rest, place)
        found = {"label": labels, **jax.device_get(found)}
        parts.append(jax.tree.map(lambda column, kept=counts: column[kept], found))
        first += len(labels)
    return _collected(parts, cells, shifts)


@jax.jit
def _answer(predict: Partial, images: jax.Array) -> dict[str, jax.Array]:
    logits = predict(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"logits are (batch, classes), got {logits.shape} for {images.shape}")
    return {
        "class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
        "softmax": jax.nn.softmax(logits.astype(jnp.float32)),
        "finite": jnp.all(jnp.isfinite(logits), axis=-1),
    }


def _shifted(
    network: Partial,
    images: jax.Array,
    rest: Mapping[str, jax.Array],
    counts: np.ndarray,
    shifts: Shifts,
    first: int,
    place: Placement,
) -> tuple[jax.Array, jax.Array]:
    """What a batch adds to the map, and for each image how many comparisons agree."""
    side, least = len(shifts.differences), shifts.differences.start
    cells = place.whole(np.zeros((2, side * side), np.int32))
    agreeing, counted = place.split(np.zeros(len(images), np.int32)), place.split(counts)
    view = shifts.view_size(*images.shape[1:3])

    def classes(offset: jax.Array) -> jax.Array:
        return _answer(network, shift(images, offset, shifts.mode, view))["class"]

    def compared() -> Any:
        if not shifts.draws:
            for offset in shifts.grid:
                own = place.whole(np.array(offset, np.int32))
                # The image at rest agrees with itself; it takes no pass to know.
                yield own, rest["class"], classes(own) if any(offset) else rest["class"]
        for draw in range(shifts.draws):
            numbers = place.whole((np.int32(draw), np.int32(first)))
            one, other = draw_pair(shifts, *numbers, len(images))
            yield other - one, classes(one), classes(other)

    for difference, one, other in compared():
        cells, agreeing = _count(
            cells, agreeing, difference, one == other, counted, least=least, side=side
        )
        place.keep_pace(agreeing)
    return cells, agreeing


@functools.partial(jax.jit, static_argnames=("least", "side"))
def _count(
    cells: jax.Array,
    agreeing: jax.Array,
    difference: jax.Array,
    agrees: jax.Array,
    counted: jax.Array,
    least: int,
    side: int,
) -> tuple[jax.Array, jax.Array]:
    """Adds one comparison of each image to its cell of the map and to its own count."""
    place = (difference[..., 0] - least) * side + difference[..., 1] - least
    place = jnp.broadcast_to(place, agrees.shape)
    rows = jnp.stack([agrees & counted, counted]).astype(jnp.int32)
    return cells.at[:, place].add(rows), agreeing + agrees.astype(jnp.int32)


def _flipped(
    network: Partial, images: jax.Array, rest: Mapping[str, jax.Array], place: Placement
) -> tuple[dict[str, Flips], dict[str, Flips]]:
    size = images.shape[1:3]
    found: tuple[dict[str, Flips], dict[str, Flips]] = ({}, {})
    for name in symmetry.elements(*size):
        for rolled in (False, True):
            if rolled and not roll_matters(name, *size):
                continue
            other = rest if name == "e" else _answer(network, flip(images, name, rolled))
            found[rolled][name] = _compare(rest, other)
            place.keep_pace(found[rolled][name])
    return found


@jax.jit
def _compare(one: Mapping[str, jax.Array], other: Mapping[str, jax.Array]) -> Flips:
    variation = jnp.sum(jnp.abs(one["softmax"] - other["softmax"]), axis=-1) / 2
    return Flips(one["class"] == other["class"], jnp.clip(1 - variation, 0, 1))


def _require_labels_fit(labels: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < shape[1]:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()} do not fit a network of {shape[1]} "
            "classes"
        )


def _collected(
    parts: Sequence[Mapping[str, Any]], cells: np.ndarray, shifts: Shifts | None
) -> Answers:
    if not any(len(part["label"]) for part in parts):
        raise ValueError("no images to evaluate on")
    every = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    if not every["finite"].all():
        number = int(np.flatnonzero(~every["finite"])[0])
        raise ValueError(f"the network's logits are not finite, first those of image {number}")
    side = len(shifts.differences) if shifts else 0
    comparisons = (shifts.draws or len(shifts.grid)) if shifts else 1
    return Answers(
        labels=every["label"],
        correct=every["class"] == every["label"],
        shifts=shifts,
        shift_agreement=every.get("shift", np.zeros(0)) / comparisons,
        map_agreeing=cells[0].reshape(side, side),
        map_compared=cells[1].reshape(side, side),
        flips=_in_order(every.get("flips", {})),
        rolled=_in_order(every.get("rolled", {})),
    )


def _in_order(flips: Mapping[str, Flips]) -> dict[str, Flips]:
    return {name: flips[name] for name in symmetry.D4 if name in flips}
