"""Foveation: the windows that read each pixel of an image, and the pixels that a window reads."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from kernsym_jax.geometry import arithmetic
from kernsym_jax.geometry.input_size import LayerLike, layers_at
from kernsym_jax.geometry.layer import LayerGeometry

PADDING_MODES = (
    "zero",
    "same",
    "reflect",
    "replicate",
    "symmetric",
    "circular",
    "partial",
    "valid",
)
"""The paddings that `foveation` knows, named as in ``layers.PADDINGS``."""

_NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def foveation(
    size: arithmetic.PerAxis,
    kernel: arithmetic.PerAxis,
    stride: arithmetic.PerAxis = 1,
    padding_mode: str = "zero",
    padding: arithmetic.Padding | None = None,
    dilation: arithmetic.PerAxis = 1,
) -> np.ndarray:
    """Counts the windows of one layer that read each pixel.

    If the padding repeats a pixel, every reading of it counts. A window of a partial convolution
    counts kh·kw/m times, where m is the number of its taps on the image. With all weights equal to
    1, the result is the gradient of the sum of all outputs with respect to the image.

    Args:
      size: pixels of the image, one number for a square or (height, width).
      kernel: number of taps.
      stride: step between windows.
      padding_mode: one of ``PADDING_MODES``.
      padding: amount, as in `arithmetic`; ``None`` for ⌊d(k-1)/2⌋ at each end. ``same`` ignores
        it and follows TensorFlow's rule; ``valid`` ignores it and adds nothing.
      dilation: step between taps.

    Returns:
      Counts (height, width), float64.

    Raises:
      ValueError: if the mode is unknown, or as `arithmetic.output_size` does.

    Reference: Alsallakh et al., "Mind the Pad", arXiv 2010.02178.

    >>> from kernsym_jax import geometry
    >>> print(geometry.foveation(8, kernel=3, stride=2)[1])
    [2. 4. 2. 4. 2. 4. 2. 2.]
    """
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"unknown padding mode {padding_mode!r}; wanted one of {PADDING_MODES}")
    counts = []
    for axis in (0, 1):
        n, k, s, d = (_of_axis(value, axis) for value in (size, kernel, stride, dilation))
        amounts = padding
        if padding_mode == "valid":
            amounts = 0
        elif padding_mode == "same":
            amounts = "SAME"
        elif amounts is None:
            amounts = d * (k - 1) // 2
        elif not isinstance(amounts, int | str) and isinstance(amounts[axis], Sequence):
            amounts = amounts[axis]
        counts.append(window_matrix(n, k, s, amounts, d, padding_mode=padding_mode).sum(axis=0))
    return np.outer(*counts)


def window_matrix(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: arithmetic.Padding = 0,
    dilation: int = 1,
    *,
    padding_mode: str = "zero",
    upsampling: int = 1,
) -> np.ndarray:
    """Counts how often each window along one axis reads each pixel.

    Args:
      size: pixels of the input.
      kernel: number of taps.
      stride: step between windows.
      padding: padding of this axis, as in `arithmetic`.
      dilation: step between taps.
      padding_mode: one of ``PADDING_MODES``.
      upsampling: step between the pixels after zeros are put between them; 1 for none.

    Returns:
      Counts (windows, size), float64. Under ``partial`` the counts of a window with m taps on the
      image are multiplied by kernel/m.

    Raises:
      ValueError: as `arithmetic.output_size` does.

    >>> from kernsym_jax import geometry
    >>> print(geometry.window_matrix(5, kernel=3, stride=2, padding=1))
    [[1. 1. 0. 0. 0.]
     [0. 1. 1. 1. 0.]
     [0. 0. 0. 1. 1.]]
    """
    spread = (size - 1) * upsampling + 1
    (axis,) = arithmetic.windows(spread, kernel, stride, padding, dilation)
    position = np.full(spread, -1)
    position[::upsampling] = np.arange(size)
    ends = (max(axis.lo, 0), max(axis.hi, 0))
    if padding_mode in _NUMPY_MODES:
        padded = np.pad(position, ends, _NUMPY_MODES[padding_mode])  # type: ignore[call-overload]
    else:
        padded = np.pad(position, ends, constant_values=-1)
    padded = padded[max(-axis.lo, 0) : len(padded) - max(-axis.hi, 0)]
    taps = np.arange(axis.output_size)[:, None] * stride + np.arange(kernel)[None, :] * dilation
    window, tap = np.nonzero(padded[taps] >= 0)
    counts = np.zeros((axis.output_size, size))
    np.add.at(counts, (window, padded[taps[window, tap]]), 1)
    if padding_mode == "partial":
        seen = counts.sum(axis=1, keepdims=True)
        counts *= np.divide(kernel, seen, out=np.zeros_like(seen), where=seen > 0)
    return counts


@functools.cache
def window_scale(
    size: tuple[int, int],
    kernel: tuple[int, int],
    amounts: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
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


def network_foveation(
    layers: Sequence[LayerLike], size: int | None = None, outputs: Sequence[str] = ()
) -> np.ndarray:
    """Counts the paths from each pixel of the image through the windows of a whole network.

    The result is a gradient: that of the sum of the outputs with respect to the image, in a network
    with the same windows, one channel, all weights equal to 1, sums instead of maxima and no
    non-linearities. The counts of branches that are added or concatenated add up. Foveation is
    geometry alone: it does not depend on trained weights. The counts grow with the product of all
    kernel sizes and only their ratios matter, so they are divided by their mean.

    Args:
      layers: rows of an audit, or ``(kernel, stride, padding[, dilation])`` in order.
      size: height and width of the image; ``None`` for the size at which the rows were audited.
      outputs: names of the layers whose output maps to start from; by default all maps that no
        layer reads.

    Returns:
      Map (height, width), float64, of mean 1.

    Raises:
      ValueError: if a layer runs in a loop, has mixed padding, or its input could not be followed
        (the message names the layer); if a name in ``outputs`` is unknown; if no output depends on
        the image.

    Reference: Alsallakh et al., "Mind the Pad", arXiv 2010.02178.

    >>> from kernsym_jax import geometry
    >>> counts = geometry.network_foveation([(3, 2, 1), (3, 2, 1)], 9)
    >>> counts.shape, round(float(counts.mean()), 6)
    ((9, 9), 1.0)
    """
    rows = layers_at(layers, size)
    read = {number for row in rows for number in row.reads or ()}
    last = {i for i, row in enumerate(rows) if (row.layer in outputs if outputs else i not in read)}
    unknown = set(outputs) - {row.layer for row in rows}
    if unknown:
        raise ValueError(f"no layer is named {sorted(unknown)}")
    ways: dict[int, np.ndarray] = {i: np.ones(rows[i].output_size) for i in last}
    for number in reversed(range(len(rows))):
        if number not in ways:
            continue
        back = _back(rows[number])(ways.pop(number))
        for source in rows[number].reads or ():
            ways[source] = ways[source] + back if source in ways else back
        if back.max() > 1e200:
            # The counts of a deep network exceed the range of float64, and only ratios matter.
            ways = {source: counts * 1e-200 for source, counts in ways.items()}
    if -1 not in ways:
        raise ValueError("none of the outputs is reached from the image")
    return ways[-1] / ways[-1].mean()


def _back(row: LayerGeometry) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from counts on the layer's output to counts on its input."""
    if row.repeats != 1:
        raise ValueError(f"{row.layer}: runs {row.repeats} times in a loop; audit it unrolled")
    if row.padding_mode in ("mixed", "other"):
        raise ValueError(f"{row.layer}: cannot follow {row.padding_mode} padding back to pixels")
    if row.reads is None and max(row.input_size) > 1:
        raise ValueError(f"{row.layer}: its input could not be followed to the image")

    def back(counts: np.ndarray) -> np.ndarray:
        for axis, size in enumerate(row.input_size):
            matrix = window_matrix(
                size,
                row.kernel[axis],
                row.stride[axis],
                row.padding[axis],
                row.dilation[axis],
                padding_mode=row.padding_mode,
                upsampling=row.upsampling[axis],
            )
            counts = np.moveaxis(np.tensordot(matrix, counts, axes=(0, axis)), 0, axis)
        return counts

    return back


def _of_axis(value: arithmetic.PerAxis, axis: int) -> int:
    return value[axis] if isinstance(value, Sequence) else value
