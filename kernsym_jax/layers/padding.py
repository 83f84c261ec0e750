"""Padding modes, and the windows that a layer places on a padded map."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernsym_jax import geometry

Pair = tuple[int, int]
Amounts = tuple[Pair, Pair]

PADDINGS = geometry.PADDING_MODES

_JNP_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}

Position = tuple[float | jax.Array, float | jax.Array]

_CONSTANT = ("zero", "same", "partial", "valid")
_NONE: Amounts = ((0, 0), (0, 0))


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

    >>> from kernsym_jax import layers
    >>> scale = layers.window_scale((3, 4), (3, 3), ((1, 1), (1, 1)), dilation=(1, 1))
    >>> scale[0, :, :, 0].tolist()
    [[2.25, 1.5, 1.5, 2.25], [1.5, 1.0, 1.0, 1.5], [2.25, 1.5, 1.5, 2.25]]
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
    """Raises a ``ValueError`` that names ``layer`` unless ``padding`` is one of ``PADDINGS``.

    >>> from kernsym_jax import layers
    >>> layers.check_padding("refelct", "conv1")
    Traceback (most recent call last):
        ...
    ValueError: conv1: unknown padding 'refelct'; wanted one of ('zero', 'same', 'reflect',
    'replicate', 'symmetric', 'circular', 'partial', 'valid')
    """
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

    >>> from kernsym_jax import layers
    >>> layers.layer_padding((224, 224), (3, 3), (2, 2), "zero")
    ((1, 1), (1, 1))
    >>> layers.layer_padding((224, 224), (3, 3), (2, 2), "same")
    ((0, 1), (0, 1))
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

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.array([1, 2, 3]).reshape(1, 1, 3, 1)
    >>> layers.pad_map(x, ((0, 0), (2, 2)), "reflect").ravel().tolist()
    [3, 2, 1, 2, 3, 2, 1]
    >>> layers.pad_map(x, ((0, 0), (2, 2)), "zero").ravel().tolist()
    [0, 0, 1, 2, 3, 0, 0]
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


def corner(index: int) -> Position:
    """Returns the position of the windows of a strided layer in evaluation.

    Args:
      index: the strided layer's number in forward order, from 0.

    Returns:
      ``(0, 0), (1, 0), (0, 1), (1, 1)`` in turn: 0 skips rows at the far end of the axis, 1 at the
      near end. The corners cycle, so that the drifts of successive layers cancel.

    Reference: Alsallakh et al., "Mind the Pool", ICLR 2023.

    >>> from kernsym_jax import layers
    >>> [layers.corner(index) for index in range(4)]
    [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    """
    return float(index % 2), float(index // 2 % 2)


def random_position(key: jax.Array) -> Position:
    """Returns two random numbers in [0, 1); layers that share them have the same offset.

    >>> import jax
    >>> from kernsym_jax import layers
    >>> vertical, horizontal = layers.random_position(jax.random.key(0))
    >>> bool(0 <= vertical < 1), bool(0 <= horizontal < 1)
    (True, True)
    """
    vertical, horizontal = jax.random.uniform(key, (2,))
    return vertical, horizontal


def offset_of(
    position: Position, size: Pair, kernel: Pair, stride: Pair, amounts: Amounts, dilation: Pair
) -> tuple[tuple, Pair]:
    """Returns the offset of the first window for a position in [0, 1].

    Args:
      position: vertical and horizontal; floats give ints, traced scalars give traced int32.
      size: height and width of the map.
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      amounts: ``((top, bottom), (left, right))``, equal on both sides of an axis.
      dilation: vertical and horizontal dilation.

    Returns:
      ``((r_h, r_w), (u_h, u_w))``: the offset r and the uneven padding u. A uniform position gives
      a uniform offset on 0..u.
    """
    uneven = tuple(
        geometry.uneven_padding(size[i], kernel[i], stride[i], amounts[i][0], dilation[i])
        for i in (0, 1)
    )

    def offset(place: float | jax.Array, surplus: int) -> int | jax.Array:
        if surplus == 0:
            return 0
        if isinstance(place, float):
            return min(int(place * (surplus + 1)), surplus)
        return jnp.minimum((place * (surplus + 1)).astype(jnp.int32), surplus)

    offsets = tuple(offset(place, u) for place, u in zip(position, uneven, strict=True))
    return offsets, (uneven[0], uneven[1])


class WindowedMap(NamedTuple):
    """A map that is ready for an operation with sliding windows.

    Attributes:
      x: map (batch, height, width, channels), extended or cropped.
      amounts: constant padding that the operation itself has to add on each side.
      scale: factor of each window under partial convolution, (1, out_h, out_w, 1), else ``None``.
    """

    x: jax.Array
    amounts: Amounts
    scale: jax.Array | np.ndarray | None


def place_windows(
    x: jax.Array,
    *,
    kernel: Pair,
    stride: Pair,
    padding: str,
    pad: int | Pair | None,
    dilation: Pair,
    position: Position | None,
    fill: float,
    layer: str,
) -> WindowedMap:
    """Pads a map for one layer and places the first window according to ``position``.

    Args:
      x: map (batch, height, width, channels).
      kernel: height and width of the kernel.
      stride: vertical and horizontal stride.
      padding: one of ``PADDINGS``.
      pad: amount per side; ``None`` for the default of ``layer_padding``.
      dilation: vertical and horizontal dilation.
      position: SBPool's choice, or ``None`` to start at the first padded pixel.
      fill: value of constant padding.
      layer: name for error messages.

    Returns:
      The map and what the operation has to add. The output size is the same for every
      ``position``.

    Raises:
      ValueError: if the map is empty, the kernel is larger than the padded map, or the padding is
        too wide for its mode.
    """
    size = (x.shape[1], x.shape[2])
    check_map(size, layer)
    amounts = layer_padding(size, kernel, stride, padding, pad, dilation)
    check_window(size, kernel, dilation, amounts, padding, layer)
    if position is not None and max(stride) > 1:
        amounts = _even(amounts)
        offset, uneven = offset_of(position, size, kernel, stride, amounts, dilation)
        if not all(isinstance(r, int) for r in offset):
            drawn = None
            if padding == "partial":
                every = window_scale(size, kernel, amounts, dilation)
                drawn = _from_offset(every, offset, uneven)[:, :: stride[0], :: stride[1]]
            x = _from_offset(pad_map(x, amounts, padding, fill), offset, uneven)
            return WindowedMap(x, _NONE, drawn)
        amounts = _moved(amounts, offset, uneven)
    scale = window_scale(size, kernel, amounts, dilation, stride) if padding == "partial" else None
    crops = any(amount < 0 for side in amounts for amount in side)
    if padding in _CONSTANT and not crops:
        return WindowedMap(x, amounts, scale)
    return WindowedMap(pad_map(x, amounts, padding, fill), _NONE, scale)


def subsample(
    x: jax.Array, stride: int, position: Position | None = None, layer: str = "subsample"
) -> jax.Array:
    """Keeps every ``stride``-th pixel, as a 1×1 convolution with that stride does.

    Args:
      x: map (batch, height, width, channels).
      stride: step on both axes.
      position: SBPool's choice, or ``None`` to start at the first pixel.
      layer: name for error messages.

    Returns:
      Map (batch, ⌈height / stride⌉, ⌈width / stride⌉, channels).

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(4).reshape(1, 1, 4, 1)
    >>> layers.subsample(x, 2).ravel().tolist()
    [0, 2]
    >>> layers.subsample(x, 2, position=layers.corner(2)).ravel().tolist()
    [1, 3]
    """
    step = (stride, stride)
    windows = place_windows(
        x,
        kernel=(1, 1),
        stride=step,
        padding="zero",
        pad=0,
        dilation=(1, 1),
        position=position,
        fill=0.0,
        layer=layer,
    )
    return windows.x[:, ::stride, ::stride]


def crop(x: jax.Array, margin: int | Pair) -> jax.Array:
    """Removes ``margin`` pixels on every side, as ``valid`` layers in a parallel branch do.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> layers.crop(jnp.arange(16).reshape(1, 4, 4, 1), 1)[0, :, :, 0].tolist()
    [[5, 6], [9, 10]]
    """
    rows, columns = pair(margin)
    return x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]


def crop_to_common(maps: list[jax.Array]) -> list[jax.Array]:
    """Crops maps around their centres to the smallest height and width among them.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> maps = [jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 2, 3, 8))]
    >>> [x.shape for x in layers.crop_to_common(maps)]
    [(1, 2, 3, 1), (1, 2, 3, 8)]
    """
    height, width = min(x.shape[1] for x in maps), min(x.shape[2] for x in maps)
    return [
        crop(x, ((x.shape[1] - height) // 2, (x.shape[2] - width) // 2))[:, :height, :width]
        for x in maps
    ]


def _even(amounts: Amounts) -> Amounts:
    """Returns the larger amount of each axis for both sides; ``same`` may pad them unequally."""
    (top, bottom), (left, right) = amounts
    height, width = max(top, bottom), max(left, right)
    return (height, height), (width, width)


def _moved(amounts: Amounts, offset: tuple, uneven: Pair) -> Amounts:
    """Returns the padding with which windows start at ``offset`` and cover every row."""
    (top, bottom), (left, right) = amounts
    return (
        (top - offset[0], bottom - uneven[0] + offset[0]),
        (left - offset[1], right - uneven[1] + offset[1]),
    )


def _from_offset(x: jax.Array | np.ndarray, offset: tuple, uneven: Pair) -> jax.Array:
    """Crops a padded map so that windows start at ``offset``, which may be a traced value."""
    shape = (x.shape[0], x.shape[1] - uneven[0], x.shape[2] - uneven[1], x.shape[3])
    return lax.dynamic_slice(x, (0, offset[0], offset[1], 0), shape)
