"""Everything that a run asks of its data, whatever their source."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kernsym_jax.data.augment import Augment
from kernsym_jax.data.image_set import ImageSet, channel_statistics
from kernsym_jax.data.order import Batch, DeviceBatches, Place, evaluation_batches
from kernsym_jax.data.sources import load


class TrainBatches(Protocol):
    """An endless series of training batches, a pure function of (seed, epoch, step).

    Attributes:
      steps_per_epoch: full batches in an epoch.
      waited: seconds that callers have spent waiting for a batch so far. What a device waits for
        its input is at most this, since the host runs ahead of it.
    """

    steps_per_epoch: int
    waited: float

    def start(self, step: int) -> Iterator[Batch]:
        """The batches after that many completed steps, for ever."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two splits of a source, ready for a run.

    Attributes:
      classes: the names of the classes.
      image_shape: (height, width, channels) of the images that a network gets.
      mean: of the training images per channel, on the scale where white is 1.
      std: their standard deviation.
      augment: what is left for the training step to vary.
      train: the batches of the training split.
      evaluation: gives the batches of the test split, each image once; the last batch is filled up
        with images of weight 0.
      train_size: images in the training split.
      test_size: images in the test split.
      take_static: the first training images as a network gets them, as host arrays ``image`` and
        ``label``: for tracing a step, and for timing one without its input.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    train: TrainBatches
    evaluation: Callable[[], Iterator[Batch]]
    train_size: int
    test_size: int
    take_static: Callable[[int], dict[str, np.ndarray]]


def open(
    config: Mapping[str, Any],
    seed: int | Sequence[int],
    batch_size: int,
    eval_batch_size: int,
    replicate: Place,
    shard: Place,
    process_index: int = 0,
    process_count: int = 1,
) -> Dataset:
    """Opens a source for a run.

    Args:
      config: the keys under ``config.data`` of a resolved config.
      seed: of the order. Of several seeds, one for each network that trains at once, every batch
        has a leading axis of networks.
      batch_size: images per step of one network, over all processes.
      eval_batch_size: images per evaluation batch, over all processes.
      replicate: puts a host array on all devices.
      shard: puts this process's part of a batch on the devices, as a part of the whole batch.
      process_index: of this process.
      process_count: processes that share every batch.

    Returns:
      The data set.

    Raises:
      ValueError: if the config or the data cannot be used.
      FileNotFoundError: if the data are not there.
    """
    train, test = load(config["source"], "train"), load(config["source"], "test")
    mean, std = _statistics(config, train)
    processes = (process_index, process_count)

    def take_static(size: int) -> dict[str, np.ndarray]:
        chosen = np.arange(size) % len(train)
        return {"image": train.images[chosen], "label": train.labels[chosen]}

    return Dataset(
        classes=train.classes,
        image_shape=train.images.shape[1:],
        mean=mean,
        std=std,
        augment=Augment.from_config(config),
        train=DeviceBatches(train, batch_size, seed, replicate, shard, *processes),
        evaluation=lambda: evaluation_batches(test, eval_batch_size, shard, *processes),
        train_size=len(train),
        test_size=len(test),
        take_static=take_static,
    )


def _statistics(
    config: Mapping[str, Any], train: ImageSet
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, deviations = channel_statistics(train.images)
    mean, std = tuple(config["mean"]) or means, tuple(config["std"]) or deviations
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != len(means):
            raise ValueError(f"config.data.{name}: {len(values)} numbers for {len(means)} channels")
    if min(std) <= 0:
        raise ValueError(f"config.data.std must be above 0, got {std}")
    return mean, std
