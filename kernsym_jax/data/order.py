"""The order in which images are seen: a pure function of (seed, epoch, step), nothing to save."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.random_words import Purpose, permutation

Batch = dict[str, jax.Array]
Place = Callable[[np.ndarray], jax.Array]


class DataBackend(Protocol):
    """The devices and processes that a data set hands its batches to."""

    @property
    def members(self) -> int:
        """Networks that train as one program; 0 for one network without that axis."""

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
        """Does for a training batch, perhaps with a leading axis of members, what `shard` does."""


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch.

    Args:
      seed: of the run.
      epoch: from 0.
      size: number of images.

    Returns:
      (size,) int32, a permutation; the same on every machine and with every version of NumPy.
    """
    return permutation(size, Purpose.ORDER, seed, epoch)


class DeviceBatches:
    """Training batches from a set that lies on the device as bytes.

    Every epoch sees its images once, in an order of its own; the last ones that do not fill a batch
    are left out of that epoch.

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
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        backend: DataBackend,
    ) -> None:
        if not 0 < batch_size <= len(images):
            raise ValueError(f"batches of {batch_size} from a training set of {len(images)} images")
        self.steps_per_epoch, self.waited = len(images) // batch_size, 0.0
        self._part = process_part(batch_size, backend.process_index, backend.process_count)
        self._size, self._batch_size, self._backend = len(images), batch_size, backend
        self._images = backend.replicate(images.images)
        self._labels = backend.replicate(images.labels)
        self._take = jax.jit(_take)

    def start(self, step: int) -> Iterator[Batch]:
        """The batches from that step on, for ever.

        Args:
          step: number of steps already done.

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


def process_part(batch_size: int, process_index: int, process_count: int) -> slice:
    """Which part of every batch a process has.

    Raises:
      ValueError: if the processes cannot share a batch evenly.
    """
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    own = batch_size // process_count
    return slice(process_index * own, (process_index + 1) * own)


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    shard: Place,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every image once; the last batch is filled up with images of weight 0.

    Args:
      images: the set.
      batch_size: images per batch, the filling included, over all processes.
      shard: puts this process's part of a batch on the devices, as a part of the whole batch.
      process_index: of this process.
      process_count: processes that share every batch.

    Yields:
      ``{"image", "label", "weight": (batch,) float32}``.
    """
    part = process_part(batch_size, process_index, process_count)
    for start in range(0, len(images), batch_size):
        chosen = np.arange(start + part.start, start + part.stop)
        inside = chosen < len(images)
        chosen = np.where(inside, chosen, 0)
        yield {
            "image": shard(images.images[chosen]),
            "label": shard(images.labels[chosen]),
            "weight": shard(inside.astype(np.float32)),
        }


def _take(images: jax.Array, labels: jax.Array, chosen: jax.Array) -> Batch:
    return {"image": jnp.take(images, chosen, axis=0), "label": jnp.take(labels, chosen, axis=0)}
