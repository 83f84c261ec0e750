"""The order in which images are seen: a pure function of (seed, epoch, step), nothing to save."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax.data.image_set import ImageSet

Batch = dict[str, jax.Array]
Place = Callable[[np.ndarray], jax.Array]


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch.

    Args:
      seed: of the run.
      epoch: from 0.
      size: number of images.

    Returns:
      (size,) int32, a permutation; the same on every machine and with every version of NumPy.
    """
    # Raw words, because NumPy promises their stream for ever, but not that of `permutation`.
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int32)


class DeviceBatches:
    """Training batches from a set that lies on the device as bytes.

    Every epoch sees its images once, in an order of its own; the last ones that do not fill a batch
    are left out of that epoch.

    Args:
      images: the training set.
      batch_size: images per step.
      seed: of the order.
      replicate: puts a host array on all devices.
      shard: puts a host array on the devices, split along its first axis.

    Raises:
      ValueError: if the set is smaller than a batch.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, seed: int, replicate: Place, shard: Place
    ) -> None:
        if not 0 < batch_size <= len(images):
            raise ValueError(f"batches of {batch_size} from a training set of {len(images)} images")
        self.steps_per_epoch = len(images) // batch_size
        self._size, self._batch_size, self._seed = len(images), batch_size, seed
        self._shard = shard
        self._images, self._labels = replicate(images.images), replicate(images.labels)
        self._take = jax.jit(_take)

    def start(self, step: int) -> Iterator[Batch]:
        """The batches from that step on, for ever.

        Args:
          step: number of steps already done.

        Yields:
          ``{"image": (batch, height, width, channels) uint8, "label": (batch,) int32}``.
        """
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            order = epoch_order(self._seed, epoch, self._size)
            for index in range(first, self.steps_per_epoch):
                chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
                yield self._take(self._images, self._labels, self._shard(chosen))
                step += 1


def evaluation_batches(images: ImageSet, batch_size: int, shard: Place) -> Iterator[Batch]:
    """Every image once; the last batch is filled up with images of weight 0.

    Args:
      images: the set.
      batch_size: images per batch, the filling included.
      shard: puts a host array on the devices, split along its first axis.

    Yields:
      ``{"image", "label", "weight": (batch,) float32}``.
    """
    for start in range(0, len(images), batch_size):
        chosen = np.arange(start, start + batch_size)
        inside = chosen < len(images)
        chosen = np.where(inside, chosen, 0)
        yield {
            "image": shard(images.images[chosen]),
            "label": shard(images.labels[chosen]),
            "weight": shard(inside.astype(np.float32)),
        }


def _take(images: jax.Array, labels: jax.Array, chosen: jax.Array) -> Batch:
    return {"image": jnp.take(images, chosen, axis=0), "label": jnp.take(labels, chosen, axis=0)}
