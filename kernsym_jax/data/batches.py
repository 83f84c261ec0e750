"""Batches, from the device or streamed: a pure function of (seed, epoch, step)."""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kernsym_jax.data.decode import DRAWS, BrokenImage
from kernsym_jax.data.generated import Purpose, permutation, uniforms
from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.reading import Reader

# Batches that wait on the device for the step.
_ON_DEVICE = 2

Batch = dict[str, jax.Array]
Example = dict[str, np.ndarray | np.generic]
Place = Callable[[np.ndarray], jax.Array]


class DataBackend(Protocol):
    """The devices and processes that a data set hands its batches to.

    >>> import types
    >>> import jax
    >>> from kernsym_jax import data
    >>> place = dict.fromkeys(("replicate", "shard", "shard_train"), jax.device_put)
    >>> alone = types.SimpleNamespace(process_index=0, process_count=1, parts=1, **place)
    >>> alone.members, alone.seeds = 0, (0,)
    >>> batches = data.DeviceBatches(data.load("digits", "train"), 32, alone)
    >>> batches.steps_per_epoch
    44
    """

    @property
    def members(self) -> int:
        """Number of networks that train as one program; 0 for one network without that axis."""

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of the order of each network's batches."""

    @property
    def parts(self) -> int:
        """Devices that share a batch."""

    @property
    def process_index(self) -> int:
        """Index of this process."""

    @property
    def process_count(self) -> int:
        """Processes that share every batch."""

    def replicate(self, tree: Any) -> Any:
        """Puts host arrays on all devices."""

    def shard(self, tree: Any) -> Any:
        """Puts this process's part of a batch on the devices, as a part of the whole batch."""

    def shard_train(self, tree: Any) -> Any:
        """Does the same for a training batch, which has an axis of members if there are members."""


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order of the images in one epoch.

    Args:
      seed: of the run.
      epoch: from 0.
      size: number of images.

    Returns:
      (size,) int32, a permutation; the same on every machine and with every version of NumPy.

    >>> from kernsym_jax import data
    >>> [data.epoch_order(seed=0, epoch=epoch, size=6).tolist() for epoch in (0, 1)]
    [[0, 2, 1, 5, 4, 3], [5, 3, 2, 4, 1, 0]]
    """
    return permutation(size, Purpose.ORDER, seed, epoch)


class DeviceBatches:
    """Training batches from a set that lies on the device as bytes.

    Every epoch shows each image at most once, in an order of its own. The last images of an epoch
    are left out if they do not fill a batch.

    Args:
      images: the training set.
      batch_size: images per step of one network, over all processes.
      backend: the devices and processes that share the batches. If it has members, batches have a
        leading axis of members, each with the order of its seed.

    Attributes:
      steps_per_epoch: full batches in an epoch.
      waited: seconds that callers have spent waiting for a batch so far.

    Raises:
      ValueError: if the set is smaller than a batch, or the processes cannot share a batch evenly.

    >>> from kernsym_jax import data, training
    >>> from kernsym_jax.training.backend import choose_backend
    >>> backend = choose_backend(training.resolve({}))
    >>> batches = data.DeviceBatches(data.load("digits", "train"), 32, backend)
    >>> first = next(batches.start(step=0))
    >>> first["image"].shape, batches.steps_per_epoch
    ((32, 8, 8, 1), 44)
    """

    def __init__(self, images: ImageSet, batch_size: int, backend: DataBackend) -> None:
        if not 0 < batch_size <= len(images):
            raise ValueError(
                f"a set of {len(images)} training images fills no batch of {batch_size}"
            )
        self.steps_per_epoch, self.waited = len(images) // batch_size, 0.0
        self._part = _process_part(batch_size, backend.process_index, backend.process_count)
        self._size, self._batch_size, self._backend = len(images), batch_size, backend
        self._images = backend.replicate(images.images)
        self._labels = backend.replicate(images.labels)
        self._take = jax.jit(_take)

    def start(self, step: int) -> Generator[Batch, None, None]:
        """Yields the batches from a step on, without end.

        Args:
          step: number of completed steps.

        Yields:
          ``{"image": (batch, height, width, channels) uint8, "label": (batch,) int32 or (batch,
          height, width) uint8}``, with a leading axis of members if the backend has members.
        """
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            asked = time.perf_counter()
            order = self._order(epoch)
            for index in range(first, self.steps_per_epoch):
                start = index * self._batch_size
                chosen = order[..., start + self._part.start : start + self._part.stop]
                batch = self._take(self._images, self._labels, self._backend.shard_train(chosen))
                self.waited += time.perf_counter() - asked
                yield batch
                asked = time.perf_counter()
                step += 1

    def _order(self, epoch: int) -> np.ndarray:
        orders = [epoch_order(seed, epoch, self._size) for seed in self._backend.seeds]
        return np.stack(orders) if self._backend.members else orders[0]


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    shard: Place,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Yields every image once; the last batch is filled up with images of weight 0.

    Args:
      images: the set.
      batch_size: images per batch, the filling included, over all processes.
      shard: puts this process's part of a batch on the devices, as a part of the whole batch.
      process_index: index of this process.
      process_count: processes that share every batch.

    Yields:
      ``{"image", "label", "weight": (batch,) float32}``.

    Raises:
      ValueError: if the processes cannot share a batch evenly.

    >>> import numpy as np
    >>> from kernsym_jax import data
    >>> images = data.ImageSet(np.zeros((5, 8, 8, 1), np.uint8), np.zeros(5, np.int32), ("zero",))
    >>> batches = data.evaluation_batches(images, 4, shard=np.asarray)
    >>> [batch["weight"].tolist() for batch in batches]
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    """
    part = _process_part(batch_size, process_index, process_count)
    for start in range(0, len(images), batch_size):
        chosen = np.arange(start + part.start, start + part.stop)
        inside = chosen < len(images)
        chosen = np.where(inside, chosen, 0)
        yield {
            "image": shard(images.images[chosen]),
            "label": shard(images.labels[chosen]),
            "weight": shard(inside.astype(np.float32)),
        }


class StreamBatches:
    """Training batches that are read, decoded and sent to the devices before they are used.

    The images, their order and their windows are pure functions of (seed, epoch, step). The order
    is that of `DeviceBatches`. A window depends only on the seed and its position in the run.

    Args:
      reader: of the training set.
      batch_size: images per step of one network, over all processes.
      backend: the devices and processes that share the batches, and the seeds of order and windows.
        If it has members, batches have a leading axis of members.
      workers: further processes that read and decode; 0 for threads of this process.

    Attributes:
      steps_per_epoch: full batches in an epoch.
      waited: seconds that callers have spent waiting for a batch so far.

    Raises:
      ValueError: if the set is smaller than a batch, or the processes cannot share a batch evenly.
    """

    def __init__(
        self, reader: Reader, batch_size: int, backend: DataBackend, *, workers: int = 0
    ) -> None:
        if not 0 < batch_size <= len(reader):
            raise ValueError(
                f"a set of {len(reader)} training images fills no batch of {batch_size}"
            )
        self.steps_per_epoch, self.waited = len(reader) // batch_size, 0.0
        part = _process_part(batch_size, backend.process_index, backend.process_count)
        self._members = (backend.members,) if backend.members else ()
        self._examples = _TrainExamples(reader, batch_size, tuple(backend.seeds), part)
        self._own, self._workers = part.stop - part.start, workers
        self._shard = backend.shard_train

    def start(self, step: int) -> Generator[Batch, None, None]:
        """Yields the batches from a step on, without end.

        Args:
          step: number of completed steps.

        Yields:
          ``{"image": (batch, height, width, channels) uint8, "label": (batch,) int32 or (batch,
          height, width) uint8}``, with a leading axis of members if the backend has members.
        """
        per_step = self._own * len(self._examples.seeds)

        def place(batch: dict[str, np.ndarray]) -> Batch:
            shape = (*self._members, self._own)
            return {
                name: self._shard(array.reshape(*shape, *array.shape[1:]))
                for name, array in batch.items()
            }

        batches = _batches(
            self._examples, range(step * per_step, sys.maxsize), per_step, place, self._workers
        )
        try:
            while True:
                asked = time.perf_counter()
                batch = next(batches)
                self.waited += time.perf_counter() - asked
                yield batch
        finally:
            batches.close()


def stream_evaluation(
    reader: Reader, batch_size: int, backend: DataBackend, *, workers: int = 0
) -> Generator[Batch, None, None]:
    """Yields every image once; the last batch is filled up with images of weight 0.

    Args:
      reader: of the set.
      batch_size: images per batch, the filling included, over all processes.
      backend: the devices and processes that share the batches.
      workers: further processes that read and decode; 0 for threads of this process.

    Yields:
      ``{"image", "label", "weight": (batch,) float32}``; skipped images have weight 0.

    Raises:
      ValueError: if the processes cannot share a batch evenly.
    """
    part = _process_part(batch_size, backend.process_index, backend.process_count)
    own = part.stop - part.start
    batch_count = -(-len(reader) // batch_size)

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return {name: backend.shard(array) for name, array in batch.items()}

    examples = _EvalExamples(reader, batch_size, part)
    batches = _batches(examples, range(batch_count * own), own, place, workers)
    try:
        yield from batches
    finally:
        batches.close()


class _TrainExamples:
    """The training image at a position of this process; can be sent to another process."""

    def __init__(
        self, reader: Reader, batch_size: int, seeds: tuple[int, ...], part: slice
    ) -> None:
        self.reader, self.batch_size, self.seeds, self.part = reader, batch_size, seeds, part

    def __call__(self, position: int) -> Example:
        own, members, size = self.part.stop - self.part.start, len(self.seeds), len(self.reader)
        step, rest = divmod(position, own * members)
        member, slot = divmod(rest, own)
        epoch, index = divmod(step, size // self.batch_size)
        place = index * self.batch_size + self.part.start + slot
        chosen = int(_order(self.seeds[member], epoch, size)[place])
        draws = None
        if self.reader.view.crop_size:
            draws = uniforms((DRAWS,), Purpose.CROP, self.seeds[member], epoch * size + place)
        image, label = self.reader.read_or_next(chosen, draws)
        return {"image": image, "label": label}


class _EvalExamples:
    """The test image at a position of this process; can be sent to another process."""

    def __init__(self, reader: Reader, batch_size: int, part: slice) -> None:
        self.reader, self.batch_size, self.part = reader, batch_size, part

    def __call__(self, position: int) -> Example:
        step, slot = divmod(position, self.part.stop - self.part.start)
        index = step * self.batch_size + self.part.start + slot
        weight = np.float32(index < len(self.reader))
        try:
            image, label = self.reader.read(index if weight else 0)
        except BrokenImage:
            if self.reader.on_broken == "fail":
                raise
            # The next readable image fills its place and does not count.
            weight = np.float32(0)
            image, label = self.reader.read_or_next(index)
        return {"image": image, "label": label, "weight": weight}


def _batches(
    examples: Callable[[int], Example],
    positions: range,
    size: int,
    place: Callable[[dict[str, np.ndarray]], Batch],
    workers: int,
) -> Generator[Batch, None, None]:
    import grain

    threads = os.cpu_count() or 1
    reading = grain.ReadOptions(threads, max(2 * size, threads))
    stream = grain.MapDataset.range(positions.start, positions.stop).map(examples)
    stream = stream.to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads a flag of its own; in a program without flags it has its default.
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(2 * size // workers, 1)
            )
        )
    stream = stream.batch(size).map(place)
    # A separate thread assembles and sends batches, so that the step never waits for it.
    batches: Any = iter(
        grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_ON_DEVICE)
    )
    try:
        yield from batches
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise ChildProcessError(
            f"the system ended one of the {workers} processes that read images, as it does if "
            "memory runs out; config.data.workers is their number"
        ) from error
    finally:
        batches.close()


_order_lock = threading.Lock()


def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    # All threads need a new epoch's order at the same time; one of them computes it.
    with _order_lock:
        return _kept_order(seed, epoch, size)


@functools.lru_cache(maxsize=16)
def _kept_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return epoch_order(seed, epoch, size)


def _process_part(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the part of every batch that a process has."""
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    own = batch_size // process_count
    return slice(process_index * own, (process_index + 1) * own)


def _take(images: jax.Array, labels: jax.Array, chosen: jax.Array) -> Batch:
    return {"image": jnp.take(images, chosen, axis=0), "label": jnp.take(labels, chosen, axis=0)}
