"""Images, orders and numbers that are drawn from a seed, the same on every machine."""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kernsym_jax.cli import nearest
from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.symmetry.group import D4, cell_permutations

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)


class Purpose(enum.IntEnum):
    """The use of random numbers; the streams of different purposes are independent."""

    ORDER = 0
    CROP = 1
    LABELS = 2
    NOISE = 3
    TEXTURE = 4
    TEXTURE_CLASS = 5


def words(count: int, purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws 64-bit words, the same on every machine and with every version of NumPy.

    Args:
      count: number of words.
      purpose: of the stream.
      seed: of the stream, 0 to 2⁶⁴ − 1.
      index: of the stream among those of the seed.

    Returns:
      (count,) uint64.
    """
    # NumPy promises to keep the stream of raw words, but not those of its distributions.
    generator = np.random.Philox(
        key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, purpose], np.uint64)
    )
    return generator.random_raw(count)


def uniforms(shape: Sequence[int], purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws float64 numbers of a shape from 0 to 1, 1 excluded, from the stream of `words`."""
    drawn = words(math.prod(shape), purpose, seed, index) >> np.uint64(11)
    return drawn.reshape(shape) * 2.0**-53


def permutation(size: int, purpose: Purpose, seed: int, index: int) -> np.ndarray:
    """Draws a permutation, (size,) int32, from the stream of `words`."""
    return np.argsort(words(size, purpose, seed, index), kind="stable").astype(np.int32)


@dataclasses.dataclass(frozen=True)
class NoiseSettings:
    """The settings of a source of noise.

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


@dataclasses.dataclass(frozen=True)
class TextureSettings:
    """The settings of a source of textures.

    Attributes:
      group: one of `GROUPS`.
      size: height and width in pixels.
      channels: of the images.
      classes: number of classes.
      n: images to train on.
      test: images to test on.
    """

    group: str = "none"
    size: int = 32
    channels: int = 3
    classes: int = 10
    n: int = 10_000
    test: int = 2_000


def load_noise(place: str, split: str, seed: int) -> ImageSet:
    """Draws images of independent, uniform bytes with independent, uniform labels.

    Nothing can be learned from them: they serve null experiments.

    Args:
      place: settings of `NoiseSettings`, as ``name=value,…``.
      split: ``train`` or ``test``.
      seed: of the images and labels.

    Returns:
      (n, size, size, channels) images.

    Raises:
      ValueError: for unknown settings.
    """
    return _noise(_parse("noise", place, NoiseSettings()), split, seed)


def load_fake(place: str, split: str, seed: int) -> ImageSet:
    """Draws noise as `load_noise` does, by default with ImageNet's image size and classes.

    It serves as the input of benchmarks.
    """
    return _noise(_parse("fake", place, _FAKE), split, seed)


def _noise(settings: NoiseSettings, split: str, seed: int) -> ImageSet:
    count = settings.n if split == "train" else settings.test
    shape = (count, settings.size, settings.size, settings.channels)
    pixels = math.prod(shape)
    # The splits are two streams of one seed; labels are drawn after the images.
    stream = 0 if split == "train" else 1
    drawn = words(math.ceil(pixels / 8) + count, Purpose.NOISE, seed, stream)
    images = drawn[: len(drawn) - count].astype("<u8").view(np.uint8)[:pixels].reshape(shape)
    labels = (drawn[-count:] % np.uint64(settings.classes)).astype(np.int32)
    return ImageSet(images, labels, tuple(str(label) for label in range(settings.classes)))


GROUPS = {
    "none": ("e",),
    "fliplr": ("e", "fliplr"),
    "flipud": ("e", "flipud"),
    "rot180": ("e", "r180"),
    "d4": D4,
}
"""The groups by name, each with its elements under the names of `kernsym_jax.symmetry.D4`."""

_DENSITY = 0.04
_DETAIL = 5
# Between the axes and diagonals, so that each element of D4 but the identity changes a texture.
_DIRECTION = np.deg2rad(25)
_TAIL_LENGTH = 3.0
_TAIL_WIDTH = 0.7
_MEAN, _DEVIATION = 128, 40
_CHUNK = 1024


def load_textures(place: str, split: str, seed: int) -> ImageSet:
    """Draws textures whose distribution has a chosen symmetry group, for causal experiments.

    A texture consists of copies of one mark, scattered at random with random strength. A mark is a
    small random pattern, different for every class, that is dragged out into a tail. The tails of
    all classes point in the same direction. All classes have the same mean and deviation. On the
    torus the distribution is the same everywhere, and no element of D4 but the identity leaves it
    as it is: second moments tell all elements apart except the rotation by 180°, which third
    moments show. Every image is then transformed by a random element of the group, so that the
    distribution of each class is exactly invariant under the group. For the same seed and sizes,
    the textures of all groups are the same up to that last step.

    Args:
      place: settings of `TextureSettings`, as ``name=value,…``.
      split: ``train`` or ``test``.
      seed: of the marks and the images.

    Returns:
      (n, size, size, channels) images.

    Raises:
      ValueError: for settings out of range.
    """
    settings = _parse("textures", place, TextureSettings())
    size, channels, classes = settings.size, settings.channels, settings.classes
    if settings.group not in GROUPS:
        raise ValueError(
            f"the source textures: group is one of {', '.join(GROUPS)}, got {settings.group!r}"
        )
    if size < 2 * _DETAIL:
        raise ValueError(f"the source textures: size is at least {2 * _DETAIL}, got {size}")
    count = settings.n if split == "train" else settings.test
    marks = np.stack([_mark(size, channels, seed, number) for number in range(classes)])
    labels = np.arange(count, dtype=np.int32) % classes
    # Each image has a stream, so that a set is the beginning of a larger one; splits share none.
    first = 0 if split == "train" else 2**32
    images = np.empty((count, size, size, channels), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        draws = np.stack(
            [
                uniforms((2 * size * size + 1,), Purpose.TEXTURE, seed, first + index)
                for index in range(part.start, part.stop)
            ]
        )
        textures = _scatter(marks, labels[part], draws[:, :-1].reshape(-1, 2, size, size))
        images[part] = _transform(textures, GROUPS[settings.group], draws[:, -1])
    return ImageSet(images, labels, tuple(str(label) for label in range(classes)))


def _mark(size: int, channels: int, seed: int, number: int) -> np.ndarray:
    """Returns the mark of a class on the torus, (size, size, channels), of norm 1 per channel."""
    draws = uniforms((_DETAIL, _DETAIL, channels), Purpose.TEXTURE_CLASS, seed, number)
    detail = np.zeros((size, size, channels))
    # The sum is 0, so that neither the mean nor the background of an image tells its class.
    detail[:_DETAIL, :_DETAIL] = draws - draws.mean((0, 1))
    # Coordinates from −size/2 on, 0 first; y down.
    grid = np.fft.fftfreq(size, 1 / size)
    x, y = grid[None, :], grid[:, None]
    along = x * np.cos(_DIRECTION) + y * np.sin(_DIRECTION)
    across = y * np.cos(_DIRECTION) - x * np.sin(_DIRECTION)
    tail = np.where(along > -0.5, np.exp(-np.maximum(along, 0) / _TAIL_LENGTH), 0)
    tail = tail * np.exp(-0.5 * (across / _TAIL_WIDTH) ** 2)
    mark = _convolve(detail, tail[..., None])
    return mark / np.sqrt(np.sum(mark**2, axis=(0, 1)))


def _scatter(marks: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns textures (n, size, size, channels) from uniform numbers (n, 2, size, size)."""
    strength = np.where(draws[:, 0] < _DENSITY, -np.log1p(-draws[:, 1]), 0)
    # A point is present with the density, and the square of its strength is 2 on average.
    deviation = np.sqrt(2 * _DENSITY - _DENSITY**2)
    textures = _convolve(strength[..., None], marks[labels]) / deviation
    return np.clip(np.round(_MEAN + _DEVIATION * textures), 0, 255).astype(np.uint8)


def _transform(images: np.ndarray, group: tuple[str, ...], draws: np.ndarray) -> np.ndarray:
    """Transforms each image by the element of the group that its uniform number draws."""
    count, size, _, channels = images.shape
    cells = dict(zip(D4, cell_permutations(size, size), strict=True))
    chosen = (draws * len(group)).astype(int)
    pixels = images.reshape(count, size * size, channels)
    transformed = np.empty_like(pixels)
    for number, name in enumerate(group):
        transformed[chosen == number] = pixels[chosen == number][:, cells[name]]
    return transformed.reshape(images.shape)


def _convolve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Convolves on the torus, over the two axes before the last."""
    axes = (-3, -2)
    product = np.fft.rfft2(left, axes=axes) * np.fft.rfft2(right, axes=axes)
    return np.fft.irfft2(product, left.shape[-3:-1], axes)


def _parse(kind: str, place: str, defaults: "Settings") -> "Settings":
    """Reads settings of the form ``name=value,name=value``.

    Args:
      kind: of the source, for messages.
      place: the settings, may be empty.
      defaults: a dataclass of whole numbers above 0, and words.

    Returns:
      The defaults, with the given values in their place.

    Raises:
      ValueError: for an unknown name, or a value that is no whole number above 0.
    """
    names = [field.name for field in dataclasses.fields(defaults)]
    given: dict[str, int | str] = {}
    for part in filter(None, place.split(",")):
        name, equals, value = part.partition("=")
        if name not in names or not equals:
            raise ValueError(
                f"the source {kind} takes name=value of {', '.join(names)}; got {part!r}"
                f"{nearest(name, names)}"
            )
        if isinstance(getattr(defaults, name), str):
            given[name] = value
        elif value.isascii() and value.isdigit() and int(value) > 0:
            given[name] = int(value)
        else:
            raise ValueError(f"the source {kind}: {name} is a whole number above 0, got {value!r}")
    return dataclasses.replace(defaults, **given)
