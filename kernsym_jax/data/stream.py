"""Batches of a large set, read by grain while the network trains."""

import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from kernsym_jax.data.crop import DRAWS
from kernsym_jax.data.order import Batch, DataBackend, epoch_order, process_part
from kernsym_jax.data.picture import BrokenImage
from kernsym_jax.data.random_words import Purpose, uniforms
from kernsym_jax.data.reader import Reader

_ON_DEVICE = 2

Example = dict[str, np.ndarray | np.generic]


class StreamBatches:
    """Training batches that are read, decoded and sent to the devices ahead of their use.

    The images, their order and their windows are pure functions of (seed, epoch, step): the order
    is that of `DeviceBatches`, a window depends on the seed and on its position in the run alone.

    Args:
      reader: of the training set.
      batch_size: images per step of one network, over all processes.
      backend: the devices and processes that share the batches, and the seeds of order and windows.
        If it has members, batches have a leading axis of members.
      workers: further processes that read and decode; 0 for threads of this one.

    Attributes:
      steps_per_epoch: full batches in an epoch.
      waited: seconds that callers have spent waiting for a batch so far.

    Raises:
      ValueError: if the set is smaller than a batch, or the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        reader: Reader,
        batch_size: int,
        backend: DataBackend,
        *,
        workers: int = 0,
    ) -> None:
        if not 0 < batch_size <= len(reader):
            raise ValueError(f"batches of {batch_size} from a training set of {len(reader)} images")
        self.steps_per_epoch, self.waited = len(reader) // batch_size, 0.0
        part = process_part(batch_size, backend.process_index, backend.process_count)
        self._members = (backend.members,) if backend.members else ()
        self._examples = _TrainExamples(reader, batch_size, tuple(backend.seeds), part)
        self._own, self._workers = part.stop - part.start, workers
        self._shard = backend.shard_train

    def start(self, step: int) -> Iterator[Batch]:
        """The batches from that step on, for ever.

        Args:
          step: number of steps already done.

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
            self._examples, step * per_step, sys.maxsize, per_step, place, self._workers
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
    reader: Reader,
    batch_size: int,
    backend: DataBackend,
    *,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every image once; the last batch is filled up with images of weight 0.

    Args:
      reader: of the set.
      batch_size: images per batch, the filling included, over all processes.
      backend: the devices and processes that share the batches.
      workers: further processes that read and decode; 0 for threads of this one.

    Yields:
      ``{"image", "label", "weight": (batch,) float32}``; images that are skipped have weight 0.
    """
    part = process_part(batch_size, backend.process_index, backend.process_count)
    own = part.stop - part.start
    stop = -(-len(reader) // batch_size) * own

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return {name: backend.shard(array) for name, array in batch.items()}

    batches = _batches(_EvalExamples(reader, batch_size, part), 0, stop, own, place, workers)
    try:
        yield from batches
    finally:
        batches.close()


class _TrainExamples:
    """The training image at a position of this process; all that is needed to read it elsewhere."""

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
    """The test image at a position of this process."""

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
            # What fills its place does not count.
            weight = np.float32(0)
            image, label = self.reader.read_or_next(index)
        return {"image": image, "label": label, "weight": weight}


def _batches(examples: Any, start: int, stop: int, size: int, place: Any, workers: int) -> Any:
    import grain

    threads = os.cpu_count() or 1
    reading = grain.ReadOptions(threads, max(2 * size, threads))
    stream = grain.MapDataset.range(start, stop).map(examples).to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks a flag of its own, which in a program without flags has its default.
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(2 * size // workers, 1)
            )
        )
    stream = stream.batch(size).map(place)
    # A thread of its own, so that the step never waits for a batch to be put together or sent.
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_ON_DEVICE)
    )


_order_lock = threading.Lock()


def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    # All threads ask for a new epoch's order at once; one computes it.
    with _order_lock:
        return _kept_order(seed, epoch, size)


@functools.lru_cache(maxsize=16)
def _kept_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return epoch_order(seed, epoch, size)
