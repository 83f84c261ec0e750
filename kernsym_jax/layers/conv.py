"""Two-dimensional convolution with every padding mode, and BatchNorm.

XLA's CPU backend has two weak spots that accelerators do not have
(``docs/notes/xla_cpu_small_maps.md``):

- Where the map has fewer pixels than the kernel, XLA swaps both and runs a plain loop, at about a
  hundredth of its usual speed. A matrix product per output pixel has the same terms.
- The gradient of the kernel slides one map over another for all images at once. It is up to three
  times faster for a few images at a time, which fit into a core's cache.

``docs/results/cpu_step`` has the measurements behind the limits below.
"""

import contextvars
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax import lax

from kernsym_jax.layers.padding import (
    Amounts,
    Pair,
    Position,
    check_padding,
    module_path,
    pair,
    place_windows,
)

Form = Callable[[jax.Array, jax.Array], jax.Array]

_PART_BYTES = 2**20
"""Input and output of one part of the batch: half of a core's second-level cache."""

_MOST_PARTS = 8
"""More parts take longer to compile and are hardly faster."""

_BY_PRODUCTS = contextvars.ContextVar("by_products", default=False)


def by_products(function: Callable) -> Callable:
    """Returns the function with each convolution computed as one matrix product.

    The factors are the pixels of all windows and the kernel. For many small networks under ``vmap``
    this is one batched product, while a convolution would become a grouped one with a group for
    each network. Grouped convolutions stay as they are.

    Args:
      function: a function whose layers call `convolve`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> conv, x = layers.Conv(2, 3), jnp.ones((1, 4, 4, 1))
    >>> variables = jax.eval_shape(conv.init, jax.random.key(0), x)
    >>> program = str(jax.make_jaxpr(layers.by_products(conv.apply))(variables, x))
    >>> "conv_general_dilated" in program, "dot_general" in program
    (False, True)
    """

    @functools.wraps(function)
    def with_products(*args: Any, **kwargs: Any) -> Any:
        token = _BY_PRODUCTS.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _BY_PRODUCTS.reset(token)

    return with_products


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

    The result and its derivatives of every order equal those of ``lax.conv_general_dilated`` to
    rounding. A program for a CPU computes the result, the gradient of the map and the gradient of
    the kernel each in the form that suits its shapes. A program for any other platform is the plain
    convolution.

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
    if groups > 1:  # XLA does not swap the operands of grouped convolutions
        return plain(x, kernel)
    size, window = (x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1])
    rows, columns = (
        (size[i] + sum(amounts[i]) - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    if _BY_PRODUCTS.get():
        return _window_product(x, kernel, (rows, columns), stride, amounts, dilation)
    near = (amounts[0][0], amounts[1][0])
    product = functools.partial(
        _product, out=(rows, columns), stride=stride, near=near, dilation=dilation
    )
    taps, pixels, out_pixels = math.prod(window), math.prod(size), rows * columns
    forms: list[Form] = [plain, plain, plain]
    if taps > pixels:
        forms[0] = product
    # The gradient of the map is a convolution of the gradient of the output.
    if taps > out_pixels:
        forms[1] = product
    # XLA never swaps the gradient of the kernel: a product wins by a little, on the smallest maps.
    if taps > 2 * pixels:
        forms[2] = product
    elif (parts := _parts(x, kernel, out_pixels)) > 1:
        forms[2] = functools.partial(_in_parts, plain, parts)
    if all(form is plain for form in forms):
        return plain(x, kernel)
    return _bilinear(*(_on_cpu(form, plain) for form in forms))(x, kernel)


def _on_cpu(form: Form, plain: Form) -> Form:
    """Returns a function that CPU programs compute by ``form`` and all others by ``plain``."""
    if form is plain:
        return plain
    return lambda x, kernel: lax.platform_dependent(x, kernel, cpu=form, default=plain)


def _bilinear(result: Form, of_map: Form, of_kernel: Form) -> Form:
    """Returns a bilinear function with own forms for its derivatives by map and by kernel."""
    function = jax.custom_jvp(result)

    @function.defjvp
    def jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        return function(x, kernel), of_map(dx, kernel) + of_kernel(x, dkernel)

    return function


def _parts(x: jax.Array, kernel: jax.Array, out_pixels: int) -> int:
    """Returns in how many parts of the batch a CPU sums the gradient of the kernel."""
    taps = kernel.shape[0] * kernel.shape[1]
    if taps == 1:  # a matrix product, which XLA blocks by itself
        return 1
    out_size = x.shape[0] * out_pixels * kernel.shape[3]
    data = (x.size + out_size) * x.dtype.itemsize
    # Each part writes a gradient of its own, which must cost less than what the part reads.
    part = max(_PART_BYTES, kernel.size * kernel.dtype.itemsize)
    wanted = min(_MOST_PARTS, data // part)
    return math.gcd(x.shape[0], 2 ** (wanted.bit_length() - 1)) if wanted > 1 else 1


def _in_parts(plain: Form, parts: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every ``parts``-th image of the batch, so that no image has to leave its device."""
    batch, *shape = x.shape
    split = x.reshape(batch // parts, parts, *shape)
    outputs = [plain(split[:, part], kernel) for part in range(parts)]
    return jnp.stack(outputs, axis=1).reshape(batch, *outputs[0].shape[1:])


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


def _window_product(
    x: jax.Array, kernel: jax.Array, out: Pair, stride: Pair, amounts: Amounts, dilation: Pair
) -> jax.Array:
    """Multiplies the windows of all output pixels by the kernel, in one product."""
    padded = jnp.pad(x, ((0, 0), *amounts, (0, 0)))
    batch, channels, (height, width) = x.shape[0], x.shape[3], kernel.shape[:2]
    reach = [(out[axis] - 1) * stride[axis] + 1 for axis in (0, 1)]
    shifted = [
        lax.slice(
            padded,
            (0, i * dilation[0], j * dilation[1], 0),
            (batch, i * dilation[0] + reach[0], j * dilation[1] + reach[1], channels),
            (1, *stride, 1),
        )
        for i, j in itertools.product(range(height), range(width))
    ]
    windows = jnp.concatenate(shifted, axis=3).reshape(-1, height * width * channels)
    # As in convolutions, sums of short types are taken in float32.
    pixels = jnp.matmul(
        windows,
        kernel.reshape(-1, kernel.shape[3]),
        preferred_element_type=jnp.float32 if x.dtype.itemsize < 4 else None,
    )
    return pixels.reshape(batch, *out, -1).astype(x.dtype)


def _on_map(start: int, size: int, taps: int, step: int) -> tuple[slice, slice]:
    """Returns the places and the taps of the part of a window that lies on the map.

    A window from place -1 with three taps on a map of 2 pixels has taps 1 and 2 on places 0 and 1.
    """
    first = min(max(0, -(start // step)), taps)
    last = max(first, min(taps, -((start - size) // step)))
    begin = start + first * step
    end = begin + (last - first - 1) * step + 1 if last > first else begin
    return slice(begin, end, step), slice(first, last)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """Returns ``module.param(name, init, shape)``, and traces ``init`` in the first call alone.

    Flax traces it in every call to learn its shape: half the time to trace a network.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value = nn.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise ScopeParamShapeError(name, module_path(module), value.shape, shape)
    return value


class Conv(nn.Module):
    """Cross-correlation of a map with a learned ``kernel`` (kh, kw, in / groups, out).

    Attributes:
      features: output channels.
      kernel_size: height and width, or one number for both.
      stride: vertical and horizontal, or one number for both.
      padding: one of ``PADDINGS``.
      pad: rows and columns added per side; ``None`` for ``dilation * (k - 1) // 2``, which keeps
        the size at stride 1. ``valid`` ignores it, and so does ``same`` unless it is 0.
      dilation: distance between taps.
      groups: number of groups that the channels are split into.
      use_bias: whether to add a learned ``bias`` (out,).
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      dtype: type of the computation; parameters are float32.

    Reference: for ``padding="partial"``, Liu et al., "Partial Convolution based Padding", arXiv
    1811.11718.

    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    >>> x = jnp.ones((1, 3, 4, 1))
    >>> layers.Conv(1, 3, use_bias=False).apply(ones, x)[0, 0, :, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    >>> layers.Conv(1, 3, padding="partial", use_bias=False).apply(ones, x)[0, 0, :, 0].tolist()
    [9.0, 9.0, 9.0, 9.0]
    """

    features: int
    kernel_size: int | Pair = 3
    stride: int | Pair = 1
    padding: str = "zero"
    pad: int | Pair | None = None
    dilation: int | Pair = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, position: Position | None = None) -> jax.Array:
        """Convolves a map.

        Args:
          x: map (batch, height, width, channels).
          position: SBPool's choice for a strided layer (``Downsample.position``), or ``None``.

        Returns:
          Map (batch, out_h, out_w, features), of type ``dtype``. Its size is the same for every
          ``position``.

        Raises:
          ValueError: if the padding is unknown or too wide for its mode, ``groups`` does not divide
            the channels, the map is empty, or the kernel is larger than the padded map.
        """
        layer = module_path(self)
        check_padding(self.padding, layer)
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"{layer}: {self.groups} groups do not divide {channels} input and "
                f"{self.features} output channels"
            )
        kernel_size, stride, dilation = map(pair, (self.kernel_size, self.stride, self.dilation))
        shape = (*kernel_size, channels // self.groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        windows = place_windows(
            x.astype(self.dtype),
            kernel=kernel_size,
            stride=stride,
            padding=self.padding,
            pad=self.pad,
            dilation=dilation,
            position=position,
            layer=layer,
        )
        y = convolve(
            windows.x,
            kernel.astype(self.dtype),
            stride=stride,
            amounts=windows.amounts,
            dilation=dilation,
            groups=self.groups,
        )
        if windows.scale is not None:
            y = y * jnp.asarray(windows.scale, self.dtype)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


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
    windows = place_windows(
        x, kernel=(1, 1), stride=pair(stride), padding="zero", pad=0, position=position, layer=layer
    )
    return windows.x[:, ::stride, ::stride]


class BatchNorm(nn.Module):
    """Normalises each channel over batch, height and width.

    Parameters ``scale`` and ``bias``; running ``mean`` and ``var`` in the collection
    ``batch_stats``. As in PyTorch the running variance is the unbiased one. Under ``jit`` with a
    batch sharded over devices the statistics are those of the whole batch.

    Attributes:
      momentum: weight of the old running statistics at each step; PyTorch's is one minus this.
      epsilon: added to the variance.
      axis_name: axis of ``pmap`` or ``shard_map`` over which statistics are averaged, or
        ``None``.
      dtype: type of the result.

    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015, algorithm 1.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from kernsym_jax import layers
    >>> x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> norm = layers.BatchNorm()
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    >>> print(y.ravel().round(3), updated["batch_stats"]["mean"])
    [-1.  1.] [0.2]
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalises ``x`` (batch, height, width, channels), by its own statistics if ``train``."""
        shape = (x.shape[-1],)
        scale = parameter(self, "scale", nn.initializers.ones, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        # Moments about the running mean take one pass over the map, without the cancellation of
        # raw moments.
        centre = jax.lax.stop_gradient(running_mean.value) if train else running_mean.value
        shifted = x.astype(jnp.float32) - _channels(centre)
        if train:
            mean, var, count = self._moments(shifted)
            if not self.is_initializing():
                fresh, unbiased = 1.0 - self.momentum, count / max(count - 1, 1)
                running_mean.value = self.momentum * centre + fresh * (mean + centre)
                running_var.value = self.momentum * running_var.value + fresh * unbiased * var
            factor = jax.lax.rsqrt(var + self.epsilon) * scale
            # The gradient of one factor and one term per channel reads fewer maps than that of
            # (shifted - mean) * factor + bias.
            bias = bias - mean * factor
        else:
            factor = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
        return (shifted * _channels(factor) + _channels(bias)).astype(self.dtype)

    def _moments(self, shifted: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Returns the mean, the biased variance and the number of values per channel."""
        first, second = shifted.mean((0, 1, 2)), jnp.square(shifted).mean((0, 1, 2))
        count = shifted.size // shifted.shape[-1]
        if self.axis_name is not None and not self.is_initializing():
            first, second = jax.lax.pmean((first, second), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        return first, jnp.maximum(second - jnp.square(first), 0.0), count


def _channels(values: jax.Array) -> jax.Array:
    """Reshapes values (channels,) so that they broadcast over a map."""
    return values.reshape(1, 1, 1, -1)
