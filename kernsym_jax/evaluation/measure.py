"""One pass over labelled images: how a network answers them, shifted and flipped."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from kernsym_jax import symmetry
from kernsym_jax.evaluation import classes, masks
from kernsym_jax.evaluation.classes import Answer, Answers
from kernsym_jax.evaluation.flip import flip, roll_matters
from kernsym_jax.evaluation.masks import MaskAnswers
from kernsym_jax.evaluation.placement import Placement, Predict
from kernsym_jax.evaluation.shift import Shifts, draw_pair, shift


class Kind(Protocol):
    """How answers of one kind are compared: the modules `classes` and `masks`."""

    def require_fit(self, truth: np.ndarray, rest: Answer, shifts: Shifts | None) -> None:
        """Raises `ValueError` if labels and answers do not fit each other."""

    def at_rest(self, rest: Answer, truth: jax.Array) -> dict[str, jax.Array]:
        """What is kept of the answers to a batch as it is, per image."""

    def moved(
        self,
        one: Answer,
        other: Answer,
        truth: jax.Array,
        first: jax.Array,
        difference: jax.Array,
        mode: str,
        view: tuple[int, int],
    ) -> dict[str, jax.Array]:
        """What a comparison of two shifts adds to each image, with its ``share`` of equals."""

    def turned(self, rest: Answer, other: Answer, truth: jax.Array, name: str, rolled: bool) -> Any:
        """What is kept of a comparison with an element of D4, per image."""

    def collected(self, every: Mapping[str, Any], cells: np.ndarray, shifts: Shifts | None) -> Any:
        """The answers of a whole pass."""


def measure(
    predict: Predict,
    batches: Iterable[Mapping[str, Any]],
    shifts: Shifts | None = None,
    flips: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Answers | MaskAnswers:
    """Compares a network's answers to images with those to the same images shifted and flipped.

    The network is compiled once for all offsets and elements and runs on one batch at a time: once
    at rest, once for every further offset (twice for every drawn pair), and up to 13 times for the
    flips, plain and rolled. Device memory holds a few batches, whatever the number of offsets.

    Args:
      predict: maps images (batch, height, width, channels) float32 to logits (batch, classes), or
        of every pixel (batch, height, width, classes). The arrays of a `jax.tree_util.Partial`,
        such as ``Partial(model.apply, variables)``, stay out of the compiled program.
      batches: ``{"image", "label", "weight"}``: normalised float32 images, (batch,) int32 labels or
        (batch, height, width) uint8 masks with ``data.VOID`` where pixels do not count, and, if
        some images do not count, (batch,) weights that are 0 for these.
      shifts: which to compare; those of mode ``crop`` also crop the images at rest.
      flips: whether to compare the elements of D4: eight, or four if images are not square.
      devices: over which a batch is split; by default all of this process.

    Returns:
      The answers to the images that count, in the order of the batches: `Answers` to images with
      labels, `MaskAnswers` to images with masks.

    Raises:
      ValueError: if there are no images, a shift moves them out of sight, a label is beyond the
        logits, or logits are not finite or not of the kind of the labels.
    """
    place, parts, first = Placement(predict, devices or jax.local_devices()), [], 0
    side = len(shifts.differences) if shifts else 0
    cells = np.zeros((3, side * side))
    kind: Kind = classes
    for batch in batches:
        labels = np.asarray(jax.device_get(batch["label"]))
        counts = np.asarray(jax.device_get(batch.get("weight", np.ones(len(labels))))) > 0
        kind = masks if labels.ndim == 3 else classes
        network = place.share(len(labels))
        images, truth = place.split(batch["image"]), place.split(labels)
        rest_images, rest_truth = _at_rest(images, truth, shifts, place)
        rest = _answer(network, rest_images, of_pixels=kind is masks)
        kind.require_fit(labels[counts], rest, shifts)
        found: dict[str, Any] = {"finite": rest["finite"], **kind.at_rest(rest, rest_truth)}
        if shifts is not None:
            whole = (network, images, truth, rest, counts)
            more, found["shift"] = _shifted(kind, *whole, shifts, first, place)
            cells += np.asarray(jax.device_get(more), np.float64)
        if flips:
            found["flips"], found["rolled"] = _flipped(
                kind, network, rest_images, rest_truth, rest, place
            )
        found = jax.device_get(found)
        parts.append(jax.tree.map(lambda column, kept=counts: column[kept], found))
        first += len(labels)
    return kind.collected(_joined(parts), cells.reshape(3, side, side), shifts)


def _at_rest(
    images: jax.Array, truth: jax.Array, shifts: Shifts | None, place: Placement
) -> tuple[jax.Array, jax.Array]:
    """What the network sees without a shift, and the labels of that."""
    if shifts is None:
        return images, truth
    view = shifts.view_size(*images.shape[1:3])
    if shifts.mode != "crop":
        return images, truth
    rest = place.whole(np.zeros(2, np.int32))
    if truth.ndim == 3:
        truth = masks.move(truth, rest, "crop", view)
    return shift(images, rest, "crop", view), truth


@functools.partial(jax.jit, static_argnames="of_pixels")
def _answer(predict: Partial, images: jax.Array, of_pixels: bool) -> dict[str, jax.Array]:
    logits = predict(images)
    wanted = images.shape[: 3 if of_pixels else 1]
    if logits.shape[:-1] != wanted:
        shape = "(batch, height, width, classes)" if of_pixels else "(batch, classes)"
        raise ValueError(
            f"logits are {shape} for images with {'masks' if of_pixels else 'class labels'}, got "
            f"{logits.shape} for {images.shape}"
        )
    return {
        "class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
        "logits": logits,
        "finite": jnp.all(jnp.isfinite(logits), axis=tuple(range(1, logits.ndim))),
    }


def _shifted(
    kind: Kind,
    network: Partial,
    images: jax.Array,
    truth: jax.Array,
    rest: Answer,
    counts: np.ndarray,
    shifts: Shifts,
    first: int,
    place: Placement,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a batch adds to the map, and what its comparisons add up to for each image."""
    side, least = len(shifts.differences), shifts.differences.start
    cells = place.whole(np.zeros((3, side * side), np.float32))
    counted, view = place.split(counts), shifts.view_size(*images.shape[1:3])

    def answer(offset: jax.Array) -> Answer:
        shifted = shift(images, offset, shifts.mode, view)
        return _answer(network, shifted, of_pixels=kind is masks)

    def compared() -> Iterator[tuple[jax.Array, jax.Array, Answer, Answer]]:
        if not shifts.draws:
            rested = place.whole(np.zeros(2, np.int32))
            for offset in shifts.grid:
                own = place.whole(np.array(offset, np.int32))
                # The image at rest agrees with itself; it takes no pass to know.
                yield rested, own, rest, answer(own) if any(offset) else rest
        for draw in range(shifts.draws):
            numbers = place.whole((np.int32(draw), np.int32(first)))
            one, other = draw_pair(shifts, *numbers, len(images))
            yield one, other - one, answer(one), answer(other)

    sums: dict[str, jax.Array] = {}
    for offset, difference, one, other in compared():
        more = kind.moved(one, other, truth, offset, difference, shifts.mode, view)
        cells = _count(cells, difference, more["share"], counted, least=least, side=side)
        sums = _add(sums, more) if sums else more
        place.keep_pace(sums)
    return cells, sums


@functools.partial(jax.jit, static_argnames=("least", "side"))
def _count(
    cells: jax.Array,
    difference: jax.Array,
    share: jax.Array,
    counted: jax.Array,
    least: int,
    side: int,
) -> jax.Array:
    """Adds one comparison of each image to its cell: its share, the square of that, and 1."""
    place = (difference[..., 0] - least) * side + difference[..., 1] - least
    rows = jnp.stack([share, share**2, jnp.ones_like(share)])
    rows = jnp.where(counted.reshape(1, -1), rows, 0)
    return cells.at[:, jnp.broadcast_to(place, share.shape)].add(rows)


@jax.jit
def _add(sums: dict[str, jax.Array], more: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.add, sums, more)


def _flipped(
    kind: Kind,
    network: Partial,
    images: jax.Array,
    truth: jax.Array,
    rest: Answer,
    place: Placement,
) -> tuple[dict[str, Any], dict[str, Any]]:
    size = images.shape[1:3]
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in symmetry.elements(*size):
        for rolled in (False, True):
            if rolled and not roll_matters(name, *size):
                continue
            other: Answer = rest
            if name != "e":
                other = _answer(network, flip(images, name, rolled), of_pixels=kind is masks)
            found[rolled][name] = kind.turned(rest, other, truth, name, rolled)
            place.keep_pace(found[rolled][name])
    return found


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the batches have come to, of all images, in the order of D4."""
    if not any(len(part["finite"]) for part in parts):
        raise ValueError("no images to evaluate on")
    every = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    if not every["finite"].all():
        number = int(np.flatnonzero(~every["finite"])[0])
        raise ValueError(f"the network's logits are not finite, first those of image {number}")
    if "shift" in every:
        every["shift"] = {name: sums.astype(np.float64) for name, sums in every["shift"].items()}
    for flips in ("flips", "rolled"):
        if flips in every:
            # A jitted function hands dictionaries back sorted.
            every[flips] = {
                name: every[flips][name] for name in symmetry.D4 if name in every[flips]
            }
    return every
