"""One pass over labelled images, at rest, shifted and flipped, and the counts of its pixels."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from kernsym_jax import symmetry
from kernsym_jax.evaluation.answers import (
    Answer,
    Answers,
    MaskAnswers,
    answer,
    answer_of,
    collect,
    compare_flipped,
    compare_shifted,
    judge,
    require_fit,
)
from kernsym_jax.evaluation.transforms import (
    Shifts,
    draw_pair,
    flip_by,
    roll_matters,
    shift,
    shift_maps,
    turn,
)

Predict = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class HostFunction:
    """A function for `measure` that JAX cannot trace, such as NumPy code or another framework.

    Attributes:
      function: maps images (batch, height, width, channels) float32 to logits (batch, classes), or
        of every pixel (batch, height, width, classes); both are NumPy arrays.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> function = evaluation.HostFunction(lambda images: images.mean((1, 2)))
    >>> function(np.ones((2, 4, 4, 3))).shape
    (2, 3)
    """

    function: Callable[[np.ndarray], Any]

    def __call__(self, images: Any) -> np.ndarray:
        """Returns the logits, float32."""
        logits = np.asarray(self.function(np.asarray(images)))
        # `measure` reports numbers that are too large for float32.
        with np.errstate(over="ignore"):
            return logits.astype(np.float32)


# The most passes of the network at once; each holds a batch in device memory.
_AHEAD = 2


def measure(
    predict: Predict | HostFunction,
    batches: Iterable[Mapping[str, Any]],
    shifts: Shifts | None = None,
    *,
    flips: bool = True,
    rolled: bool = True,
    devices: Sequence[jax.Device] | None = None,
    before_pass: Callable[[], None] | None = None,
) -> Answers | MaskAnswers:
    """Compares a network's answers to images with its answers to the shifted and flipped images.

    The network is compiled once for all offsets and elements and runs on one batch at a time: once
    at rest, once for every further offset (twice for every drawn pair), and up to 13 times for the
    flips, plain and rolled. Device memory holds a few batches, whatever the number of offsets.

    Args:
      predict: maps images (batch, height, width, channels) float32 to logits (batch, classes), or
        of every pixel (batch, height, width, classes). The arrays of a `jax.tree_util.Partial`,
        such as ``Partial(model.apply, variables)``, stay out of the compiled program. A
        `HostFunction` is called and not compiled.
      batches: ``{"image", "label", "weight"}``: normalised float32 images, (batch,) int32 labels or
        (batch, height, width) uint8 masks with ``data.VOID`` for pixels without a label, and, if
        some images do not count, (batch,) weights that are 0 for these.
      shifts: the shifts to compare; ``crop`` crops the images at rest too.
      flips: whether to compare the elements of D4: eight, or four if images are not square.
      rolled: whether to compare flips with the one-pixel roll too.
      devices: devices that share each batch; all devices of this process by default.
      before_pass: called before every pass of the network; an exception from it ends the
        measurement.

    Returns:
      The answers to the images that count, in the order of the batches: `Answers` for images with
      labels, `MaskAnswers` for images with masks.

    Raises:
      ValueError: if there are no images, a shift moves them out of sight, a label is beyond the
        logits, or logits are not finite or not of the kind of the labels.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> images = np.zeros((2, 4, 4, 1), np.float32)
    >>> images[1, 0, 0] = 16.0
    >>> def brightness(images):  # two classes: dark and bright
    ...     return images.mean((1, 2, 3))[:, None] * [0, 1] + [0.5, 0]
    ...
    >>> batch = {"image": images, "label": np.array([0, 1], np.int32)}
    >>> network, shifts = evaluation.HostFunction(brightness), evaluation.Shifts("zero", -1, 0)
    >>> answers = evaluation.measure(network, [batch], shifts)
    >>> answers.correct, answers.shift_agreement  # the corner leaves in three of four shifts
    (array([ True,  True]), array([1.  , 0.25]))
    """
    network = _Network(predict, devices or jax.local_devices(), before_pass)
    parts: list[Any] = []
    first, side = 0, len(shifts.differences) if shifts else 0
    cells = np.zeros((3, side * side))
    for batch in batches:
        labels = np.asarray(jax.device_get(batch["label"]))
        counts = np.asarray(jax.device_get(batch.get("weight", np.ones(len(labels))))) > 0
        network.fit(labels)
        images, truth = network.split(batch["image"]), network.split(labels)
        rest_images, rest_truth = _at_rest(images, truth, shifts, network)
        rest = network.answer(rest_images)
        require_fit(labels[counts], rest, shifts)
        found: dict[str, Any] = {"finite": rest["finite"], **judge(rest, rest_truth)}
        if shifts is not None:
            more, found["shift"] = _shifted(
                network, images, truth, rest, counts, shifts=shifts, first=first
            )
            cells += np.asarray(jax.device_get(more), np.float64)
        if flips:
            found["flips"], found["rolled"] = _flipped(
                network, rest_images, rest_truth, rest, rolled=rolled
            )
        found = jax.device_get(found)
        parts.append(jax.tree.map(lambda column, kept=counts: column[kept], found))
        first += len(labels)
    return collect(_joined(parts), cells.reshape(3, side, side), shifts)


class _Network:
    """A network whole on every device, the batches split over the devices, and their pace.

    Args:
      predict: maps images to logits.
      devices: devices to use; a batch that they cannot share evenly is split over fewer of them.
      before_pass: called before every pass.
    """

    def __init__(
        self,
        predict: Predict | HostFunction,
        devices: Sequence[jax.Device],
        before_pass: Callable[[], None] | None,
    ) -> None:
        self._on_host = predict if isinstance(predict, HostFunction) else None
        self._predict = predict if isinstance(predict, Partial) else Partial(predict)
        self._devices, self._before_pass = list(devices), before_pass
        self._running: collections.deque[Any] = collections.deque(maxlen=_AHEAD)
        self._per_pixel = False
        self._use(len(self._devices))

    def fit(self, labels: np.ndarray) -> None:
        """Chooses the devices that share a batch with these labels evenly."""
        self._per_pixel = labels.ndim == 3
        count = math.gcd(len(labels), len(self._devices))
        if count != self._mesh.size:
            self._use(count)

    def answer(self, images: jax.Array) -> dict[str, jax.Array]:
        """Runs one pass."""
        if self._before_pass is not None:
            self._before_pass()
        if self._on_host is None:
            return answer(self._placed, images, per_pixel=self._per_pixel)
        logits = self._on_host(images)
        # Logits of another length raise an error below.
        placed = self.split(logits) if len(logits) == len(images) else jnp.asarray(logits)
        return answer_of(placed, images.shape, per_pixel=self._per_pixel)

    def split(self, array: Any) -> jax.Array:
        """Splits an array over the devices along its first axis."""
        return jax.device_put(array, NamedSharding(self._mesh, PartitionSpec("data")))

    def whole(self, tree: Any) -> Any:
        """Copies arrays to every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def keep_pace(self, result: Any) -> None:
        """Waits for the pass before last, so that few batches are in device memory."""
        if len(self._running) == _AHEAD:
            jax.block_until_ready(self._running[0])
        self._running.append(result)

    def _use(self, count: int) -> None:
        self._mesh = Mesh(np.array(self._devices[:count]), ("data",))
        self._placed = self.whole(self._predict)


def _at_rest(
    images: jax.Array, truth: jax.Array, shifts: Shifts | None, network: _Network
) -> tuple[jax.Array, jax.Array]:
    """Returns the network's input without a shift, and its labels."""
    if shifts is None:
        return images, truth
    view = shifts.view_size(*images.shape[1:3])
    if shifts.mode != "crop":
        return images, truth
    rest = network.whole(np.zeros(2, np.int32))
    if truth.ndim == 3:
        truth = shift_maps(truth, rest, "crop", view)
    return shift(images, rest, "crop", view), truth


def _shifted(
    network: _Network,
    images: jax.Array,
    truth: jax.Array,
    rest: Answer,
    counts: np.ndarray,
    *,
    shifts: Shifts,
    first: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what a batch adds to the cells of the map, and each image's sums over comparisons."""
    side, least = len(shifts.differences), shifts.differences.start
    cells = network.whole(np.zeros((3, side * side), np.float32))
    counted, view = network.split(counts), shifts.view_size(*images.shape[1:3])

    def answer_to(offset: jax.Array) -> Answer:
        return network.answer(shift(images, offset, shifts.mode, view))

    def compared() -> Iterator[tuple[jax.Array, jax.Array, Answer, Answer]]:
        if not shifts.draws:
            rested = network.whole(np.zeros(2, np.int32))
            for offset in shifts.grid:
                own = network.whole(np.array(offset, np.int32))
                # The image at rest agrees with itself, so this comparison needs no pass.
                yield rested, own, rest, answer_to(own) if any(offset) else rest
        for draw in range(shifts.draws):
            numbers = network.whole((np.int32(draw), np.int32(first)))
            one, other = draw_pair(shifts, *numbers, len(images))
            yield one, other - one, answer_to(one), answer_to(other)

    sums: dict[str, jax.Array] = {}
    for offset, difference, one, other in compared():
        more = compare_shifted(one, other, truth, offset, difference, mode=shifts.mode, view=view)
        cells = _count(cells, difference, more["share"], counted, least=least, side=side)
        sums = _add(sums, more) if sums else more
        network.keep_pace(sums)
    return cells, sums


@functools.partial(jax.jit, static_argnames=("least", "side"))
def _count(
    cells: jax.Array,
    difference: jax.Array,
    share: jax.Array,
    counted: jax.Array,
    *,
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
    network: _Network, images: jax.Array, truth: jax.Array, rest: Answer, *, rolled: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the agreement under each element, plain and with the one-pixel roll."""
    size = images.shape[1:3]
    plain: dict[str, Any] = {}
    with_roll: dict[str, Any] = {}
    for name in symmetry.elements(*size):
        for roll, found in ((False, plain), (True, with_roll)):
            if roll and not (rolled and roll_matters(name, *size)):
                continue
            element = network.whole(turn(name, *size, rolled=roll))
            other = rest
            if name != "e":
                other = network.answer(flip_by(images, element))
            found[name] = compare_flipped(rest, other, truth, element)
            network.keep_pace(found[name])
    return plain, with_roll


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the results of the batches, concatenated over images, flips in the order of D4."""
    if not any(len(part["finite"]) for part in parts):
        raise ValueError("no images to evaluate on")
    found = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    if not found["finite"].all():
        number = int(np.flatnonzero(~found["finite"])[0])
        raise ValueError(f"the network's logits are not finite, first those of image {number}")
    for flips in ("flips", "rolled"):
        if flips in found:
            # `jax.tree.map` sorts the keys of dictionaries.
            found[flips] = {
                name: found[flips][name] for name in symmetry.D4 if name in found[flips]
            }
    return found


def margins(confusion: Any) -> np.ndarray:
    """Reduces confusion matrices to the counts that accuracy and intersection over union need.

    Args:
      confusion: (…, classes, classes), true classes in rows.

    Returns:
      (…, 3, classes): for each class the correct pixels, the pixels in the masks, and the pixels in
      the answers.

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> evaluation.margins(np.array([[6, 2], [0, 8]]))
    array([[ 6,  8],
           [ 8,  8],
           [ 6, 10]])
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

    >>> import numpy as np
    >>> from kernsym_jax import evaluation
    >>> confusion = np.array([[6, 2], [0, 8]])
    >>> print(evaluation.class_iou(evaluation.margins(confusion)))  # 6 of 8, and 8 of 10
    [0.75 0.8 ]
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
