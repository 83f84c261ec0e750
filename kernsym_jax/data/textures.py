"""Generated textures whose distribution has a chosen symmetry group, for causal experiments."""

import dataclasses
from collections.abc import Callable

import numpy as np

from kernsym_jax.data.image_set import ImageSet
from kernsym_jax.data.random_words import Purpose, uniforms
from kernsym_jax.data.source_settings import parse


@dataclasses.dataclass(frozen=True)
class TextureSettings:
    """What can be set of a source of textures.

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


# Acting on images (n, height, width, channels).
_ELEMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "e": lambda images: images,
    "r90": lambda images: np.rot90(images, 1, (1, 2)),
    "r180": lambda images: np.rot90(images, 2, (1, 2)),
    "r270": lambda images: np.rot90(images, 3, (1, 2)),
    "fliplr": lambda images: images[:, :, ::-1],
    "flipud": lambda images: images[:, ::-1],
    "transpose": lambda images: images.swapaxes(1, 2),
    "antitranspose": lambda images: np.rot90(images, 2, (1, 2)).swapaxes(1, 2),
}
GROUPS = {
    "none": ("e",),
    "fliplr": ("e", "fliplr"),
    "flipud": ("e", "flipud"),
    "rot180": ("e", "r180"),
    "d4": tuple(_ELEMENTS),
}
"""The groups by name, each with its elements under the names of `kernsym_jax.symmetry.D4`."""

_DENSITY = 0.04
_DETAIL = 5
# Off every axis and diagonal, so that each element of D4 but the identity changes the texture.
_DIRECTION = np.deg2rad(25)
_TAIL_LENGTH = 3.0
_TAIL_WIDTH = 0.7
_MEAN, _DEVIATION = 128, 40
_CHUNK = 1024


def load(place: str, split: str, seed: int) -> ImageSet:
    """Draws textures: copies of one mark per class, scattered at random with random strength.

    A mark is a small random pattern, other for every class, dragged out into a tail that points the
    same way in all classes. All classes have the same mean and deviation. On the torus the texture
    is the same everywhere, and no element of D4 but the identity leaves its distribution as it is:
    the second moments tell all apart but the rotation by 180°, which the third moments show. Every
    image is then transformed by a random element of the group, which makes the distribution of each
    class exactly invariant under the group. With the same seed and sizes the textures of all groups
    are the same but for that last step.

    Args:
      place: settings of `TextureSettings`, as ``name=value,…``.
      split: ``train`` or ``test``.
      seed: of the marks and the images.

    Returns:
      (n, size, size, channels) images.

    Raises:
      ValueError: for settings out of range.
    """
    settings = parse("textures", place, TextureSettings())
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
    # One stream per image, so that a set is the beginning of a larger one; the splits' are apart.
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
    """The mark of a class on the torus, (size, size, channels), with squares that sum to 1."""
    draws = uniforms((_DETAIL, _DETAIL, channels), Purpose.TEXTURE_CLASS, seed, number)
    detail = np.zeros((size, size, channels))
    # Of sum 0, so that neither the mean nor the background of an image tells its class.
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
    """Textures (n, size, size, channels) of the classes from uniform numbers (n, 2, size, size)."""
    strength = np.where(draws[:, 0] < _DENSITY, -np.log1p(-draws[:, 1]), 0)
    # Of one point: it is there with the density, its strength's square is 2 on average.
    deviation = np.sqrt(2 * _DENSITY - _DENSITY**2)
    textures = _convolve(strength[..., None], marks[labels]) / deviation
    return np.clip(np.round(_MEAN + _DEVIATION * textures), 0, 255).astype(np.uint8)


def _transform(images: np.ndarray, group: tuple[str, ...], draws: np.ndarray) -> np.ndarray:
    chosen = (draws * len(group)).astype(int)
    transformed = np.empty_like(images)
    for number, name in enumerate(group):
        transformed[chosen == number] = _ELEMENTS[name](images[chosen == number])
    return transformed


def _convolve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """On the torus, over the two axes before the last."""
    axes = (-3, -2)
    product = np.fft.rfft2(left, axes=axes) * np.fft.rfft2(right, axes=axes)
    return np.fft.irfft2(product, left.shape[-3:-1], axes)
