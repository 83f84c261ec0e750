"""Padding modes, the windows that a layer places on a padded map, and pooling over windows."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernsym_jax import geometry
from kernsym_jax.geometry.foveation import window_scale

Pair = tuple[int, int]
Amounts = tuple[Pair, Pair]

PADDINGS = geometry.PADDING_MODES
"""The padding modes of every layer."""

_AS_JNP = {"reflect": "reflect", "replicate": "edge", "symmetric": "symmetric", "circular": "wrap"}

Position = tuple[float | jax.Array, float | jax.Array]
"""Vertical and horizontal place of the first window of a strided layer, 0 to 1 (SBPool)."""

_CONSTANT = ("zero", "same", "partial", "valid")
_NONE: Amounts = ((0, 0), (0, 0))


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
        if padding in _AS_JNP:
            x = jnp.pad(x, widths, mode=_AS_JNP[padding])
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
    dilation: Pair = (1, 1),
    position: Position | None,
    fill: float = 0.0,
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


def crop(x: jax.Array, margin: int | Pair) -> jax.Array:
    """Returns a map (batch, height, width, channels) without ``margin`` pixels on every side.

    Layers without padding in a parallel branch shrink their map as much.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> layers.crop(jnp.arange(16).reshape(1, 4, 4, 1), 1)[0, :, :, 0].tolist()
    [[5, 6], [9, 10]]
    """
    rows, columns = pair(margin)
    return x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]


def crop_to_common(maps: list[jax.Array]) -> list[jax.Array]:
    """Returns maps (batch, height, width, channels), cropped around their centres to one size.

    The size is the smallest height and the smallest width among them.

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


class MaxPool(nn.Module):
    """Takes the largest value of each window; constant padding is the lowest that the dtype has.

    Attributes:
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``.
      pad: rows and columns added per side; ``None`` for ``(k - 1) // 2``.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> layers.MaxPool(2, stride=2).apply({}, x)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """

    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Pools a map (batch, height, width, channels); ``position`` as in ``Conv``."""
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        lowest = -np.inf if floats else jnp.iinfo(x.dtype).min
        windows = _windows(self, x, position, fill=lowest)
        return _reduce(windows, lowest, lax.max, pair(self.kernel_size), pair(self.stride))


class AvgPool(nn.Module):
    """Averages each window, padding included except under ``padding="partial"``.

    Attributes:
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``; ``partial`` averages over the pixels of the image only.
      pad: rows and columns added per side; ``None`` for ``(k - 1) // 2``.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.full((1, 3, 4, 1), 9.0)
    >>> layers.AvgPool(3).apply({}, x)[0, 0, :, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    >>> layers.AvgPool(3, padding="partial").apply({}, x)[0, 0, :, 0].tolist()
    [9.0, 9.0, 9.0, 9.0]
    """

    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Pools a map (batch, height, width, channels); ``position`` as in ``Conv``."""
        kernel = pair(self.kernel_size)
        windows = _windows(self, x, position, fill=0.0)
        total = _reduce(windows, 0.0, lax.add, kernel, pair(self.stride))
        mean = total / np.asarray(kernel[0] * kernel[1], total.dtype)
        if windows.scale is None:
            return mean
        return mean * jnp.asarray(windows.scale, mean.dtype)


def _windows(
    pool: MaxPool | AvgPool, x: jax.Array, position: Position | None, fill: float
) -> WindowedMap:
    layer = module_path(pool)
    check_padding(pool.padding, layer)
    kernel, stride = pair(pool.kernel_size), pair(pool.stride)
    return place_windows(
        x,
        kernel=kernel,
        stride=stride,
        padding=pool.padding,
        pad=pool.pad,
        dilation=(1, 1),
        position=position,
        fill=fill,
        layer=layer,
    )


def _reduce(
    windows: WindowedMap, start: float, operation: Any, kernel: Pair, stride: Pair
) -> jax.Array:
    """Reduces every window by ``operation``; the remaining padding has the value ``start``."""
    return lax.reduce_window(
        windows.x,
        np.asarray(start, windows.x.dtype),
        operation,
        (1, *kernel, 1),
        (1, *stride, 1),
        ((0, 0), *windows.amounts, (0, 0)),
    )


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
