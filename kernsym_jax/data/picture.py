"""From the bytes of an image file, or an array, to the pixels that a network gets."""

import dataclasses
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kernsym_jax.data.crop import Box, central_box, random_box

if TYPE_CHECKING:
    from PIL import Image

ROTATIONS = (0, 90, 180, 270)

# Of one scaling: height and width before, the window, and height and width after.
Window = tuple[int, int, Box, tuple[int, int]]

# Only what is decoded by Pillow itself: its other formats may start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


class BrokenImage(ValueError):
    """Bytes that are no readable image."""


@dataclasses.dataclass(frozen=True)
class View:
    """What is done to an image after it is read, in this order.

    Attributes:
      channels: 1 for grey, 3 for colour, 0 for whichever it is.
      rotate: degrees counter-clockwise: 0, 90, 180 or 270.
      scale_to: height and width to which the whole of it is scaled, before it is rotated; empty to
        leave it.
      image_size: the largest square in its middle is scaled to that size; 0 to leave it.
      crop_size: a random window, or the middle, is scaled to a square of that size; 0 for neither.
      crop_scale: least and largest share of the area of a random window.
      crop_ratio: least and largest width over height of a random window.
      eval_crop: side of the middle, as a share of the shorter side of the image.

    Raises:
      ValueError: for a value out of range.
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
        """What the keys under ``config.data`` of a resolved config ask for."""
        return cls(
            rotate=config["rotate"],
            scale_to=tuple(config["scale_to"]),
            image_size=config["image_size"],
            crop_size=config["crop_size"],
            crop_scale=tuple(config["crop_scale"]),
            crop_ratio=tuple(config["crop_ratio"]),
            eval_crop=config["eval_crop"],
        )


def decode(encoded: bytes, name: str, view: View, draws: np.ndarray | None = None) -> np.ndarray:
    """Decodes an image file.

    Args:
      encoded: the file's bytes.
      name: of the file, for messages.
      view: what is done to it.
      draws: (DRAWS,) uniform random numbers for a random window; ``None`` for the middle.

    Returns:
      (height, width, 1 or 3) uint8.

    Raises:
      BrokenImage: if it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    # What a damaged file raises depends on where the damage is; Pillow has no class for it.
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            return _see(picture, view, draws)
    except Exception as error:
        # Pillow's message about an unknown format holds nothing but an address in memory.
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise BrokenImage(f"{name}: not a readable image{reason}") from error


def size_of(encoded: bytes) -> tuple[int, int]:
    """Height and width of a readable image file, by its header."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
        return picture.height, picture.width


def look_at(image: np.ndarray, view: View, draws: np.ndarray | None = None) -> np.ndarray:
    """Does to an array what `decode` does to an image file.

    Args:
      image: (height, width, 1 or 3) uint8.
      view: what is done to it.
      draws: (DRAWS,) uniform random numbers for a random window; ``None`` for the middle.

    Returns:
      (height, width, 1 or 3) uint8.

    Raises:
      ValueError: for another number of channels.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise ValueError(f"images of 1 or 3 channels can be scaled, got {image.shape[-1]}")
    return _see(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), view, draws)


def look_at_mask(mask: np.ndarray, view: View, draws: np.ndarray | None = None) -> np.ndarray:
    """Does to a mask what `decode` does to its image, by nearest neighbour.

    Args:
      mask: (height, width) uint8, of the size of the image.
      view: what is done to it; its channels do not matter.
      draws: those of the image.

    Returns:
      (height, width) uint8, of values that are in the mask.
    """
    from PIL import Image

    seen = Image.fromarray(mask)
    windows = _windows(view, seen.height, seen.width, draws)
    return np.asarray(_turn_and_scale(seen, view, windows, Image.Resampling.NEAREST))


def changes(view: View, height: int, width: int) -> bool:
    """Whether a view of the middle changes an image of that size."""
    windows = _windows(view, height, width, None)
    return bool(view.rotate) or any(not _whole(*window) for window in windows)


def _see(picture: "Image.Image", view: View, draws: np.ndarray | None) -> np.ndarray:
    from PIL import Image

    windows = _windows(view, picture.height, picture.width, draws)
    if windows:
        # A JPEG file is decoded at half, a quarter or an eighth of its size if that is enough.
        _, _, box, size = windows[0]
        least = max(size[0] / box[2], size[1] / box[3])
        picture.draft(None, (int(picture.width * least), int(picture.height * least)))
    grey = view.channels == 1 or (not view.channels and is_grey(picture))
    seen = _bytes_per_channel(picture).convert("L" if grey else "RGB")
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
        # Not a hair beyond the image, which Pillow would refuse.
        box = (left * across, top * down, min(right, seen.width), min(bottom, seen.height))
        seen = seen.resize(size[::-1], resampling, box)
    return seen


def is_grey(picture: "Image.Image") -> bool:
    """Whether an image file has grey levels only, by its header."""
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
    """The scalings, after rotation, of an image of that size before."""
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
    return (height, width) == size and tuple(box) == (0, 0, *size)
