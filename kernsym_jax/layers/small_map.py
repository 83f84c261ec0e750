"""Convolution that stays fast on CPUs where a map has fewer pixels than the kernel.

XLA swaps the operands of a convolution whose map has fewer pixels than its kernel. Its CPU backend
runs what results as a plain loop, at about a hundredth of its usual speed
(``docs/notes/xla_cpu_small_maps.md``). A matrix product per output pixel has the same terms.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernsym_jax.layers.padding import Amounts, Pair

Form = Callable[[jax.Array, jax.Array], jax.Array]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: Pair = (1, 1),
    amounts: Amounts = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Cross-correlates a map with a kernel.

    The result and the derivatives of every order are those of ``lax.conv_general_dilated`` to
    rounding. A program for a CPU takes matrix products where they are faster, for the result, the
    gradient of the map and the gradient of the kernel each by itself; a program for any other
    platform is the plain convolution.

    Args:
      x: map (batch, height, width, in).
      kernel: (kh, kw, in / groups, out), of the type of ``x``.
      stride: vertical and horizontal stride.
      amounts: zeros added on each side, ``((top, bottom), (left, right))``, not negative.
      dilation: vertical and horizontal distance between taps.
      groups: number of groups that the channels are split into.

    Returns:
      Map (batch, out_h, out_w, out), of the type of ``x``.
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=stride,
        padding=amounts,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    if groups > 1:  # XLA leaves the operands of grouped convolutions in place
        return plain(x, kernel)
    size, window = (x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1])
    rows, columns = (
        (size[i] + sum(amounts[i]) - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    taps, pixels, out_pixels = window[0] * window[1], size[0] * size[1], rows * columns
    # Where XLA swaps the operands; the gradient of the map is a convolution of the output's
    # gradient. The gradient of the kernel is never swapped, and a product wins by a little.
    small, small_out, tiny = taps > pixels, taps > out_pixels, taps > 2 * pixels
    if not (small or small_out):
        return plain(x, kernel)
    product = functools.partial(
        _product,
        out=(rows, columns),
        stride=stride,
        near=(amounts[0][0], amounts[1][0]),
        dilation=dilation,
    )

    def form(*, as_product: bool) -> Form:
        if not as_product:
            return plain
        return lambda x, kernel: lax.platform_dependent(x, kernel, cpu=product, default=plain)

    return _with_forms(form(as_product=small), form(as_product=small_out), form(as_product=tiny))(
        x, kernel
    )


def _with_forms(result: Form, of_map: Form, of_kernel: Form) -> Form:
    """One bilinear function whose derivatives by the map and by the kernel have their own forms."""
    function = jax.custom_jvp(result)

    @function.defjvp
    def jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        return function(x, kernel), of_map(dx, kernel) + of_kernel(x, dkernel)

    return function


def _product(
    x: jax.Array, kernel: jax.Array, *, out: Pair, stride: Pair, near: Pair, dilation: Pair
) -> jax.Array:
    """Multiplies, for each output pixel, the pixels of its window on the map by their taps."""
    rows, columns = (
        [
            _on_map(i * stride[axis] - near[axis], x.shape[1 + axis], kernel.shape[axis], step)
            for i in range(out[axis])
        ]
        for axis, step in enumerate(dilation)
    )
    # As the plain convolution does, sums of short types are taken in float32.
    wide = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    maps, weights = x.astype(wide), kernel.astype(wide)
    batch, features = x.shape[0], kernel.shape[3]
    pixels = []
    for (place_rows, tap_rows), (place_columns, tap_columns) in itertools.product(rows, columns):
        window = maps[:, place_rows, place_columns].reshape(batch, -1)
        pixels.append(window @ weights[tap_rows, tap_columns].reshape(-1, features))
    return jnp.stack(pixels, axis=1).reshape(batch, *out, features).astype(x.dtype)


def _on_map(start: int, size: int, taps: int, step: int) -> tuple[slice, slice]:
    """The part of a window that lies on the map: its places there, and its taps.

    A window from place -1 with three taps on a map of 2 pixels has taps 1 and 2 on places 0 and 1.
    """
    first = min(max(0, -(start // step)), taps)
    last = max(first, min(taps, -((start - size) // step)))
    begin = start + first * step
    end = begin + (last - first - 1) * step + 1 if last > first else begin
    return slice(begin, end, step), slice(first, last)
