"""Images of nothing, with labels that mean nothing: a null experiment, and a benchmark's input."""

import dataclasses

import numpy as np

from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.random_words import Purpose, words
from kernsym_jax.data.source_settings import parse


@dataclasses.dataclass(frozen=True)
class NoiseSettings:
    """What can be set of a source of noise.

    Attributes:
      size: height and width in pixels.
      channels: of the images.
      classes: number of classes.
      n: images to train on.
      test: images to test on.
    """

    size: int = 32
    channels: int = 3
    classes: int = 10
    n: int = 10_000
    test: int = 2_000


_FAKE = NoiseSettings(size=224, classes=1000, n=1024, test=256)


def load(place: str, split: str, seed: int) -> ImageSet:
    """Draws bytes that are independent and uniform, and labels that are so too.

    Args:
      place: settings of `NoiseSettings`, as ``name=value,…``.
      split: ``train`` or ``test``.
      seed: of the images and labels.

    Returns:
      (n, size, size, channels) images.

    Raises:
      ValueError: for unknown settings.
    """
    return _draw(parse("noise", place, NoiseSettings()), split, seed)


def load_fake(place: str, split: str, seed: int) -> ImageSet:
    """Draws what `load` draws, by default images of ImageNet's size and number of classes."""
    return _draw(parse("fake", place, _FAKE), split, seed)


def _draw(settings: NoiseSettings, split: str, seed: int) -> ImageSet:
    count = settings.n if split == "train" else settings.test
    shape = (count, settings.size, settings.size, settings.channels)
    pixels = int(np.prod(shape, dtype=object))
    # The two splits are two streams of one seed, and labels are drawn after the images.
    drawn = words(-(-pixels // 8) + count, Purpose.NOISE, seed, ("train", "test").index(split))
    images = drawn[: len(drawn) - count].astype("<u8").view(np.uint8)[:pixels].reshape(shape)
    labels = (drawn[-count:] % np.uint64(settings.classes)).astype(np.int32)
    return ImageSet(images, labels, tuple(str(label) for label in range(settings.classes)))
