"""Padding: the eight modes of extending a map beyond its border, and the rescaling of `partial`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kernsym_jax import geometry

Pair = tuple[int, int]
Amounts = tuple[Pair, Pair]


@functools.cache
def window_scale(
    size: Pair, kernel: Pair, amounts: Amounts, dilation: Pair, stride: Pair = (1, 1)
) -> np.ndarray:
    """Returns each window's factor ``kh * kw / m``, where ``m`` of its pixels lie on the image.

    The factors depend on positions alone, so they are constants of the compiled program.

    Args:
      size: height and width of the map without padding.
      kernel: height and width of the kernel.
      amounts: ``((top, bottom), (left, right))``.
      dilation: vertical and horizontal dilation.
      stride: vertical and horizontal stride.

    Returns:
      Array (1, out_h, out_w, 1), float32, read-only; 0 for windows beside the image.

    Reference: Liu et al., "Partial Convolution based Padding", arXiv 1811.11718, equations 1-3.
    """
    on_image = []
    for axis in (0, 1):
        near, far = amounts[axis]
        reach = dilation[axis] * (kernel[axis] - 1)
        starts = np.arange(0, size[axis] + near + far - reach, stride[axis]) - near
        taps = starts[:, None] + dilation[axis] * np.arange(kernel[axis])[None, :]
        on_image.append(((taps >= 0) & (taps < size[axis])).sum(axis=1))
    covered = np.outer(on_image[0], on_image[1])
    scale = np.divide(
        kernel[0] * kernel[1], covered, out=np.zeros(covered.shape), where=covered > 0
    )
    scale = scale.astype(np.float32)[None, :, :, None]
    scale.flags.writeable = False
    return scale


PADDINGS = geometry.PADDING_MODES


_JNP_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def module_path(module: nn.Module) -> str:
    """Returns a layer's name for error messages: its path in the network, else its class."""
    path = module.path if module.scope is not None else ()
    return "/".join(path) or module.name or type(module).__name__


def pair(value: Any) -> Pair:
    """Returns ``(vertical, horizontal)``, given one number for both axes or one for each."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def check_padding(padding: str, layer: str) -> None:
    """Raises a ``ValueError`` that names ``layer`` unless ``padding`` is one of ``PADDINGS``."""
    if padding not in PADDINGS:
        raise ValueError(f"{layer}: unknown padding {padding!r}; wanted one of {PADDINGS}")


def layer_padding(
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: str,
    pad: int | Pair | None = None,
    dilation: Pair = (1, 1),
) -> Amounts:
    """Returns how many rows and columns a layer adds on each side of its map.

    Args:
      size: height and width of the map.
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      padding: one of ``PADDINGS``. ``valid`` adds nothing; ``same`` follows TensorFlow's rule for
        this size; every other mode adds ``pad`` on both sides.
      pad: amount per side and axis; ``None`` for ``dilation * (kernel - 1) // 2``. An explicit 0
        means no padding in every mode, ``same`` included.
      dilation: vertical and horizontal dilation.

    Returns:
      ``((top, bottom), (left, right))``.
    """

    def along(axis: int) -> Pair:
        asked = dilation[axis] * (kernel[axis] - 1) // 2 if pad is None else pair(pad)[axis]
        if padding == "valid" or (pad is not None and asked == 0):
            return 0, 0
        if padding != "same":
            return asked, asked
        window = size[axis], kernel[axis], stride[axis]
        near, far = geometry.padding_amounts(*window, "SAME", dilation[axis])
        return int(near), int(far)  # type: ignore[arg-type]  # one axis: a pair of ints

    return along(0), along(1)


def check_map(size: Pair, layer: str) -> None:
    """Raises a ``ValueError`` that names ``layer`` if the map has no pixels."""
    if 0 in size:
        raise ValueError(f"{layer}: the input map is empty ({size[0]}x{size[1]})")


def check_window(
    size: Pair, kernel: Pair, dilation: Pair, amounts: Amounts, padding: str, layer: str
) -> None:
    """Raises a ``ValueError`` that names ``layer`` if no window fits or the padding is too wide."""
    limits = {"reflect": -1, "symmetric": 0, "circular": 0}
    for axis in (0, 1):
        widest = max(amounts[axis])
        if padding in limits and widest > size[axis] + limits[padding]:
            raise ValueError(
                f"{layer}: {padding} padding by {widest} needs a map of at least "
                f"{widest - limits[padding]} pixels, got {size[0]}x{size[1]}"
            )
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        padded = size[axis] + sum(amounts[axis])
        if reach > padded:
            raise ValueError(
                f"{layer}: kernel {kernel[0]}x{kernel[1]} with dilation {dilation[0]}x{dilation[1]}"
                f" spans {reach} pixels, more than the {padded} of the padded input"
                f" ({size[0]}x{size[1]} map)"
            )


def pad_map(x: jax.Array, amounts: Amounts, padding: str, fill: float = 0.0) -> jax.Array:
    """Extends a map beyond its border.

    Args:
      x: map (batch, height, width, channels).
      amounts: ``((top, bottom), (left, right))``; a negative amount crops.
      padding: one of ``PADDINGS``; modes that copy no pixels extend by ``fill``.
      fill: the constant of ``zero``, ``same``, ``partial`` and ``valid``.

    Returns:
      Map (batch, height + top + bottom, width + left + right, channels).
    """
    (top, bottom), (left, right) = amounts
    widths = ((0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)), (0, 0))
    if any(sum(width) for width in widths):
        if padding in _JNP_MODES:
            x = jnp.pad(x, widths, mode=_JNP_MODES[padding])
        else:
            x = jnp.pad(x, widths, constant_values=fill)
    # Crops after padding, because circular padding copies rows of the whole map.
    return x[
        :,
        max(-top, 0) : x.shape[1] - max(-bottom, 0),
        max(-left, 0) : x.shape[2] - max(-right, 0),
    ]
