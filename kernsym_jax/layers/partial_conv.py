"""Partial convolution rescales each window by how much of it lies on the image."""

import functools

import numpy as np

from kernsym_jax.layers.padding import Amounts, Pair


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
