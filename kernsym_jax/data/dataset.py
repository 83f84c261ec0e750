"""The data set of a run: both splits of its source, kept on the device or streamed."""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from kernsym_jax.data.augment import Augment
from kernsym_jax.data.batches import (
    Batch,
    DataBackend,
    DeviceBatches,
    StreamBatches,
    evaluation_batches,
    stream_evaluation,
)
from kernsym_jax.data.decode import View
from kernsym_jax.data.generated import Purpose, permutation
from kernsym_jax.data.image_set import EncodedSet, ImageSet, MaskCoding, channel_statistics
from kernsym_jax.data.reading import Reader, check_on_broken, find_cached, read_all, sample
from kernsym_jax.data.sources import SPLITS, find, resized

Source = ImageSet | EncodedSet


class TrainBatches(Protocol):
    """An endless series of training batches, a pure function of (seed, epoch, step).

    Attributes:
      steps_per_epoch: full batches in an epoch.
      waited: seconds that callers have spent waiting for a batch so far. A device waits for its
        input at most this long, because the host runs ahead of it.

    >>> from kernsym_jax import data, training
    >>> from kernsym_jax.training.backend import choose_backend
    >>> config = training.resolve({"batch_size": 64, "data": {"source": "digits"}})
    >>> train = data.open_dataset(config, choose_backend(config)).train
    >>> train.steps_per_epoch, train.waited
    (22, 0.0)
    """

    steps_per_epoch: int
    waited: float

    def start(self, step: int) -> Generator[Batch, None, None]:
        """Yields the batches after that number of completed steps, without end.

        Closing it ends the threads that read ahead.
        """


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Both splits of a source, ready for a run.

    Attributes:
      classes: the names of the classes.
      masks: whether every pixel has a label, rather than every image.
      image_shape: (height, width, channels) of the network's input.
      mean: of the training images per channel, on the scale where white is 1.
      std: their standard deviation.
      augment: the random variation that is left to the training step.
      train: the batches of the training split.
      evaluation: returns the batches of the test split, each image once; the last batch is filled
        up with images of weight 0.
      train_size: images in the training split.
      test_size: images in the test split.
      take_static: returns the first training images, not varied, as host arrays ``image`` and
        ``label``: for tracing a step, and for timing one without its input.
      take_test: returns that number of test images, evenly spread over the split, in the same form.

    >>> from kernsym_jax import data, training
    >>> from kernsym_jax.training.backend import choose_backend
    >>> config = training.resolve({"data": {"source": "digits"}})
    >>> digits = data.open_dataset(config, choose_backend(config))
    >>> digits.image_shape, len(digits.classes), digits.train_size, digits.test_size
    ((8, 8, 1), 10, 1437, 360)
    """

    classes: tuple[str, ...]
    masks: bool
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    train: TrainBatches
    evaluation: Callable[[], Generator[Batch, None, None]]
    train_size: int
    test_size: int
    take_static: Callable[[int], dict[str, np.ndarray]]
    take_test: Callable[[int], dict[str, np.ndarray]]


def open_dataset(config: Mapping[str, Any], backend: DataBackend) -> Dataset:
    """Opens both splits of a run's data source.

    Args:
      config: the complete, resolved config of the run.
      backend: the devices and processes that share the batches.

    Returns:
      The data set. An evaluation batch has ``config.eval_batch_size`` images, rounded up to a
      multiple of ``backend.parts``.

    Raises:
      ValueError: if the config or the data cannot be used.
      FileNotFoundError: if the data are not there.

    >>> from kernsym_jax import data, training
    >>> from kernsym_jax.training.backend import choose_backend
    >>> config = training.resolve({"batch_size": 64, "data": {"source": "digits", "image_size": 9}})
    >>> digits = data.open_dataset(config, choose_backend(config))
    >>> next(digits.train.start(step=0))["image"].shape
    (64, 9, 9, 1)
    """
    settings = config["data"]
    check_on_broken(settings["on_broken"])
    if not 0 <= settings["seed"] < 2**32:
        raise ValueError(f"config.data.seed must lie in 0 to 2³² − 1, got {settings['seed']}")
    eval_batch_size = -(-config["eval_batch_size"] // backend.parts) * backend.parts
    run = _Run(settings, View.from_config(settings), config["batch_size"], eval_batch_size, backend)
    coding = MaskCoding.from_config(settings)
    train, test = (find(settings["source"], split, settings["seed"], coding) for split in SPLITS)
    if settings["random_labels"] and isinstance(train, EncodedSet) and train.coding is not None:
        raise ValueError(
            f"config.data.random_labels shuffles class labels; {settings['source']!r} has masks"
        )
    if settings["streaming"] or _decoded_bytes(train, settings) > settings["device_bytes"]:
        return _stream(run, train, test)
    return _keep(run, train, test)


@dataclasses.dataclass(frozen=True)
class _Run:
    config: Mapping[str, Any]
    view: View
    batch_size: int
    eval_batch_size: int
    backend: DataBackend


def _keep(run: _Run, train_source: Source, test_source: Source) -> Dataset:
    """Opens a data set that is decoded before the run and cropped in the training step."""
    whole = _whole(run.view)
    window = dataclasses.replace(run.view, rotate=0, scale_to=(), image_size=0)
    train, test = (
        read_all(source, whole, run.config["on_broken"])
        if isinstance(source, EncodedSet)
        else resized(source, whole)
        for source in (train_source, test_source)
    )
    train, test = _with_channels(train, test), _with_channels(test, train)
    train = _limited(train, run.config["limit"])
    if run.config["random_labels"]:
        order = _label_order(run.config, len(train))
        train = dataclasses.replace(train, labels=train.labels[order])
    test = resized(test, window)

    def take_static(size: int) -> dict[str, np.ndarray]:
        chosen = np.arange(size) % len(train)
        first = ImageSet(train.images[chosen], train.labels[chosen], train.classes)
        first = resized(first, window)
        return {"image": first.images, "label": first.labels}

    def take_test(size: int) -> dict[str, np.ndarray]:
        chosen = _evenly(size, len(test))
        return {"image": test.images[chosen], "label": test.labels[chosen]}

    shape = take_static(1)["image"].shape[1:]
    if shape != test.images.shape[1:]:
        raise ValueError(
            f"{run.config['source']}: training images of shape {shape} (height, width, channels), "
            f"test images of {test.images.shape[1:]}; config.data.image_size, scale_to or "
            "crop_size gives them one size"
        )
    mean, std = _statistics(run.config, train.images)
    return Dataset(
        classes=train.classes,
        masks=train.masks,
        image_shape=shape,
        mean=mean,
        std=std,
        augment=Augment.from_config(run.config),
        train=DeviceBatches(train, run.batch_size, run.backend),
        evaluation=lambda: evaluation_batches(
            test,
            run.eval_batch_size,
            run.backend.shard,
            process_index=run.backend.process_index,
            process_count=run.backend.process_count,
        ),
        train_size=len(train),
        test_size=len(test),
        take_static=take_static,
        take_test=take_test,
    )


def _stream(run: _Run, train_source: Source, test_source: Source) -> Dataset:
    """Opens a data set that is read, decoded and cropped while the network trains."""
    on_broken, workers = run.config["on_broken"], run.config["workers"]
    if run.config["limit"]:
        raise ValueError(
            "config.data.limit needs a set that is decoded before the run, not streamed"
        )
    # A sample gives statistics, shape and channels, because reading all images would take hours.
    known = sample(Reader(train_source, run.view, on_broken))
    view = dataclasses.replace(run.view, channels=known.shape[-1])
    train, test = (
        Reader(source, view, on_broken, shape=known.shape[1:])
        for source in (train_source, test_source)
    )
    if run.config["random_labels"]:
        train = dataclasses.replace(train, label_order=_label_order(run.config, len(train)))
    # Test images of another shape raise an error now, not after the first epoch.
    test.read_or_next(0)
    mean, std = _statistics(run.config, known)

    def read(images: Reader, chosen: Iterable[int]) -> dict[str, np.ndarray]:
        pictures, labels = zip(*map(images.read_or_next, chosen), strict=True)
        return {"image": np.stack(pictures), "label": np.stack(labels)}

    return Dataset(
        classes=train.classes,
        masks=train.masks,
        image_shape=known.shape[1:],
        mean=mean,
        std=std,
        # Images are cropped as they are read; the rest is left to the step.
        augment=dataclasses.replace(Augment.from_config(run.config), crop_size=0),
        train=StreamBatches(train, run.batch_size, run.backend, workers=workers),
        evaluation=lambda: stream_evaluation(
            test, run.eval_batch_size, run.backend, workers=workers
        ),
        train_size=len(train),
        test_size=len(test),
        take_static=lambda size: read(train, (index % len(train) for index in range(size))),
        take_test=lambda size: read(test, _evenly(size, len(test)).tolist()),
    )


def _evenly(size: int, total: int) -> np.ndarray:
    """Returns indices that are evenly spread over a set, because sets are often sorted by class."""
    return np.linspace(0, total - 1, size).round().astype(int)


def _limited(images: ImageSet, limit: int) -> ImageSet:
    if not 0 < limit < len(images):
        return images
    chosen = _evenly(limit, len(images))
    return dataclasses.replace(images, images=images.images[chosen], labels=images.labels[chosen])


def _label_order(config: Mapping[str, Any], size: int) -> np.ndarray:
    """Returns, if labels are shuffled, for each training image the image whose label it has."""
    return permutation(size, Purpose.LABELS, config["seed"], 0)


def _decoded_bytes(source: Source, config: Mapping[str, Any]) -> int:
    """Returns the size of a set's images and masks when they are decoded."""
    view = _whole(View.from_config(config))
    if isinstance(source, EncodedSet):
        cached = find_cached(source, view, config["on_broken"])
        if cached is not None:
            found = cached.images
            return found.images.nbytes + (found.labels.nbytes if found.masks else 0)
    reader = Reader(source, view, config["on_broken"])
    image, label = reader.read_or_next(0)
    return len(reader) * (image.nbytes + (label.nbytes if reader.masks else 0))


def _whole(view: View) -> View:
    """Returns the steps of a view that precede any crop."""
    return View(rotate=view.rotate, scale_to=view.scale_to, image_size=view.image_size)


def _with_channels(images: ImageSet, other: ImageSet) -> ImageSet:
    """Returns the images; as colour images if the other split has colour images."""
    if images.images.shape[-1] == 1 and other.images.shape[-1] == 3:
        return dataclasses.replace(images, images=np.repeat(images.images, 3, axis=-1))
    return images


def _statistics(
    config: Mapping[str, Any], images: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, deviations = channel_statistics(images)
    mean, std = tuple(config["mean"]) or means, tuple(config["std"]) or deviations
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != len(means):
            raise ValueError(f"config.data.{name}: {len(values)} numbers for {len(means)} channels")
    if min(std) <= 0:
        raise ValueError(f"config.data.std must be above 0, got {std}")
    return mean, std
