"""Turns an image file, or an array, into the pixels that a network gets."""

import contextlib
import dataclasses
import io
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

ROTATIONS = (0, 90, 180, 270)

# Pillow decodes these itself; for its other formats it may start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

MOST_PIXELS = 2**26
"""Pixels of the largest image that is decoded, after a JPEG file is reduced while it is decoded."""

# A progressive JPEG file has about ten scans. Each costs a pass over all pixels, and a scan of no
# bytes is as slow as any other.
_MOST_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

_TRIES = 10
DRAWS = 2 * _TRIES + 2
"""How many uniform random numbers a random window takes."""

Box = tuple[Any, Any, Any, Any]
# A scaling: height and width before, the window, and height and width after.
Window = tuple[int, int, Box, tuple[int, int]]


class BrokenImage(ValueError):
    """An image file that cannot be read."""


class OtherSize(ValueError):
    """An image of another size than the caller wants.

    Attributes:
      height: of the image in pixels.
      width: of the image in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__(f"{width}×{height} pixels")
        self.height, self.width = height, width


class _Room:
    """Lets threads decode side by side as long as all their images together have few pixels."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room(max(MOST_PIXELS, 2**23 * (os.cpu_count() or 1)))


@dataclasses.dataclass(frozen=True)
class View:
    """The steps from a decoded image to a network's input, in this order.

    Attributes:
      channels: 1 for grey, 3 for colour, 0 to leave an image as it is.
      rotate: degrees counter-clockwise: 0, 90, 180 or 270.
      scale_to: height and width to which the whole image is scaled, before it is rotated; empty to
        leave it.
      image_size: side in pixels to which the largest central square is scaled; 0 to leave it.
      crop_size: side in pixels to which a random window, or the middle, is scaled; 0 for neither.
      crop_scale: least and largest share of the area of a random window.
      crop_ratio: least and largest width over height of a random window.
      eval_crop: side of the middle, as a share of the shorter side of the image.

    Raises:
      ValueError: for a value out of range.

    >>> from kernsym_jax import data
    >>> view = data.View(image_size=4)
    >>> data.load("digits", "test", view=view).images.shape
    (360, 4, 4, 1)
    """

    channels: int = 0
    rotate: int = 0
    scale_to: tuple[int, ...] = ()
    image_size: int = 0
    crop_size: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    eval_crop: float = 0.875

    def __post_init__(self) -> None:
        if self.rotate not in ROTATIONS:
            raise ValueError(f"rotate: one of {ROTATIONS} degrees, got {self.rotate}")
        sides = self.scale_to
        if sides and (len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides)):
            raise ValueError(f"scale_to: height and width in pixels, or empty, got {sides}")
        if sides and self.image_size:
            raise ValueError(
                f"scale_to and image_size exclude each other, got {sides} and {self.image_size}"
            )
        for name in ("image_size", "crop_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: pixels, or 0 for none, got {getattr(self, name)}")
        for name, most in (("crop_scale", 1.0), ("crop_ratio", np.inf)):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
                raise ValueError(
                    f"{name}: two numbers above 0, the smaller first"
                    f"{', none above 1' if most == 1 else ''}; got {bounds}"
                )
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"eval_crop: a share above 0 and up to 1, got {self.eval_crop}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "View":
        """Returns the view that the keys under ``config.data`` of a resolved config describe."""
        return cls(
            rotate=config["rotate"],
            scale_to=tuple(config["scale_to"]),
            image_size=config["image_size"],
            crop_size=config["crop_size"],
            crop_scale=tuple(config["crop_scale"]),
            crop_ratio=tuple(config["crop_ratio"]),
            eval_crop=config["eval_crop"],
        )


def random_box(
    draws: Any, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> Box:
    """Draws a random window of an image.

    The share of the area is uniform, and so is the logarithm of width over height. Of ten such
    windows the first that fits into the image is taken. If none fits, the window is the largest one
    in the middle that has an allowed ratio.

    Args:
      draws: (DRAWS,) NumPy or JAX floats, uniform from 0 to 1.
      height: of the image in pixels.
      width: of the image in pixels.
      scale: least and largest share of the area.
      ratio: least and largest width over height.

    Returns:
      The window's top, left, height and width in pixels, scalars of the draws' type.

    Reference: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """
    xp = draws.__array_namespace__()
    share, shape = draws[:_TRIES], draws[_TRIES : 2 * _TRIES]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    low, high = (xp.log(xp.asarray(bound, dtype=draws.dtype)) for bound in ratio)
    aspect = xp.exp(low + (high - low) * shape)
    wide, tall = xp.sqrt(area * aspect), xp.sqrt(area / aspect)
    fits = (wide <= width) & (tall <= height)
    first, found = xp.argmax(fits), xp.any(fits)
    allowed = min(max(width / height, ratio[0]), ratio[1])
    tall_box = xp.where(found, tall[first], min(height, width / allowed))
    wide_box = xp.where(found, wide[first], min(width, height * allowed))
    down, right = draws[-2], draws[-1]
    top = xp.where(found, down, 0.5) * (height - tall_box)
    left = xp.where(found, right, 0.5) * (width - wide_box)
    return top, left, tall_box, wide_box


def central_box(height: int, width: int, share: float) -> Box:
    """Returns the central square whose side is a share of the image's shorter side."""
    side = share * min(height, width)
    return (height - side) / 2, (width - side) / 2, side, side


def decode(
    encoded: bytes,
    name: str,
    view: View,
    draws: np.ndarray | None = None,
    size: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Decodes an image file.

    Args:
      encoded: the file's bytes.
      name: of the file, for messages.
      view: the steps that follow.
      draws: (DRAWS,) uniform random numbers for a random window; ``None`` for the middle.
      size: height and width that the result must have; ``None`` for any.

    Returns:
      (height, width, 1 or 3) uint8.

    Raises:
      BrokenImage: if the file cannot be read or has more than `MOST_PIXELS` pixels.
      OtherSize: if the result would have another size.
    """
    with _opened(encoded, name) as picture:
        windows = _windows(view, picture.height, picture.width, draws)
        if windows:
            # A JPEG file is decoded at half, a quarter or an eighth of its size if that is enough.
            _, _, box, size = windows[0]
            least = max(size[0] / box[2], size[1] / box[3])
            picture.draft(None, (int(picture.width * least), int(picture.height * least)))
        elif size is not None:
            _require_size(picture, view, size)
        with _room_for(picture):
            return _see(picture, view, windows)


def size_of(encoded: bytes) -> tuple[int, int]:
    """Returns height and width of a readable image file, from its header."""
    with _identify(encoded) as picture:
        return picture.height, picture.width


def read_values(encoded: bytes, name: str) -> np.ndarray:
    """Reads the values of a mask's file: its grey levels, or the indices into its palette.

    Args:
      encoded: the file's bytes.
      name: of the file, for messages.

    Returns:
      (height, width), of a type of whole numbers.

    Raises:
      BrokenImage: if the file cannot be read or has more than `MOST_PIXELS` pixels.
      ValueError: if it has several channels, or values that are no whole numbers.
    """
    with _opened(encoded, name) as picture:
        mode = picture.mode
        if mode in ("1", "L", "P", "I") or mode.startswith("I;16"):
            with _room_for(picture):
                values = np.asarray(picture)
            return values.astype(np.uint8) if mode == "1" else values
    raise ValueError(
        f"{name}: a mask is an image of one channel of whole numbers, or of a palette; this "
        f"one has pixels of mode {mode}"
    )


def look_at(image: np.ndarray, view: View, draws: np.ndarray | None = None) -> np.ndarray:
    """Applies a view to an array, as `decode` does to an image file.

    Args:
      image: (height, width, 1 or 3) uint8.
      view: the steps.
      draws: (DRAWS,) uniform random numbers for a random window; ``None`` for the middle.

    Returns:
      (height, width, 1 or 3) uint8.

    Raises:
      ValueError: for another number of channels.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise ValueError(f"images of 1 or 3 channels can be scaled, got {image.shape[-1]}")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _see(picture, view, _windows(view, picture.height, picture.width, draws))


def look_at_mask(mask: np.ndarray, view: View, draws: np.ndarray | None = None) -> np.ndarray:
    """Applies to a mask, by nearest neighbour, the view that `decode` applies to its image.

    Args:
      mask: (height, width) uint8, of the size of the image.
      view: the steps; its channels are ignored.
      draws: those of the image.

    Returns:
      (height, width) uint8, with no other values than the mask has.
    """
    from PIL import Image

    seen = Image.fromarray(mask)
    windows = _windows(view, seen.height, seen.width, draws)
    return np.asarray(_turn_and_scale(seen, view, windows, Image.Resampling.NEAREST))


def changes(view: View, height: int, width: int) -> bool:
    """Returns whether a view of the middle changes an image of that size."""
    windows = _windows(view, height, width, None)
    return bool(view.rotate) or any(not _whole(*window) for window in windows)


@contextlib.contextmanager
def _opened(encoded: bytes, name: str) -> Iterator["Image.Image"]:
    """Opens an image file; any error inside the block becomes a `BrokenImage`."""
    # The class of the error depends on where a file is damaged; Pillow has no common one.
    try:
        with _identify(encoded) as picture:
            yield picture
    except OtherSize:
        raise
    except Exception as error:
        reason = f" ({error})" if str(error) else ""
        raise BrokenImage(f"{name}: not a readable image{reason}") from error


def _identify(encoded: bytes) -> "Image.Image":
    """Reads the header of an image file."""
    from PIL import Image

    # `Image.open` would warn on stderr of every large image, also of a JPEG file that is reduced
    # while it is decoded. `_room_for` has a limit of its own.
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None:
            continue
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            if accepts(encoded[:16]) is True:
                return _with_few_scans(factory(io.BytesIO(encoded), ""), encoded)
    raise BrokenImage


def _with_few_scans(picture: "Image.Image", encoded: bytes) -> "Image.Image":
    """Returns the image; raises an error for a JPEG file that takes minutes to decode."""
    scans = encoded.count(_START_OF_SCAN) if picture.format in ("JPEG", "MPO") else 0
    if scans > _MOST_SCANS:
        raise ValueError(f"a JPEG file of {scans} scans, more than {_MOST_SCANS}")
    return picture


def _require_size(picture: "Image.Image", view: View, size: tuple[int, ...]) -> None:
    height, width = picture.height, picture.width
    if view.rotate in (90, 270):
        height, width = width, height
    if (height, width) != size:
        raise OtherSize(height, width)


@contextlib.contextmanager
def _room_for(picture: "Image.Image") -> Iterator[None]:
    """Waits until there is room to decode the image."""
    pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{picture.width}×{picture.height} pixels to decode, more than {MOST_PIXELS}"
        )
    with _room.take(pixels):
        yield


def _see(picture: "Image.Image", view: View, windows: list[Window]) -> np.ndarray:
    from PIL import Image

    grey = view.channels == 1 or (not view.channels and is_grey(picture))
    mode = "L" if grey else "RGB"
    seen = _bytes_per_channel(picture)
    if seen.mode != mode:
        seen = seen.convert(mode)
    pixels = np.asarray(_turn_and_scale(seen, view, windows, Image.Resampling.BILINEAR))
    return pixels[..., None] if grey else pixels


def _turn_and_scale(
    seen: "Image.Image", view: View, windows: list[Window], resampling: "Image.Resampling"
) -> "Image.Image":
    from PIL import Image

    if view.rotate:
        seen = seen.transpose(getattr(Image.Transpose, f"ROTATE_{view.rotate}"))
    for window in windows:
        if _whole(*window) and seen.size == window[3][::-1]:
            continue
        tall, wide, (top, left, box_tall, box_wide), size = window
        down, across = seen.height / tall, seen.width / wide
        right, bottom = (left + box_wide) * across, (top + box_tall) * down
        # Rounding may put the window a hair beyond the image, which Pillow would refuse.
        box = (left * across, top * down, min(right, seen.width), min(bottom, seen.height))
        seen = seen.resize(size[::-1], resampling, box)
    return seen


def is_grey(picture: "Image.Image") -> bool:
    """Returns whether an image file has grey levels only, according to its header."""
    return picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")


def _bytes_per_channel(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode.startswith("I;16"):
        # Pillow's own conversion would cut at 255 instead of scaling.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode} have no fixed range")
    return picture.convert("RGBA") if "transparency" in picture.info else picture


def _windows(view: View, height: int, width: int, draws: np.ndarray | None) -> list[Window]:
    """Returns the scalings, after rotation, of an image that had that size before."""
    scale_to = view.scale_to
    if view.rotate in (90, 270):
        height, width, scale_to = width, height, scale_to[::-1]
    windows = []
    if scale_to:
        windows.append((height, width, (0, 0, height, width), (scale_to[0], scale_to[1])))
        height, width = scale_to
    if view.image_size:
        square = (view.image_size, view.image_size)
        windows.append((height, width, central_box(height, width, 1.0), square))
        height = width = view.image_size
    if view.crop_size:
        if draws is None:
            box = central_box(height, width, view.eval_crop)
        else:
            box = random_box(draws, height, width, view.crop_scale, view.crop_ratio)
        windows.append((height, width, box, (view.crop_size, view.crop_size)))
    return windows


def _whole(height: int, width: int, box: Box, size: tuple[int, int]) -> bool:
    """Returns whether a scaling leaves an image of that size as it is."""
    return (height, width) == size and tuple(box) == (0, 0, *size)
