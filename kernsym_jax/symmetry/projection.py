"""Making mean kernels symmetric: the least change of a weight after which they are invariant."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernsym_jax.symmetry import group
from kernsym_jax.symmetry.mean_kernel import mean_kernel


def invariant_part(kernel: jax.Array, elements: Sequence[str] = ()) -> jax.Array:
    """The part of a kernel that a group of transforms leaves unchanged: its mean over the group.

    Args:
      kernel: (..., kh, kw), any real dtype.
      elements: of D4; the group that they generate is meant, or what of it applies to the kernel's
        shape. Empty for all of D4.

    Returns:
      float32 (..., kh, kw). As the mean over a group of permutations of the cells it is the
      orthogonal projection: of all invariant kernels the nearest.

    Raises:
      ValueError: for an unknown element.

    >>> import jax.numpy as jnp
    >>> print(invariant_part(jnp.array([[1.0, 2.0], [3.0, 5.0]]), ["fliplr"]))
    [[1.5 1.5]
     [4.  4. ]]
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    return kernel - _excess(kernel, elements)


def project_mean_kernel(weight: jax.Array, elements: Sequence[str] = ()) -> jax.Array:
    """The nearest weight whose mean kernel is invariant under a group of transforms.

    With K the mean kernel and P K its `invariant_part`, every (in, out) slice loses the same
    K − P K. That is the least change that gives P K as the mean kernel: whatever is taken from the
    slices must average to K − P K, and the sum of squares of numbers of a given mean is least when
    all are that mean. And among all invariant mean kernels P K is the nearest to K.

    A change equal for all slices would be lost in the rounding of the weights where it is smaller,
    or be rounded to one side for all weights of a like size. So slices are changed by whole steps
    of the grid on which the largest weight lies, some by a step more than others, which gives the
    mean the exact change. The distances of the new mean kernel are below 1e-6 down to a hundredth
    of the size that random weights have on average; of less, and of a kernel without any invariant
    part (a Sobel filter under all of D4), only rounding is left, whose distances mean nothing.
    (`measure` adds the rounding of its own sums, which is about 1e-7 of that size.)

    Args:
      weight: (kh, kw, in, out), any float dtype. It may have leading axes only through `jax.vmap`.
      elements: as in `invariant_part`.

    Returns:
      The weight, same shape and dtype; differentiable, as the linear map that it is but for
      rounding.

    Raises:
      ValueError: for an unknown element, or a weight of another shape or without channels.
    """
    weight = jnp.asarray(weight)
    if weight.ndim != 4 or not jnp.issubdtype(weight.dtype, jnp.floating):
        raise ValueError(
            "a weight has the axes (kh, kw, in, out) and a float dtype, got "
            f"{weight.shape} {weight.dtype}"
        )
    return _project(weight, group.generated(elements))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _project(weight: jax.Array, elements: tuple[str, ...]) -> jax.Array:
    digits = jnp.finfo(weight.dtype).nmant + 1
    # The first pass takes out all but rounding; the second, far smaller, what rounding has left.
    for mean in (mean_kernel, _exact_mean_kernel):
        step = _unit(weight, -digits)
        steps = _excess(mean(weight), elements) / step
        whole = jnp.floor(steps[..., None, None] + _spread(weight.shape[2:])[None, None])
        weight = (weight.astype(jnp.float32) - step * whole).astype(weight.dtype)
    return weight


@_project.defjvp
def _project_jvp(
    elements: tuple[str, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (weight,), (tangent,) = primals, tangents
    excess = _excess(mean_kernel(tangent), elements)[..., None, None]
    moved = tangent.astype(jnp.float32) - excess
    return _project(weight, elements), moved.astype(tangent.dtype)


def _excess(kernel: jax.Array, elements: Sequence[str]) -> jax.Array:
    """What of a kernel is not invariant; 0 to the last bit where all is."""
    kh, kw = kernel.shape[-2:]
    orders = group.cell_permutations(kh, kw)[group.places(elements, kh, kw), :]
    cells = kernel.reshape(*kernel.shape[:-2], kh * kw)
    differences = cells[..., None, :] - cells[..., orders]
    return jnp.mean(differences, axis=-2).reshape(kernel.shape)


def _exact_mean_kernel(weight: jax.Array) -> jax.Array:
    """The mean kernel with next to no rounding in its sums, at several times the cost."""
    slices = weight.shape[2] * weight.shape[3]
    # The upper digits of the weights, so few that they add up exactly in any order.
    unit = _unit(weight, math.ceil(math.log2(slices)) - 23)
    weight = weight.astype(jnp.float32)
    upper = jnp.round(weight / unit) * unit
    return (jnp.sum(upper, axis=(2, 3)) + jnp.sum(weight - upper, axis=(2, 3))) / slices


def _unit(weight: jax.Array, shift: int) -> jax.Array:
    """A power of two, so many binary digits beside the least that is above all weights."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(weight)).astype(jnp.float32))
    # Kept where floats are normal: the rest of tiny weights is not worth telling from 0.
    return jnp.ldexp(jnp.float32(1), jnp.maximum(exponent + shift, -125))


def _spread(shape: tuple[int, ...]) -> jax.Array:
    """Numbers in [0, 1) of which any run is spread evenly: multiples of the golden ratio."""
    channels_in, channels_out = shape
    index = jnp.arange(channels_in * channels_out, dtype=jnp.uint32)
    fraction = index * jnp.uint32(0x9E3779B9) + jnp.uint32(1 << 31)
    return ((fraction >> 8).astype(jnp.float32) / 2**24).reshape(shape)
